"""When to fetch and what to evict: the policies of the transfer schedule.

Owns the decisions. The engine carries them out, against a device or, for a forecast, against a clock.

The `optimal` policy is integrated prefetching and caching: Cao, Felten, Karlin & Li, "A Study of Integrated Prefetching
and Caching Strategies" (SIGMETRICS '95), whose four rules are

1. fetch the next missing slab in the order of use,
2. evict the slab whose next use is furthest away,
3. never evict a slab that is needed before the one being fetched,
4. start at the first moment possible.

`sliding` is the window of "Superpipeline" (arXiv 2410.08791, section 3.2): k units held, k' replaced at a time.
`naive` fetches k units, runs them, drops them, with no overlap. `whole` holds everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from superpipe_cluster.streaming.order import Future
from superpipe_cluster.streaming.schedule import Action, Clean, Evict, Fetch, View

PolicyName = Literal["optimal", "sliding", "naive", "whole"]
POLICIES: tuple[PolicyName, ...] = ("optimal", "sliding", "naive", "whole")


class Policy:
    """Loading on demand only; the base of the others.

    Actions are yielded one at a time and applied by the caller before it asks for the next, so `view.window` is always
    the truth.
    """

    #: Whether copies run beside the computation; if not, every fetch is waited for at once.
    overlaps: ClassVar[bool] = True
    #: Whether what a unit changed goes back to the host as soon as it has run, and not only when it has to leave.
    writes_back_at_once: ClassVar[bool] = True

    def miss(self, view: View, slab: int) -> Iterator[Action]:
        """`slab` is needed now and is not held. Without a final `Fetch` of it, there was no room to make."""
        victims = view.victims_for([slab], needed_at=-1, blocking=True)
        if victims is not None:
            yield from map(Evict, victims)
            yield Fetch((slab,))

    def ahead(self, view: View) -> Iterator[Action]:
        """What to start now for later."""
        del view
        return iter(())

    def look_again(self) -> None:
        """Slabs were taken away for a reason outside the policy (pressure, a smaller budget)."""

    def late(self) -> None:
        """The computation had to wait for a copy that was already under way, or not even started."""

    def begin_step(self) -> None:
        """A step starts."""


_CALM_STEPS = 16
_FURTHEST_LEAD = 1 << 10  # units; as good as no limit


class OptimalPolicy(Policy):
    """Integrated prefetching and caching, `k_prime` units per batch where there is time for that.

    The four rules say in which order and at whose expense. Three more say when, for a choice of what to evict is the
    better the later it is made:

    * One batch at a time (`in_flight`). What would only queue behind another copy is not started; where the link is the
      bottleneck this keeps a resident set, interleaved with what is streamed.
    * What has changed is sent back when it is next to leave, while the batch before it is still arriving; what stays is
      not sent at all.
    * Room is made no further ahead than `lead` units; what is free is filled at once. The lead grows when the
      computation had to wait and shrinks after many steps in which it never did; where the computation is the
      bottleneck this keeps the loads near their minimum, and so leaves the link to others.
    """

    writes_back_at_once = False

    def __init__(self, k_prime: int = 1, in_flight: int = 1) -> None:
        self._k_prime = k_prime
        self._in_flight = in_flight
        self._future: Future | None = None
        self._cursor = 0  # everything foreseen before this position is held or on its way
        self._lead = max(1, k_prime)
        self._calm = 0  # steps in a row without a wait
        self._was_late = False

    def ahead(self, view: View) -> Iterator[Action]:
        """Fetch in the order of use for as long as rule 3 lets room be made."""
        future, window = view.future, view.window
        if future is not self._future:
            self._future, self._cursor = future, 0
        while True:
            self._cursor = max(self._cursor, future.position)
            while self._cursor < len(future.sequence) and future.sequence[self._cursor] in window.held:
                self._cursor += 1
            if self._cursor == len(future.sequence):
                return
            batch, last = self._next_batch(view)
            if self._is_early(view) and not window.has_room(batch):
                return
            if self._link_is_taken(view):
                yield from self._clean(view)
                return
            victims = view.victims_for(batch, needed_at=last, blocking=False)
            if victims is None and len(batch) > 1 and self._imminent(view):
                batch = batch[:1]
                victims = view.victims_for(batch, needed_at=self._cursor, blocking=False)
            if victims is None:
                yield from self._clean(view)
                return
            yield from map(Evict, victims)
            yield Fetch(tuple(batch))

    def _clean(self, view: View) -> Iterator[Action]:
        """What will have to leave for the sake of the next unit."""
        ahead, end = view.units_ahead(self._cursor, 1)
        missing = [slab for slab in ahead if slab not in view.window.held]
        yield from map(Clean, view.victims_for(missing, needed_at=end - 1, blocking=True) or ())

    def look_again(self) -> None:
        """What lay before the cursor may be missing again."""
        self._cursor = 0

    def _next_batch(self, view: View) -> tuple[list[int], int]:
        """Missing slabs of the next `k_prime` units from the cursor on, and the position of the last of them."""
        window, sequence = view.window, view.future.sequence
        if self._k_prime == 1:
            return [sequence[self._cursor]], self._cursor
        ahead, end = view.units_ahead(self._cursor, self._k_prime)
        return [slab for slab in ahead if slab not in window.held], end - 1

    def late(self) -> None:
        """The next step starts its copies earlier, if this one could have foreseen the need at all."""
        self._was_late = self._future is not None and bool(self._future.sequence)

    def begin_step(self) -> None:
        """Draw the lesson of the last step."""
        if self._was_late:
            self._lead, self._calm = min(2 * self._lead, _FURTHEST_LEAD), 0
        else:
            self._calm += 1
            if self._calm == _CALM_STEPS:
                self._lead, self._calm = max(1, self._k_prime, self._lead // 2), 0
        self._was_late = False

    def _link_is_taken(self, view: View) -> bool:
        ahead = view.future.sequence[view.future.position : self._cursor]
        under_way = {view.window.unit_of[slab] for slab in ahead if view.arriving(slab)}
        return len(under_way) > (self._in_flight - 1) * self._k_prime

    def _is_early(self, view: View) -> bool:
        if self._lead >= len(view.window.sizes):
            return False
        start = max(0, view.future.position - 1)  # the unit that is running
        _, end = view.units_ahead(start, self._lead + 1)
        return self._cursor >= end

    def _imminent(self, view: View) -> bool:
        """Whether only the running unit stands between now and the next missing slab."""
        between = view.future.sequence[view.future.position : self._cursor]
        return len({view.window.unit_of[slab] for slab in between}) <= 1


class SlidingPolicy(Policy):
    """The window of the Superpipeline paper: `k` units held; after `k_prime` have run they make room for the next."""

    def __init__(self, k: int, k_prime: int) -> None:
        self._k = k
        self._k_prime = k_prime
        self._future: Future | None = None
        self._next_move = 0

    def ahead(self, view: View) -> Iterator[Action]:
        """Move the window on when `k_prime` units have run since it moved last."""
        start = view.future.position - 1
        if start < 0 or (view.future is self._future and start < self._next_move):
            return
        self._future = view.future
        _, self._next_move = view.units_ahead(start, self._k_prime)
        target, _ = view.units_ahead(start, self._k)
        for held in [held for held in view.window.held if held not in target and held not in view.pinned]:
            yield Evict(held)
        missing: list[int] = []
        for slab in target:
            if slab not in view.window.held and view.window.has_room([*missing, slab]):
                missing.append(slab)
        if missing:
            yield Fetch(tuple(missing))


class NaivePolicy(Policy):
    """Fetch `k` units and wait, run them, drop them, fetch the next `k`."""

    overlaps = False

    def __init__(self, k: int) -> None:
        self._k = k

    def miss(self, view: View, slab: int) -> Iterator[Action]:
        """Drop all, then take as many of the next `k` units as there is room for."""
        for held in [held for held in view.window.held if held not in view.pinned]:
            yield Evict(held)
        batch = [slab]
        if not view.window.has_room(batch):
            return
        ahead, _ = view.units_ahead(view.future.position, self._k)
        for other in ahead:
            if other not in view.window.held and other != slab and view.window.has_room([*batch, other]):
                batch.append(other)
        yield Fetch(tuple(batch))


class WholePolicy(Policy):
    """Everything stays on the device from its first use on."""


def make_policy(name: PolicyName, *, k: int, k_prime: int, in_flight: int = 1) -> Policy:
    """The policy called `name` for a window of `k` units moved `k_prime` at a time.

    Args:
        name: which one.
        k: units that the window holds.
        k_prime: units per batch.
        in_flight: batches that may be under way at once (`optimal`); more than one only where decisions are taken ahead
            of the computation.
    """
    if name == "sliding":
        return SlidingPolicy(k, k_prime)
    if name == "naive":
        return NaivePolicy(k)
    if name == "whole":
        return WholePolicy()
    return OptimalPolicy(k_prime, in_flight)

"""The order in which a program touches slabs: learned from what it did, used to say what it will do next.

Owns history and prediction. Pure: integers in, integers out; it knows neither torch nor bytes.

A *step* is everything between two calls of the model's outermost forward: a decoded token, a forward pass, or forward,
backward and optimizer step together. Programs repeat steps (sometimes alternating between a few kinds of them, as
gradient accumulation does), so the future is predicted as *the step that followed last time in the same context*.
A departure from it costs time and never correctness: what is missing is loaded on demand and the new order is learned.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from itertools import chain

NEVER = 1 << 60
"""Position of a use that is not foreseen at all."""

_KINDS_KEPT = 16
_HISTORY_KEPT = 64
# A program that never calls the outermost forward (it calls submodules itself) would otherwise grow one endless step.
_LONGEST_STEP = 100_000


class Future:
    """Positions of the foreseen accesses: `sequence[position:]` is still to come."""

    def __init__(self, sequence: tuple[int, ...] = ()) -> None:
        self.sequence = sequence
        self.position = 0
        self._uses: dict[int, list[int]] = defaultdict(list)
        for at, slab in enumerate(sequence):
            self._uses[slab].append(at)

    def next_use(self, slab: int) -> int:
        """Position of the next foreseen access of `slab`, or `NEVER`."""
        uses = self._uses.get(slab)
        if not uses:
            return NEVER
        at = bisect_left(uses, self.position)
        return uses[at] if at < len(uses) else NEVER

    def find(self, slab: int, end: int) -> int | None:
        """The first foreseen access of `slab` before position `end`, if there is one."""
        at = self.next_use(slab)
        return at if at < end else None


class AccessOrder:
    """Records accesses and keeps `future` true to the best prediction there is."""

    def __init__(self) -> None:
        self.future = Future()
        #: Accesses that were not the foreseen ones, over the whole life.
        self.surprises = 0
        self._current: list[int] = []
        self._kinds: dict[tuple[int, ...], int] = {}  # step -> kind number, oldest use first
        self._steps: dict[int, tuple[int, ...]] = {}  # kind number -> step
        self._history: deque[int] = deque(maxlen=_HISTORY_KEPT)
        self._next_kind = 0
        self._step_end = 0  # where the running step ends in `future.sequence`

    @property
    def learned(self) -> bool:
        """Whether at least one whole step has been seen."""
        return bool(self._kinds)

    def begin_step(self) -> None:
        """Close the running step, remember it, and foresee the one that starts now."""
        if self._current:
            self._remember(tuple(self._current))
            self._current = []
        self._foresee(self._likely_kind(self._history), done=0)

    def access(self, slab: int) -> bool:
        """Record that `slab` is needed now.

        Returns:
            Whether this was the foreseen access. If not, `future` is a new object or a new position.
        """
        if len(self._current) >= _LONGEST_STEP:
            self.begin_step()
        self._current.append(slab)
        future = self.future
        at = future.position
        if at < len(future.sequence) and future.sequence[at] == slab:
            future.position = at + 1
            return True
        if self.learned:
            self.surprises += 1
            self._resume_elsewhere(slab)
        return False

    # ---- learning --------------------------------------------------------------------------------

    def _remember(self, step: tuple[int, ...]) -> None:
        kind = self._kinds.pop(step, None)
        if kind is None:
            kind = self._next_kind
            self._next_kind += 1
            self._steps[kind] = step
        self._kinds[step] = kind  # re-inserted: youngest
        self._history.append(kind)
        while len(self._kinds) > _KINDS_KEPT:
            oldest = next(iter(self._kinds))
            del self._steps[self._kinds.pop(oldest)]

    def _likely_kind(self, past: deque[int] | list[int]) -> int | None:
        """What followed the longest remembered context that ends like `past`; the latest such occasion wins."""
        past = list(past)
        if not past:
            return None
        best, best_length = past[-1], 0
        for at in range(len(past) - 2, -1, -1):
            length = 0
            while length <= at and past[at - length] == past[-1 - length]:
                length += 1
            if length > best_length:
                best, best_length = past[at + 1], length
        return best if best in self._steps else None

    # ---- foreseeing ------------------------------------------------------------------------------

    def _foresee(self, kind: int | None, done: int) -> None:
        if kind is None:
            self.future, self._step_end = Future(), 0
            return
        step = self._steps[kind]
        after = self._likely_kind([*self._history, kind])
        following = self._steps[after] if after is not None else ()
        self.future = Future(tuple(chain(step, following)))
        self.future.position = done
        self._step_end = len(step)

    def _resume_elsewhere(self, slab: int) -> None:
        """Another known step that began just like this one; else skip ahead in the foreseen one; else stay."""
        done = len(self._current)
        prefix = tuple(self._current)
        for step, kind in reversed(self._kinds.items()):
            if step[:done] == prefix:
                self._foresee(kind, done)
                return
        at = self.future.find(slab, self._step_end)
        if at is not None:
            self.future.position = at + 1

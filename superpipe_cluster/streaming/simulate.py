"""What a schedule would cost: the policies of `schedule`, run against a clock instead of a device.

Owns a small discrete-event model of one device with one link: accesses compute for a while, copies go one at a time,
and decisions are taken where the engine takes them, at the accesses. Pure: seconds and bytes in, seconds and counts
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from superpipe_cluster.streaming.order import AccessOrder
from superpipe_cluster.streaming.schedule import Action, Evict, Policy, View, Window


@dataclass(frozen=True)
class Simulated:
    """The outcome of the last simulated step.

    Attributes:
        seconds: from its first access to the end of its last.
        stall_s: seconds in which the computation waited for a copy.
        loads: copies started.
        loaded_bytes: bytes of those copies.
    """

    seconds: float
    stall_s: float
    loads: int
    loaded_bytes: int


class Simulator:
    """Serves accesses under a policy, keeping time. Slabs are never changed, so evictions are free."""

    def __init__(self, window: Window, policy: Policy, link_bytes_per_s: float) -> None:
        self.window = window
        self._policy = policy
        self._order = AccessOrder()
        self._speed = link_bytes_per_s
        self._now = 0.0
        self._link_free_at = 0.0
        self._arrival: dict[int, float] = {}
        self._stall_s = 0.0
        self._loads = 0
        self._loaded_bytes = 0

    def step(self, accesses: Sequence[tuple[int, float]]) -> Simulated:
        """Run one step of (slab, seconds of computation after it is there)."""
        began, stalled, loads, loaded = self._now, self._stall_s, self._loads, self._loaded_bytes
        self._order.begin_step()
        self._policy.begin_step()
        for slab, compute_s in accesses:
            self._access(slab)
            self._now += compute_s
        return Simulated(
            self._now - began, self._stall_s - stalled, self._loads - loads, self._loaded_bytes - loaded
        )

    def _access(self, slab: int) -> None:
        self._order.access(slab)
        view = View(self.window, self._order.future, {slab}, self._under_way, self._under_way)
        if slab in self.window.held:
            self.window.touch(slab)
        else:
            self._apply(view, self._policy.miss(view, slab))
            self._policy.look_again()
        self._apply(view, self._policy.ahead(view))
        wait = self._arrival.pop(slab, self._now) - self._now
        if wait > 0:
            self._policy.late()
            self._stall_s += wait
            self._now += wait

    def _under_way(self, slab: int) -> bool:
        return self._arrival.get(slab, 0.0) > self._now

    def _apply(self, view: View, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Evict):
                self.window.drop(action.slab)
                self._arrival.pop(action.slab, None)
                continue
            for slab in action.slabs:
                self.window.hold(slab)
                nbytes = self.window.sizes[slab]
                self._link_free_at = max(self._link_free_at, self._now) + nbytes / self._speed
                self._arrival[slab] = self._link_free_at
                self._loads += 1
                self._loaded_bytes += nbytes
            if not self._policy.overlaps and self._link_free_at > self._now:
                self._stall_s += self._link_free_at - self._now
                self._now = self._link_free_at

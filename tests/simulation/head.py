"""The real head, put together as `head.actor` does it, over faulty calls; without threads, HTTP and Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation.faults import FaultyExecutor, FaultyStore, Mortality
from superpipe_cluster.errors import StoreUnavailable
from superpipe_cluster.head.changes import Changes
from superpipe_cluster.head.neighbours import Neighbours
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.reports import Reports
from superpipe_cluster.head.rhythm import Rhythm
from superpipe_cluster.head.rules import Rules
from superpipe_cluster.head.steady_clock import SteadyClock, SteadyStore
from superpipe_cluster.head.tick import Tick

if TYPE_CHECKING:
    from simulation.world import World

#: What calls may fail with, and the head's loop outlives. Anything else is a bug, and ends the simulation.
TROUBLE = (StoreUnavailable, ConnectionError, TimeoutError)


class Head:
    """One head's life: everything in it is forgotten when it dies, and nothing else is.

    Attributes:
        life: ends when it is killed.
        store: what its parts write to.
        tick: the loop's body.
        reports: takes what workers say.
        changes: takes what owners say.
    """

    def __init__(self, world: World) -> None:
        self.life = Mortality(
            world.rng, world.climate, world.meanwhile, lambda fault: world.note(f"  fault: {fault}")
        )
        self.life.is_safe = world.is_safe
        below = FaultyStore(world.store, self.life, world.climate.store, world.witness.wrote)
        monotonic = world.loop.monotonic
        clock = SteadyClock(below.now, monotonic, world.home.clock, "simulated")
        self.store = SteadyStore(below, clock)  # type: ignore[arg-type]
        self.executor = FaultyExecutor(world.cluster, self.life, world.climate.executor)
        presence = Presence(monotonic)
        self.reports = Reports(self.store, presence, world.wake)
        self.changes = Changes(
            self.store, presence, world.devices, world.host_bytes, Rules(self.store, world.devices)
        )
        self.tick = Tick(
            self.store,
            self.executor,  # type: ignore[arg-type]
            presence,
            world.home,
            world.devices,
            lambda: world.host_bytes,
            foreign=Neighbours(world.home, monotonic),
            wall=world.loop.wall,
            policy=world.policy,
        )
        self._rhythm = Rhythm(monotonic)
        self._monotonic = monotonic

    def go_round(self, *, woken: bool) -> float:
        """What `head.actor` does each time it wakes up. Returns the seconds until it does so by itself."""
        began_s = self._monotonic()
        try:
            if woken or self._rhythm.is_due or self.tick.watch():
                holders = self.tick.run()
                self._rhythm.went_round(began_s, has_workers=bool(holders))
        except TROUBLE:
            self._rhythm.failed()
            raise
        return self._rhythm.wait_s()

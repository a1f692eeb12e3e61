"""What befalls a simulated cluster from outside: people, admins, foreign processes, clocks, and deaths.

Owns when each of these comes next. All of them end when nothing is to go wrong any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.world import World

#: Seconds between two submissions, at pace 1, on the average.
ARRIVAL_S = 8.0
MOST_JOBS = 40


class Misfortunes:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def begin(self) -> None:
        """Let all of them take their course."""
        climate = self._world.climate
        self._users_arrive()
        if climate.users:
            self._users_think()
        if climate.machine:
            self._machine_acts()
        if climate.workers:
            self._accidents_happen()
        if climate.head:
            self._head_dies()

    def admins_set(self) -> None:
        """Quotas, and a window that closes soon."""
        world, rng = self._world, self._world.rng
        largest = max(device.capacity_bytes for device in world.devices)
        for user in world.users.names:
            if rng.random() < 0.4:
                quota: dict[str, object] = {"weight": rng.choice((0.5, 1.0, 2.0))}
                if rng.random() < 0.5:
                    quota["guaranteed_bytes"] = int(largest * rng.uniform(0.1, 0.4))
                if rng.random() < 0.6:
                    quota["limit_bytes"] = world.witness.limits[user] = int(largest * rng.uniform(0.4, 0.9))
                world.store.put_setting(f"quota:{user}", quota)
        end = f"08:{rng.randint(1, 4):02}"
        window: dict[str, object] = {"days": "daily", "start": "08:00", "end": end, "timezone": "UTC"}
        if rng.random() < 0.3:
            window["interactive_floor_bytes"] = int(largest * 0.3)
        world.store.put_setting("window:morning", window)

    def _users_arrive(self) -> None:
        world = self._world
        world.ask("submit", world.submit)
        if len(world.users.ids) < MOST_JOBS:
            self._again(1 / ARRIVAL_S / world.pace**0.5, "a user comes", self._users_arrive)

    def _users_think(self) -> None:
        world = self._world
        world.ask("user", lambda head: world.users.change_mind(head.store, head.changes))
        self._again(world.climate.users, "a user thinks again", self._users_think)

    def _machine_acts(self) -> None:
        world = self._world
        if not world.is_inside:  # a round has read the devices, and goes by what it has read
            if world.rng.random() < 0.3:
                shift_s = world.rng.choice((-3600.0, 3600.0))
                world.loop.wall_shift_s += shift_s
                world.note(f"  the clock is set by {shift_s:g} s")
            else:
                device, share = world.rng.choice(world.devices), world.rng.choice((0.0, 0.1, 0.4, 0.9))
                world.set_foreign(device, int(share * device.capacity_bytes))
        self._again(world.climate.machine, "the machine", self._machine_acts)

    def _accidents_happen(self) -> None:
        world = self._world
        world.note(f"  accident: {world.cluster.accident()}")
        self._again(world.climate.workers * 0.5 / world.pace**0.5, "an accident", self._accidents_happen)

    def _head_dies(self) -> None:
        world = self._world
        if world.head is not None and world.loop.now_s > 0:
            world.died(world.head)
        self._again(world.climate.head * 2 / world.pace**0.5, "the head is killed", self._head_dies)

    def _again(self, per_s: float, what: str, action: Callable[[], None]) -> None:
        world = self._world

        def happen() -> None:
            if not world.is_safe:
                action()

        world.loop.after(world.rng.expovariate(per_s), what, happen)

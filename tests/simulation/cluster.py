"""The simulated cluster below the head: an `Executor` whose workers are objects, and the devices whose bytes they hold.

Owns who lives, what lingers, and the accidents that come from outside a program: actors that are killed or stopped, a
machine that loses all of them, dead ones that wake up once more.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simulation.climate import Climate
from simulation.loop import Loop
from simulation.programs import Checkpoint, Folder
from simulation.workers import REPORT_EVERY_S, Actor, Child
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.interface import Orders, Report, Worker
from superpipe_cluster.machine import Device


@dataclass(slots=True)
class Remains:
    """What is left of a child whose process group is not quite dead: bytes, and no more steps."""

    worker: Worker
    device: str
    held_bytes: int
    kills_needed: int


class Cluster:
    """Implements `execution.interface.Executor`.

    Args:
        loop: of the simulation.
        rng: of the seed.
        climate: how likely accidents are.
        pace: stretches the seconds between reports, so that a thousand events reach further.
        folder_of: the folder of a job, by its path.
        tell: brings a report to whatever head there is.
        stray: brings the words of a dead epoch to the head, whose answer nobody hears.
    """

    def __init__(
        self,
        loop: Loop,
        rng: random.Random,
        climate: Climate,
        pace: float,
        folder_of: Callable[[Path], Folder],
        tell: Callable[[Worker, Report], Orders],
        stray: Callable[[Worker, Report], None],
    ) -> None:
        self._loop = loop
        self._rng = rng
        self._climate = climate
        self._pace = pace
        self._folder_of = folder_of
        self._tell = tell
        self._stray = stray
        self.actors: dict[Worker, Actor] = {}
        self.remains: dict[Path, Remains] = {}
        self.is_safe = False
        #: For planted bugs: workers of one name may be there twice.
        self.starts_twice = False
        self.doubles: list[Actor] = []
        #: For planted bugs: nothing is waited for.
        self.clears_at_once = False

    # ---- Executor --------------------------------------------------------------------------------------

    def start(self, worker: Worker, folder: Path) -> None:
        """See `Executor.start`."""
        if worker in self.actors:
            if not self.starts_twice:
                return
            self.doubles.append(self.actors.pop(worker))
        attempt = Attempt.read(self._folder_of(folder).files.attempt)
        place = self._folder_of(folder)
        child = Child(self._loop, place, worker, attempt.device.id, attempt.budget_bytes, self, self._pace)
        self.actors[worker] = Actor(self._loop, child, self._tell, REPORT_EVERY_S * self._pace)

    def alive(self) -> frozenset[Worker]:
        """See `Executor.alive`."""
        return frozenset(self.actors)

    def kill(self, worker: Worker) -> None:
        """See `Executor.kill`."""
        if worker in self.actors:
            self._lose(worker)

    def hurry(self, worker: Worker) -> None:
        """See `Executor.hurry`."""
        if worker in self.actors:
            self.actors[worker].hurry()

    def clear(self, folder: Path, device: Device | None) -> bool:
        """See `Executor.clear`."""
        left = self.remains.get(folder)
        if left is None:
            return True
        left.kills_needed -= 1
        if left.kills_needed < 0:
            del self.remains[folder]
            return True
        return self.clears_at_once

    # ---- what is really there --------------------------------------------------------------------------

    def holders(self) -> list[tuple[Worker, str, int]]:
        """Worker, device and bytes of everything that holds some."""
        children = [actor.child for actor in [*self.actors.values(), *self.doubles]]
        living = [(child.worker, child.device, child.held_bytes) for child in children if child.held_bytes]
        return living + [(left.worker, left.device, left.held_bytes) for left in self.remains.values()]

    # ---- accidents -------------------------------------------------------------------------------------

    def at_boundary(self, child: Child) -> str | None:
        """See `workers.Fate`."""
        chance = 1.0 if self.is_safe else self._rng.random()
        share = self._climate.workers
        if chance < share * 0.4:
            return "dies"
        if chance < share * 0.6:
            self._loop.after(self._rng.uniform(1, 120), "a hung program goes on", child.wake)
            return "hangs"
        if chance < share * 0.8:
            self._loop.after(self._rng.uniform(1, 120), "SIGCONT", child.wake)
            return "freezes"
        return None

    def accident(self) -> str | None:
        """Something befalls one actor, or all; what, in a few words."""
        workers = sorted(self.actors)
        if not workers:
            return None
        chance = self._rng.random()
        worker = self._rng.choice(workers)
        if chance < 0.5:
            self._lose(worker)
            return f"{worker.name} is killed"
        if chance < 0.9:
            actor = self.actors[worker]
            actor.freeze()
            self._loop.after(self._rng.uniform(1, 150), f"SIGCONT {worker.name}", actor.wake)
            return f"{worker.name} is stopped"
        for each in workers:
            self._lose(each)
        return "all workers are lost"

    def wake_all(self) -> None:
        """Nothing stands still any more."""
        for actor in list(self.actors.values()):
            actor.wake()
            actor.child.wake()

    def _lose(self, worker: Worker) -> None:
        """The actor is gone; something of its child may linger, or wake up."""
        actor = self.actors.pop(worker)
        child = actor.child
        was_there = child.held_bytes > 0 and not child.is_gone
        held_bytes, step, digest = child.held_bytes, child.step, child.digest
        actor.kill()
        if not was_there or self.is_safe or self._rng.random() >= self._climate.lingering:
            return
        kills = self._rng.randint(1, 3)
        self.remains[child.folder.files.root] = Remains(worker, child.device, held_bytes, kills)
        if self._rng.random() < 0.5:
            ghost = Checkpoint(step, digest)
            in_s = self._rng.uniform(1, 90)
            self._loop.after(
                in_s, f"{worker.name} wakes up in an old epoch", lambda: self._haunt(child, ghost)
            )

    def _haunt(self, child: Child, checkpoint: Checkpoint) -> None:
        """The last writes of a process that everybody took for dead."""
        child.folder.commit(child.worker.epoch, checkpoint)
        progress = {"running": True, "step": checkpoint.step, **child.in_force}
        self._stray(child.worker, {"progress": progress, "end": None})

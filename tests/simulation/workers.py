"""Simulated workers: an actor that reports, and a child that computes, as `execution/` has them.

Owns the worker's side of the protocol: news until delivered, orders applied at step boundaries, acknowledgements, grace
periods, fenced checkpoints. Whether one of them meets with an accident is asked of `Fate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from simulation.programs import Checkpoint, Folder
from superpipe_cluster.execution.interface import Orders, Report, Worker

if TYPE_CHECKING:
    from simulation.loop import Loop

REPORT_EVERY_S = 0.5
FIRST_EVERY_S = 0.1
#: From the word to the end: `supervisor.Grace`.
STOP_GRACE_S = 10.0
TERM_GRACE_S = 5.0
SLEEP_GRACE_S = 60.0
LOCK_PATIENCE_S = 30.0
SAVE_S = 0.3


class Fate(Protocol):
    """What may happen to a child at a step boundary."""

    def at_boundary(self, child: Child) -> str | None:
        """None, or one of dies, hangs, freezes, fails."""
        ...


class Child:
    """One child process.

    Attributes:
        held_bytes: device bytes that it holds now.
        is_gone: its process is no more; bytes may linger.
        applied_revision: number of the newest budget it has put in force, or refused.
        is_writer: it has the folder's lock.
    """

    def __init__(
        self,
        loop: Loop,
        folder: Folder,
        worker: Worker,
        device: str,
        budget_bytes: int,
        fate: Fate,
        pace: float,
    ) -> None:
        self.folder = folder
        self.worker = worker
        self.device = device
        self.budget_bytes = budget_bytes
        self.held_bytes = 0
        self.step = 0
        self.digest = 0
        self.is_gone = False
        self.is_frozen = False
        self.is_hung = False
        self.is_paused = False
        self.news: dict[str, Any] = {}
        #: What it has acknowledged: told in every report.
        self.in_force: dict[str, Any] = {}
        self.on_news: Callable[[], None] = lambda: None
        self.end: dict[str, Any] | None = None
        self._loop = loop
        self._program = folder.program
        self._fate = fate
        self._pace = pace
        self._pause = False
        self._asked_bytes, self._asked_revision = 0, 0
        self.applied_revision = 0
        self._stop: str | None = None
        self._postponed: list[Callable[[], None]] = []
        self._waited_s = 0.0
        self._slept = 0
        self.actor_sleeps = False
        self._later(self._program.boots_s, "boots", self._lock)

    @property
    def is_writer(self) -> bool:
        return self.folder.holder is self

    @property
    def told_to_stop(self) -> bool:
        return self._stop is not None

    # ---- from outside ----------------------------------------------------------------------------------

    def hear(self, orders: Orders) -> None:
        """What the head wants, as the actor passes it on."""
        self._pause = orders.pause
        if orders.budget_bytes is not None and orders.budget_revision > self._asked_revision:
            self._asked_bytes, self._asked_revision = orders.budget_bytes, orders.budget_revision
        if self.is_paused and not self.is_frozen:
            self._obey()

    def stop(self, why: str) -> None:
        """Asked to end; killed when the grace is over."""
        if self._stop is None:
            self._stop = why
            self._later(STOP_GRACE_S + TERM_GRACE_S, "grace is over", self.kill, even_frozen=True)
        if self.is_paused and not self.is_frozen:
            self._obey()

    def kill(self) -> None:
        """SIGKILL: no more steps, and, as far as this process goes, no more bytes."""
        if not self.is_gone:
            reason = self._stop or "worker_lost"
            self._leave({"reason": reason, "message": "killed", "exit_code": None})

    def freeze(self) -> None:
        """SIGSTOP."""
        self.is_frozen = True
        self._slept += 1
        slept = self._slept
        self._later(SLEEP_GRACE_S, "has slept", lambda: self._oversleep(slept), even_frozen=True)

    def wake(self) -> None:
        """SIGCONT, and the end of whatever it hung in."""
        self.is_frozen = False
        postponed, self._postponed = self._postponed, []
        for action in postponed:
            if not self.is_gone:
                action()
        if self.is_hung and not self.is_gone:
            self.is_hung = False
            self._obey()

    def _oversleep(self, slept: int) -> None:
        """Its actor, when that is awake, kills it after a while."""
        if self.is_frozen and self._slept == slept and not self.actor_sleeps:
            self.kill()

    # ---- its life --------------------------------------------------------------------------------------

    def _lock(self) -> None:
        if self.folder.holder is not None:
            self._waited_s += 0.5
            if self._waited_s > LOCK_PATIENCE_S:
                self._leave({"reason": "worker_lost", "message": "the folder is locked", "exit_code": 1})
            else:
                self._later(0.5, "waits for the lock", self._lock)
            return
        self.folder.holder = self
        found = self.folder.begin(self.worker.epoch)
        self.step, self.digest = found.step, found.digest
        if self.budget_bytes < self._program.floor_bytes:
            self._leave({"reason": "never_fits", "message": "too few bytes", "exit_code": 1})
            return
        self.held_bytes = self.budget_bytes
        self.news = {"running": True, "held_bytes": self.held_bytes, "steps": self._program.steps}
        self._go_on()

    def _go_on(self) -> None:
        if self.step >= self._program.steps:
            self.folder.result = self.digest
            self._leave({"reason": "ok", "message": None, "exit_code": 0})
        else:
            self._next_step()

    def _next_step(self) -> None:
        self._later(self._program.step_s(self.budget_bytes), "steps", self._boundary)

    def _boundary(self) -> None:
        self.step += 1
        self.digest = self._program.fold(self.digest, self.step)
        self.news.update(
            step=self.step,
            step_s=self._program.step_s(self.budget_bytes),
            metrics={"loss": 1.0 / self.step},
            k=2,
            units=8,
        )
        if self.step == self._program.raises_at:
            self._leave({"reason": "error", "message": "it raised", "exit_code": 1})
            return
        match self._fate.at_boundary(self):
            case "dies":
                self.kill()
            case "hangs":
                self.is_hung = True
            case "freezes":
                self.freeze()
                self._postponed.append(self._obey)
            case _:
                if self.step % self._program.save_every == 0:
                    self._save(self._obey)
                else:
                    self._obey()

    def _save(self, then: Callable[[], None]) -> None:
        """Write the parts, and a moment later the pointer: whatever happens in between leaves the old one."""
        checkpoint = Checkpoint(self.step, self.digest)

        def commit() -> None:
            if not self.folder.commit(self.worker.epoch, checkpoint):
                self._leave({"reason": "worker_lost", "message": "stale", "exit_code": 1})
                return
            self.news["checkpoint_step"] = checkpoint.step
            then()

        self._later(SAVE_S, "commits", commit)

    def _obey(self) -> None:
        """At a step boundary: the budget, then a stop, then a pause."""
        self._resize()
        if self._stop is not None and self._program.heeds:
            why = self._stop
            self.is_paused = False
            self._save(lambda: self._leave({"reason": why, "message": None, "exit_code": 0}))
            return
        if self._pause != self.is_paused:
            self.is_paused = self._pause
            self._acknowledge(paused=self.is_paused)
            if not self.is_paused:
                self._go_on()
        elif not self.is_paused:
            self._go_on()

    def _resize(self) -> None:
        asked, revision = self._asked_bytes, self._asked_revision
        if revision <= self.applied_revision:
            return
        self.applied_revision = revision
        floor_bytes = self._program.floor_bytes
        refused = None
        if not self._program.streams:
            refused, floor_bytes = "its program streams no model", self.budget_bytes
        elif asked < floor_bytes:
            refused = "too few bytes"
        else:
            self.budget_bytes = self.held_bytes = asked
        self.news.update(floor_bytes=floor_bytes, held_bytes=self.held_bytes)
        self._acknowledge(budget_bytes=self.budget_bytes, budget_revision=revision, budget_refused=refused)

    def _acknowledge(self, **words: Any) -> None:
        self.in_force.update(words)
        self.on_news()

    def _leave(self, end: dict[str, Any]) -> None:
        self.is_gone = True
        self.held_bytes = 0
        self.end = end
        if self.folder.holder is self:
            self.folder.holder = None

    def _later(
        self, seconds: float, what: str, action: Callable[[], None], *, even_frozen: bool = False
    ) -> None:
        def happen() -> None:
            if self.is_gone:
                return
            if self.is_frozen and not even_frozen:
                self._postponed.append(action)
            else:
                action()

        self._loop.after(seconds, f"child {self.worker.name} {what}", happen)


class Actor:
    """One worker actor: carries its child's news to the head until the head has heard the end.

    Args:
        loop: of the simulation.
        child: that it has started.
        tell: brings a report to the head; raises when it cannot be known to have got there.
        every_s: seconds between reports.
    """

    def __init__(
        self, loop: Loop, child: Child, tell: Callable[[Worker, Report], Orders], every_s: float
    ) -> None:
        self.child = child
        self.is_frozen = False
        self.is_gone = False
        self._loop = loop
        self._tell = tell
        self._every_s = every_s
        self._runs = False
        self._done = False
        self._token = 0
        child.on_news = self.hurry
        self._next()

    def hurry(self) -> None:
        """Report at once."""
        if not self.is_gone and not self.is_frozen:
            self._next(0.02)

    def kill(self) -> None:
        """Its process is gone, and its child's with it."""
        self.is_gone = True
        self.child.kill()

    def freeze(self) -> None:
        """SIGSTOP, of it and of its child."""
        self.is_frozen = self.child.actor_sleeps = True
        self.child.freeze()

    def wake(self) -> None:
        """SIGCONT."""
        if self.is_frozen:
            self.is_frozen = self.child.actor_sleeps = False
            self.child.wake()
            if not self.is_gone:
                self._next()

    def _next(self, seconds: float | None = None) -> None:
        """The next report, and only that one: a hurried one takes the place of the one that was to come."""
        if seconds is None:
            seconds = self._every_s if self._runs else min(self._every_s, 5 * FIRST_EVERY_S)
        self._token += 1
        token = self._token
        self._loop.after(seconds, f"actor {self.child.worker.name} reports", lambda: self._report(token))

    def _report(self, token: int) -> None:
        if token != self._token or self.is_gone or self.is_frozen or self._done:
            return
        child = self.child
        news, child.news = child.news, {}
        end = child.end
        try:
            orders = self._tell(child.worker, {"progress": {**news, **child.in_force}, "end": end})
        except Exception:
            child.news = {**news, **child.news}
            self._next()
            return
        self._runs = self._runs or bool(news.get("running"))
        if orders.stale:
            child.kill()
            self._done = True
            return
        if end is not None:
            self._done = True
            return
        if orders.stop is not None:
            child.stop(orders.stop)
            if orders.force:
                child.kill()
        child.hear(orders)
        self._next()

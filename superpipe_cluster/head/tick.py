"""The head's loop, one round: `run` is its table of contents.

Owns the order of the steps and the writing of decisions: lifecycle step, fenced store write, then the effect.
Store, executor and clocks are arguments. Nothing is remembered from round to round but what may be forgotten: each
round works from what the store and the executor say now.

[Note: two rhythms] Looking after workers (`watch`) is cheap, and is done twice a second while there are any. Deciding
looks at everybody who waits, and is done when something has happened, and every few seconds for what changes by time
alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum

from superpipe_cluster.errors import NotFound, StaleWrite
from superpipe_cluster.execution.interface import Executor, Worker
from superpipe_cluster.head.care import Care
from superpipe_cluster.head.happenings import happen
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.launch import Launcher
from superpipe_cluster.head.outlook import Outlook
from superpipe_cluster.head.picture import Camera, Foreign
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.lifecycle.events import (
    DependencyFailed,
    Event,
    PauseAsked,
    Placed,
    ResizeAsked,
    ResumeAsked,
    StopAsked,
)
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.machine import Device
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import (
    Cancel,
    Decision,
    Pause,
    Preempt,
    Resize,
    Resume,
    Start,
    Wait,
)
from superpipe_cluster.scheduling.policy import DEFAULT, Policy
from superpipe_cluster.store.interface import JobStore

_log = logging.getLogger(__name__)


class Drain(StrEnum):
    """How the last jobs leave."""

    SAVE = "save"
    """Every worker saves and stops; its job is back in the queue."""
    FINISH = "finish"
    """Those that run go on to their end; those that stand still save and stop."""


class Tick:
    """The loop's body. Called by one thread.

    Args:
        store: where jobs are.
        executor: where workers are.
        presence: what was heard of them.
        home: where the jobs' folders are.
        devices: of this cluster.
        host_usable_bytes: tells how much RAM all host copies together may take.
        foreign: tells what processes that are not ours hold of a device; None: nothing.
        outlook: told when those who wait are likely to start.
        wall: unix seconds by the wall clock, which windows go by.
        policy: the numbers to decide by.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        presence: Presence,
        home: Home,
        devices: Sequence[Device],
        host_usable_bytes: Callable[[], int],
        *,
        foreign: Foreign | None = None,
        outlook: Outlook | None = None,
        wall: Callable[[], float] = time.time,
        policy: Policy = DEFAULT,
    ) -> None:
        self._store = store
        self._outlook = outlook if outlook is not None else Outlook()
        by_id = {device.id: device for device in devices}
        self._presence = presence
        self._launcher = Launcher(store, executor, presence, home, by_id)
        self._care = Care(store, executor, presence, home, by_id, self._launcher)
        foreign = foreign if foreign is not None else lambda *_: 0
        self._camera = Camera(store, devices, host_usable_bytes, foreign, wall, policy)
        self._drain: Drain | None = None

    def drain(self, how: Drain | None = Drain.SAVE) -> None:
        """From now on start nothing, and let the jobs that hold a device leave it; None: go on as ever."""
        self._drain = how

    def run(self) -> list[JobRecord]:
        """One whole round. Returns the jobs that hold a device after it."""
        self._look_after(self._holders())
        if self._drain is not None:
            self._let_go(self._drain)
        else:
            self._decide()
        holders = self._holders()
        self._care.hurry(holders)
        return holders

    def watch(self) -> bool:
        """Look after workers, and decide nothing; whether something has happened that calls for a whole round."""
        holders = self._holders()
        if self._look_after(holders):
            return True
        self._care.hurry(holders)
        return False

    def _look_after(self, holders: Sequence[JobRecord]) -> bool:
        moved = self._camera.look_around(holders)
        return self._care.look_after(holders) or moved

    def _holders(self) -> list[JobRecord]:
        return [record for record in self._store.list_jobs(active_only=True) if record.state.holds_device]

    def _let_go(self, how: Drain) -> None:
        """Have workers stop for now. Their jobs go back to the queue and lose no attempt."""
        for record in self._holders():
            goes_on = (
                how is Drain.FINISH and record.state is not JobState.PAUSED and record.pause_asked is None
            )
            if record.stop_asked is None and not goes_on:
                self._happen(record, StopAsked(EndReason.PREEMPTED))

    # ---- decisions -------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Take a picture, ask the scheduler, and write down what it says."""
        records = {record.id: record for record in self._store.list_jobs(active_only=True)}
        expected: dict[str, float] = {}
        behind: Wait | None = None
        if records:
            for decision in decide(self._camera.take(tuple(records.values()))):
                self._apply(decision, records[decision.job_id])
                if isinstance(decision, Wait):
                    if decision.expected_start_at is not None:
                        expected[decision.job_id] = decision.expected_start_at
                    if decision.reason is WaitReason.PRIORITY:
                        behind = decision
        self._outlook.replace(expected, behind)

    def _apply(self, decision: Decision, record: JobRecord) -> None:
        match decision:
            case Start(device=device, budget_bytes=budget_bytes):
                self._place(record, device, budget_bytes)
            case Wait(reason=reason, message=message):
                self._wait(record, reason, message)
            case Cancel(because_of=because_of):
                self._happen(record, DependencyFailed(because_of))
            case Resize(budget_bytes=budget_bytes, why=why):
                _log.info("job %s: asked to hold %d bytes: %s", record.id, budget_bytes, why)
                self._happen(record, ResizeAsked(budget_bytes, record.budget_revision + 1, why))
            case Preempt(why=why):
                _log.info("job %s: preempted: %s", record.id, why)
                self._happen(record, StopAsked(EndReason.PREEMPTED))
            case Pause():
                self._happen(record, PauseAsked("window"))
            case Resume():
                self._happen(record, ResumeAsked())

    def _place(self, record: JobRecord, device: str, budget_bytes: int) -> None:
        placed = self._happen(record, Placed(device, budget_bytes))
        if placed is not None:
            _log.info("job %s: attempt %d placed on %s", placed.id, placed.attempt, device)
            self._presence.placed(Worker(placed.id, placed.epoch))
            self._launcher.launch(placed)

    def _wait(self, record: JobRecord, reason: str, message: str) -> None:
        if (record.reason, record.message) != (reason, message):
            with suppress(StaleWrite, NotFound):
                self._store.set_wait(record.id, record.epoch, reason, message)

    def _happen(self, record: JobRecord, event: Event) -> JobRecord | None:
        return happen(self._store, record, event)

"""The head's loop, one round: `run` is its table of contents.

Owns the order of the steps and the writing of decisions: lifecycle step, fenced store write, then the effect.
Store, executor and clocks are arguments. Nothing here is remembered from round to round except in `Presence`,
which may be forgotten: each round works from what the store and the executor say now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from superpipe_cluster.errors import NotFound, StaleWrite
from superpipe_cluster.execution.interface import Executor, Worker
from superpipe_cluster.head.endings import end_attempt
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.launch import write_attempt
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.lifecycle.events import DependencyFailed, Event, Exited, Lost, Placed, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState
from superpipe_cluster.lifecycle.step import InvalidTransition
from superpipe_cluster.machine import Device
from superpipe_cluster.scheduling.decide import Cancel, Start, Wait, decide
from superpipe_cluster.scheduling.snapshot import DeviceView, Snapshot
from superpipe_cluster.store.interface import JobStore
from superpipe_cluster.store.writes import advance

_log = logging.getLogger(__name__)

#: A worker that lives and says nothing for this long is taken for stuck, and killed. It reports twice a
#: second.
SILENCE_LIMIT_S = 60.0


class Tick:
    """The loop's body. Called by one thread.

    Args:
        store: where jobs are.
        executor: where workers are.
        presence: what was heard of them.
        home: where the jobs' folders are.
        devices: of this cluster.
        host_usable_bytes: tells how much RAM all host copies together may take.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        presence: Presence,
        home: Home,
        devices: Sequence[Device],
        host_usable_bytes: Callable[[], int],
    ) -> None:
        self._store = store
        self._executor = executor
        self._presence = presence
        self._home = home
        self._devices = {device.id: device for device in devices}
        self._host_usable_bytes = host_usable_bytes
        self._draining = False

    def drain(self) -> None:
        """From now on start nothing, and have every worker save, stop and leave its job in the queue."""
        self._draining = True

    def run(self) -> list[JobRecord]:
        """One round. Returns the jobs that hold a device after it."""
        active = self._store.list_jobs(active_only=True)
        alive = self._executor.alive()
        self._adopt(active, alive)
        self._reap(active, alive)
        self._silence(active, alive)
        self._rescue(active, alive)
        self._time_out(active)
        if self._draining:
            self._preempt_all(active)
        else:
            self._decide()
        return [record for record in self._store.list_jobs(active_only=True) if record.state.holds_device]

    # ---- workers that are there, and should or should not be -------------------------------------------

    def _adopt(self, active: Sequence[JobRecord], alive: frozenset[Worker]) -> None:
        """Get to know the living workers of an earlier head."""
        for worker in _current(active) & alive:
            if self._presence.adopt(worker):
                _log.info("job %s: worker of epoch %d adopted", worker.job_id, worker.epoch)

    def _reap(self, active: Sequence[JobRecord], alive: frozenset[Worker]) -> None:
        """End the workers whose attempt is over: told its end, or replaced by a newer one."""
        current = _current(active)
        for worker in alive - current:
            self._executor.kill(worker)
        self._presence.forget_all_but(current)

    def _silence(self, active: Sequence[JobRecord], alive: frozenset[Worker]) -> None:
        """End workers that live and say nothing; the next round rescues their jobs."""
        for worker in _current(active) & alive:
            if self._presence.silence_s(worker) > SILENCE_LIMIT_S:
                _log.warning("job %s: silent for %.0f s, killed", worker.job_id, SILENCE_LIMIT_S)
                self._executor.kill(worker)

    def _rescue(self, active: Sequence[JobRecord], alive: frozenset[Worker]) -> None:
        """Queue again, under a new epoch, what has lost its worker; its bytes are confirmed free first."""
        for record in active:
            worker = Worker(record.id, record.epoch)
            if not record.state.holds_device or worker in alive:
                continue
            device = self._devices.get(record.device or "")
            if not self._executor.clear(self._home.job(record.id).root, device):
                continue  # something of it still lives; ask again next round
            if record.state is JobState.STARTING and not self._presence.was_launched(worker):
                # Placed by a head that died before it could know of a worker. It never reported, so nobody
                # has seen this attempt; it is begun (again) at no cost.
                self._launch(record)
            else:
                self._ended(record, Lost(EndReason.WORKER_LOST, "its worker process disappeared"))

    # ---- time ------------------------------------------------------------------------------------------

    def _time_out(self, active: Sequence[JobRecord]) -> None:
        """Stop jobs that have run for longer than they may."""
        limited = [record for record in active if record.time_limit_s is not None]
        now = self._store.now() if limited else 0.0
        for record in limited:
            if record.state is not JobState.RUNNING or record.started_at is None:
                continue
            if now - record.started_at > (record.time_limit_s or 0.0):
                self._happen(record, StopAsked(EndReason.TIME_LIMIT))

    def _preempt_all(self, active: Sequence[JobRecord]) -> None:
        """Have every worker stop for now. Its job goes back to the queue and loses no attempt."""
        for record in active:
            if record.state.holds_device and record.stop_asked is None:
                self._happen(record, StopAsked(EndReason.PREEMPTED))

    # ---- decisions -------------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Take a picture, ask the scheduler, and write down what it says."""
        records = {record.id: record for record in self._store.list_jobs(active_only=True)}
        if not any(record.state.is_waiting for record in records.values()):
            return
        named = {job_id for record in records.values() if record.state.is_waiting for job_id in record.after}
        for job_id in named - records.keys():
            with suppress(NotFound):
                records[job_id] = self._store.get(job_id)
        snapshot = Snapshot.of(
            tuple(records.values()),
            (DeviceView(device.id, device.capacity_bytes) for device in self._devices.values()),
            host_usable_bytes=self._host_usable_bytes(),
            now=self._store.now(),
        )
        for decision in decide(snapshot):
            record = records[decision.job_id]
            match decision:
                case Start(device=device, budget_bytes=budget_bytes):
                    self._place(record, device, budget_bytes)
                case Wait(reason=reason, message=message):
                    self._wait(record, reason, message)
                case Cancel(because_of=because_of):
                    self._happen(record, DependencyFailed(because_of))

    def _place(self, record: JobRecord, device: str, budget_bytes: int) -> None:
        placed = self._happen(record, Placed(device, budget_bytes))
        if placed is not None:
            _log.info("job %s: attempt %d placed on %s", placed.id, placed.attempt, device)
            self._launch(placed)

    def _launch(self, record: JobRecord) -> None:
        """Write the attempt and ask for its worker. See [Note: starts are at least once]."""
        try:
            write_attempt(record, self._home, self._devices, self._store)
        except (NotFound, OSError, KeyError) as error:
            message = error.message if isinstance(error, NotFound) else f"{type(error).__name__}: {error}"
            self._ended(record, Exited(EndReason.BAD_INPUT, f"the job cannot be started: {message}"))
            return
        worker = Worker(record.id, record.epoch)
        self._executor.start(worker, self._home.job(record.id).root)
        self._presence.launched(worker)

    def _wait(self, record: JobRecord, reason: str, message: str) -> None:
        if (record.reason, record.message) != (reason, message):
            with suppress(StaleWrite, NotFound):
                self._store.set_wait(record.id, record.epoch, reason, message)

    # ---- writing ---------------------------------------------------------------------------------------

    def _happen(self, record: JobRecord, event: Event) -> JobRecord | None:
        """Let `event` happen; None when somebody was faster, and its effects are to be dropped."""
        try:
            return advance(self._store, record.id, event, epoch=record.epoch)
        except (InvalidTransition, StaleWrite, NotFound):
            return None

    def _ended(self, record: JobRecord, event: Event) -> None:
        with suppress(InvalidTransition, StaleWrite, NotFound):
            after = end_attempt(self._store, record, event)
            _log.info(
                "job %s: epoch %d is over (%s), now %s", record.id, record.epoch, event.kind, after.state
            )


def _current(active: Sequence[JobRecord]) -> frozenset[Worker]:
    """The workers that ought to be there."""
    return frozenset(Worker(record.id, record.epoch) for record in active if record.state.holds_device)

"""Looking after the workers that are there, and after the jobs of those that are not.

Owns adoption, reaping, silence, rescue, and everything that ends because its time is over. Decides nothing about who
comes next: see `tick`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from superpipe_cluster.execution.interface import Executor, Worker
from superpipe_cluster.head.happenings import happen
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.launch import Launcher
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.lifecycle.events import Event, Exited, Lost, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState
from superpipe_cluster.machine import Device
from superpipe_cluster.store.interface import JobStore

_log = logging.getLogger(__name__)

#: A worker that lives and says nothing for this long is taken for stuck, and killed. It reports twice a
#: second.
SILENCE_LIMIT_S = 60.0
#: A worker that was told to stop and is there after this long is killed. It should have done so itself, when the
#: grace period of `execution.supervisor` was over.
STOP_LIMIT_S = 60.0
#: A worker that was asked to hold less and has not done so after this long, or after so many of its steps, is to save
#: and stop: somebody waits for its bytes.
ANSWER_LIMIT_S = 30.0
ANSWER_LIMIT_STEPS = 5
#: The same before its first step is done: it loads its model, and knows no boundary yet.
FIRST_ANSWER_LIMIT_S = 300.0


class Care:
    """Called by one thread.

    Args:
        store: where jobs are.
        executor: where workers are.
        presence: what was heard of them.
        home: where the jobs' folders are.
        devices: of this cluster, by id.
        launcher: starts what was placed and never started.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        presence: Presence,
        home: Home,
        devices: Mapping[str, Device],
        launcher: Launcher,
    ) -> None:
        self._store = store
        self._executor = executor
        self._presence = presence
        self._home = home
        self._devices = devices
        self._launcher = launcher

    def look_after(self, holders: Sequence[JobRecord]) -> bool:
        """One round over the jobs that hold a device; whether something has happened to one of them."""
        alive = self._executor.alive()
        current = frozenset(Worker(record.id, record.epoch) for record in holders)
        self._adopt(current & alive)
        self._reap(alive - current)
        self._presence.forget_all_but(current)
        self._silence(current & alive)
        changed = self._time_out(holders)
        return self._rescue(holders, alive) or changed

    def hurry(self, holders: Sequence[JobRecord]) -> None:
        """Have the workers that there are new orders for come and get them."""
        for record in holders:
            worker = Worker(record.id, record.epoch)
            forced = self._presence.is_forced(worker)
            asked = record.budget_revision if record.budget_asked_bytes is not None else None
            orders = (record.stop_asked, asked, record.pause_asked, forced)
            if self._presence.is_news(worker, orders):
                if orders != (None, None, None, False) or record.state is JobState.PAUSED:
                    self._executor.hurry(worker)
                self._presence.hurried(worker, orders)

    # ---- workers that are there, and should or should not be -------------------------------------------

    def _adopt(self, workers: frozenset[Worker]) -> None:
        """Get to know the living workers of an earlier head."""
        for worker in workers:
            if self._presence.adopt(worker):
                _log.info("job %s: worker of epoch %d adopted", worker.job_id, worker.epoch)

    def _reap(self, workers: frozenset[Worker]) -> None:
        """End the workers whose attempt is over: told its end, or replaced by a newer one."""
        for worker in workers:
            self._executor.kill(worker)

    def _silence(self, workers: frozenset[Worker]) -> None:
        """End workers that live and say nothing; the next round rescues their jobs."""
        for worker in workers:
            if self._presence.silence_s(worker) > SILENCE_LIMIT_S:
                _log.warning("job %s: silent for %.0f s, killed", worker.job_id, SILENCE_LIMIT_S)
                self._executor.kill(worker)

    def _rescue(self, holders: Sequence[JobRecord], alive: frozenset[Worker]) -> bool:
        """Queue again, under a new epoch, what has lost its worker; its bytes are confirmed free first."""
        changed = False
        for record in holders:
            worker = Worker(record.id, record.epoch)
            if worker in alive:
                continue
            device = self._devices.get(record.device or "")
            if not self._executor.clear(self._home.job(record.id).root, device):
                continue  # something of it still lives; ask again next round
            if record.state is not JobState.STARTING or self._presence.was_there(worker):
                self._over(record, Lost(EndReason.WORKER_LOST, "its worker process disappeared"))
            elif self._presence.was_placed(worker):
                self._launcher.launch(record)  # it could not be written down: the disk was full
            else:
                # Whether the head that placed it has started a worker, nobody knows; it may even have reported, and its
                # report be on its way still. So it begins again in an epoch of its own, which costs the job no loss.
                self._over(
                    record, Exited(EndReason.PREEMPTED, "the head died before its worker was heard of")
                )
            changed = True
        return changed

    def _over(self, record: JobRecord, event: Event) -> None:
        after = happen(self._store, record, event)
        if after is not None:
            _log.info(
                "job %s: epoch %d is over (%s), now %s", record.id, record.epoch, event.kind, after.state
            )

    # ---- time ------------------------------------------------------------------------------------------

    def _time_out(self, holders: Sequence[JobRecord]) -> bool:
        """End what has taken longer than it may."""
        now = self._store.now() if holders else 0.0
        changed = False
        for record in holders:
            if record.state is JobState.STOPPING:
                if now - record.changed_at > STOP_LIMIT_S:
                    _log.warning("job %s: told to stop and still there, killed", record.id)
                    self._executor.kill(Worker(record.id, record.epoch))
            elif _is_over_time(record, now):
                changed |= happen(self._store, record, StopAsked(EndReason.TIME_LIMIT)) is not None
            elif owes_bytes(record, now):
                _log.warning("job %s: did not make room when it was asked to, preempted", record.id)
                changed |= happen(self._store, record, StopAsked(EndReason.PREEMPTED)) is not None
        return changed


def owes_bytes(record: JobRecord, now: float) -> bool:
    """Whether the worker was asked to hold less, and has had all the time there is for it."""
    asked_bytes, asked_at = record.budget_asked_bytes, record.budget_asked_at
    if asked_bytes is None or asked_at is None or asked_bytes >= (record.budget_bytes or 0):
        return False  # nobody waits for those who may have more
    patience_s = max(ANSWER_LIMIT_S, ANSWER_LIMIT_STEPS * (record.step_s or 0.0))
    if record.k is None:
        patience_s = max(patience_s, FIRST_ANSWER_LIMIT_S)
    return now - asked_at > patience_s


def _is_over_time(record: JobRecord, now: float) -> bool:
    if record.time_limit_s is None or record.started_at is None:
        return False
    running = record.state in (JobState.RUNNING, JobState.PAUSED)
    return running and now - record.started_at > record.time_limit_s

"""What workers tell the head, and what it answers.

Owns the way from a report to the store: progress is written under the worker's epoch, the first sign of life
is `Started`, the end is `Exited`. A report may come twice (its answer got lost): the second time changes
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pydantic import ValidationError

from superpipe_cluster.errors import NotFound, StaleWrite
from superpipe_cluster.execution.interface import Orders, Report, Worker
from superpipe_cluster.head.endings import end_attempt
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.lifecycle.events import Exited, Started
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import InvalidTransition
from superpipe_cluster.planning import Forecast, keep_correction
from superpipe_cluster.store.interface import JobStore
from superpipe_cluster.store.writes import advance

_log = logging.getLogger(__name__)

_STALE = Orders(stale=True)


def _progress(job_id: str, report: Report) -> Progress:
    try:
        return Progress.model_validate(report["progress"])
    except ValidationError as error:
        # A program may send anything. Refused for good, it must not be sent again and again.
        _log.warning("job %s: progress that cannot be used: %s", job_id, error)
        return Progress(running=True if report["progress"].get("running") else None)


def _learn(record: JobRecord) -> None:
    """Remember how far off the forecast of a training run was, for the next one of the same program."""
    forecast = record.plan.get("forecast") if record.plan is not None else None
    if record.kind != "train" or not forecast or record.step_s is None or record.budget_bytes is None:
        return
    try:
        made = Forecast.from_dict(forecast)
        row = made.at(record.budget_bytes)
        if row is not None:
            keep_correction(made.fingerprint, row.step_s, record.step_s, corrected=made.corrected)
    except (KeyError, TypeError, OSError) as error:  # another version's forecast, a full disk
        _log.warning("job %s: its measured seconds are not kept: %s", record.id, error)


class Reports:
    """Takes reports, from several threads.

    Args:
        store: where jobs are.
        presence: learns that the worker lives.
        wake: called when an end has freed bytes, so that the tick does not wait for its next round.
    """

    def __init__(self, store: JobStore, presence: Presence, wake: Callable[[], None]) -> None:
        self._store = store
        self._presence = presence
        self._wake = wake

    def take(self, job_id: str, epoch: int, report: Report) -> Orders:
        """Write one report down and answer what its worker is to do.

        Raises:
            StoreUnavailable: nothing is written; the worker keeps its news and tells them again.
        """
        worker = Worker(job_id, epoch)
        try:
            record = self._store.report(job_id, epoch, _progress(job_id, report))
        except (StaleWrite, NotFound):
            return _STALE
        self._presence.heard(worker)
        if report["progress"].get("running") and record.state is JobState.STARTING:
            record = self._started(record)
        if report["end"] is not None:
            self._ended(record, report["end"])
            return Orders()
        return Orders(stop=record.stop_asked, force=self._presence.is_forced(worker))

    def _started(self, record: JobRecord) -> JobRecord:
        try:
            return advance(self._store, record.id, Started(), epoch=record.epoch)
        except (InvalidTransition, StaleWrite):  # asked to stop in this very moment
            return self._store.get(record.id)

    def _ended(self, record: JobRecord, end: dict[str, object]) -> None:
        message, exit_code = end.get("message"), end.get("exit_code")
        event = Exited(
            reason=str(end.get("reason")),
            message=None if message is None else str(message),
            exit_code=exit_code if isinstance(exit_code, int) else None,
        )
        try:
            after = end_attempt(self._store, record, event)
            _learn(after)
            _log.info(
                "job %s: attempt %d ended: %s, now %s", record.id, record.attempt, event.reason, after.state
            )
        except (InvalidTransition, StaleWrite):
            _log.info("job %s: an end of epoch %d came too late", record.id, record.epoch)
        self._wake()

"""What workers tell the head, and what it answers.

Owns the way from a report to the store: progress is written under the worker's epoch, the first sign of life
is `Started`, an acknowledged budget is `Resized`, the bytes it has use for are `Wanted`, the end is `Exited`. A
report may come twice (its answer got lost), and what is in force comes in every report: the second time changes
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pydantic import ValidationError

from superpipe_cluster.errors import NotFound, StaleWrite
from superpipe_cluster.execution.interface import Orders, Report, Worker
from superpipe_cluster.head.happenings import happen
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.lifecycle.events import (
    Event,
    Exited,
    Paused,
    Resized,
    Resumed,
    Started,
    StopAsked,
    Wanted,
)
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.states import EndReason, JobState
from superpipe_cluster.planning import Forecast, keep_correction
from superpipe_cluster.store.interface import JobStore

_log = logging.getLogger(__name__)

_STALE = Orders(stale=True)

#: Steps at one budget before its measured seconds say something about it.
_LEARNED_STEPS = 20


class Reports:
    """Takes reports, from several threads.

    Args:
        store: where jobs are.
        presence: learns that the worker lives.
        wake: called when bytes may have become free, or of use, so that the tick does not wait for its next round.
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
        progress = _progress(job_id, report)
        try:
            record = self._store.report(job_id, epoch, progress)
        except (StaleWrite, NotFound):
            return _STALE
        self._presence.heard(worker)
        if progress.running and record.state is JobState.STARTING:
            record = self._happen(record, Started())
        record = self._acknowledged(record, progress)
        if report["end"] is not None:
            self._ended(record, report["end"])
            return Orders()
        return Orders(
            stop=record.stop_asked,
            force=self._presence.is_forced(worker),
            budget_bytes=record.budget_asked_bytes,
            budget_revision=record.budget_revision,
            pause=record.pause_asked is not None,
        )

    # ---- acknowledgements ------------------------------------------------------------------------------

    def _acknowledged(self, record: JobRecord, progress: Progress) -> JobRecord:
        """The record after what the worker says is in force. See [Note: two phases]."""
        event = _resized(record, progress)
        if event is not None:
            record = self._happen(record, event)
            self._wake()
        if _wants_else(record, progress):
            record = self._happen(record, Wanted(progress.wants_bytes))
            self._wake()
        if progress.paused is True and record.state is JobState.RUNNING:
            return self._happen(record, Paused())
        if progress.paused is False and record.state is JobState.PAUSED:
            return self._happen(record, Resumed())
        return record

    def _happen(self, record: JobRecord, event: Event) -> JobRecord:
        """The record after `event`, or, if something else has happened in this very moment, after that."""
        return happen(self._store, record, event) or self._store.get(record.id)

    # ---- the end ---------------------------------------------------------------------------------------

    def _ended(self, record: JobRecord, end: dict[str, object]) -> None:
        message, exit_code = end.get("message"), end.get("exit_code")
        event = Exited(
            reason=str(end.get("reason")),
            message=None if message is None else str(message),
            exit_code=exit_code if isinstance(exit_code, int) else None,
        )
        after = happen(self._store, record, event)
        if after is None:
            _log.info("job %s: an end of epoch %d came too late", record.id, record.epoch)
        else:
            _learn(after)
            _log.info(
                "job %s: attempt %d ended: %s, now %s", record.id, record.attempt, event.reason, after.state
            )
        self._wake()


def _progress(job_id: str, report: Report) -> Progress:
    try:
        return Progress.model_validate(report["progress"])
    except ValidationError as error:
        # A program may send anything. Refused for good, it must not be sent again and again.
        _log.warning("job %s: progress that cannot be used: %s", job_id, error)
        return Progress(running=True if report["progress"].get("running") else None)


def _resized(record: JobRecord, progress: Progress) -> Event | None:
    """What it means that the worker says which budget is in force; None when it is known."""
    budget_bytes, revision = progress.budget_bytes, progress.budget_revision
    if budget_bytes is None or revision is None or not record.state.holds_device:
        return None
    if revision > record.budget_revision:
        # The store has lost its last second (a crash of Redis), and with it that this budget was asked for. What the
        # worker holds is in no ledger, so it has to go.
        _log.warning("job %s: holds a budget that nobody knows of (%d), preempted", record.id, revision)
        return StopAsked(EndReason.PREEMPTED) if record.stop_asked is None else None
    if record.budget_asked_bytes is None:
        return None
    if revision < record.budget_revision and budget_bytes == record.budget_bytes:
        return None
    if not 0 < budget_bytes <= record.promised_bytes:
        _log.warning("job %s: says it holds %d bytes, which it never may", record.id, budget_bytes)
        return None
    return Resized(budget_bytes, revision, progress.budget_refused)


def _wants_else(record: JobRecord, progress: Progress) -> bool:
    """Whether the worker says that it has use for more or fewer bytes than is known."""
    is_said = "wants_bytes" in progress.model_fields_set and progress.wants_bytes != record.wants_bytes
    return is_said and record.state in (JobState.RUNNING, JobState.PAUSED)


def _learn(record: JobRecord) -> None:
    """Remember how far off the forecast of a training run was, for the next one of the same program."""
    forecast = record.plan.get("forecast") if record.plan is not None else None
    if record.kind != "train" or not forecast or record.step_s is None or record.budget_bytes is None:
        return
    since = record.budget_since or record.changed_at
    if since != record.placed_at and record.changed_at - since < _LEARNED_STEPS * record.step_s:
        return  # the seconds may still be those of another budget
    try:
        made = Forecast.from_dict(forecast)
        row = made.at(record.budget_bytes)
        if row is not None:
            keep_correction(made.fingerprint, row.step_s, record.step_s, corrected=made.corrected)
    except (KeyError, TypeError, OSError) as error:  # another version's forecast, a full disk
        _log.warning("job %s: its measured seconds are not kept: %s", record.id, error)

"""Writes that are read, computed, written, and begun again if somebody wrote in between.

Owns the rules for who may write what (`report`, `set_wait`) and the loop around them, the same for every
store; and `advance`, the same loop around a transition, for the head. The atomic compare-and-set itself is
each store's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from superpipe_cluster.errors import StaleWrite
from superpipe_cluster.lifecycle.events import Event
from superpipe_cluster.lifecycle.record import JobRecord, Progress, with_progress
from superpipe_cluster.lifecycle.states import REPORTING
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.store.interface import JobStore

#: Somebody being faster this often in a row is no coincidence.
TRIES = 50


class Amendable(Protocol):
    """What a store needs for the rules here: reading, and one compare-and-set."""

    def get(self, job_id: str) -> JobRecord:
        """The record of a job, or `NotFound`."""
        ...

    def amend(self, before: JobRecord, after: JobRecord) -> JobRecord:
        """Write `after` in the place of exactly `before`; `StaleWrite` if that is not there. No event."""
        ...


def report(store: Amendable, job_id: str, epoch: int, progress: Progress) -> JobRecord:
    """`JobStore.report`, over a store's compare-and-set."""

    def write(record: JobRecord) -> JobRecord:
        if record.state not in REPORTING:
            raise _Refused(f"job {job_id} is {record.state} and has no worker to report for it")
        after = with_progress(record, progress)
        return record if after == record else store.amend(record, after)

    return _until_first(store.get, job_id, epoch, write)


def set_wait(store: Amendable, job_id: str, epoch: int, reason: str | None, message: str | None) -> JobRecord:
    """`JobStore.set_wait`, over a store's compare-and-set."""

    def write(record: JobRecord) -> JobRecord:
        if not record.state.is_waiting:
            raise _Refused(f"job {job_id} is {record.state} and waits for nothing")
        if (record.reason, record.message) == (reason, message):
            return record
        return store.amend(record, record.model_copy(update={"reason": reason, "message": message}))

    return _until_first(store.get, job_id, epoch, write)


def advance(store: JobStore, job_id: str, event: Event, *, epoch: int | None = None) -> JobRecord:
    """Let `event` happen to a job, now, as it stands in the store; reports in between do not get in the way.

    Args:
        store: where the job is.
        job_id: which one.
        event: what happens to it.
        epoch: the attempt that the event is about; None for an event about the job whatever it does.

    Raises:
        StaleWrite: `epoch` is not the job's epoch (any more).
        InvalidTransition: the event cannot happen to the job where it is.
        NotFound: no such job.
    """

    def write(record: JobRecord) -> JobRecord:
        return store.transition(record, step(record, event, store.now()), event)

    return _until_first(store.get, job_id, epoch, write)


class _Refused(StaleWrite):
    """A write that no second try makes right."""


def _until_first(
    read: Callable[[str], JobRecord], job_id: str, epoch: int | None, write: Callable[[JobRecord], JobRecord]
) -> JobRecord:
    """Read and write until nobody wrote in between, for as long as the job is in the same epoch."""
    for _ in range(TRIES):
        record = read(job_id)
        if epoch is not None and record.epoch != epoch:
            raise StaleWrite(f"job {job_id} is in epoch {record.epoch}, a write of epoch {epoch} was refused")
        try:
            return write(record)
        except _Refused as refusal:
            raise StaleWrite(refusal.message) from None
        except StaleWrite:
            continue
    raise StaleWrite(f"job {job_id} was written {TRIES} times by others while one write tried to get through")

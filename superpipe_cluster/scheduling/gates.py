"""What keeps a job from standing in line at all: its owner, other jobs, a date, a window.

Owns those four; a job that does not get through keeps nothing for itself and holds nobody up.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.scheduling.decisions import Cancel, Wait
from superpipe_cluster.scheduling.snapshot import Snapshot, waits_for
from superpipe_cluster.scheduling.windows import Hours


class Crowd(NamedTuple):
    """The jobs of a snapshot, by what there is to decide about them."""

    #: Those that hold a device, in a state that nobody knows too, in the order of their numbers.
    holding: list[JobRecord]
    #: The places in the queue's table of those that may stand in line.
    eligible: NDArray[np.int64]
    #: What keeps the others that wait.
    stopped: list[Wait | Cancel]


def sort_out(snapshot: Snapshot, hours: Hours) -> Crowd:
    """Look at each job once.

    Args:
        snapshot: the moment.
        hours: its windows.
    """
    holding: list[JobRecord] = []
    stopped: list[Wait | Cancel] = []
    for job in snapshot.others:
        if job.state is JobState.HELD:
            stopped.append(Wait(job.id, WaitReason.HELD, "held by its owner"))
        elif not job.state.is_terminal:
            holding.append(job)
    holding.sort(key=lambda job: (len(job.id), job.id))
    gates = _Gates(snapshot, hours)
    may_stand = np.ones(len(snapshot.queued), np.bool_)
    for place in np.flatnonzero(snapshot.queued.column("is_gated")).tolist():
        stop = gates.stop(snapshot.queued.jobs[place])
        if stop is not None:
            may_stand[place] = False
            stopped.append(stop)
    return Crowd(holding, np.flatnonzero(may_stand), stopped)


class _Gates:
    def __init__(self, snapshot: Snapshot, hours: Hours) -> None:
        self._now = snapshot.now
        self._hours = hours
        self._snapshot = snapshot
        self._known: dict[str, JobRecord] | None = None

    def stop(self, job: JobRecord) -> Wait | Cancel | None:
        """What keeps the job; None when nothing does."""
        if job.after or job.after_any or job.after_fail:
            waits = self._others(job)
            if waits is not None:
                return waits
        if job.begin_at is not None and job.begin_at > self._now:
            begin = datetime.fromtimestamp(job.begin_at, UTC)
            message = f"is not to start before {begin:%Y-%m-%d %H:%M} UTC"
            return Wait(job.id, WaitReason.BEGIN_TIME, message, job.begin_at)
        if job.window is not None and not self._hours.is_open(job.window):
            return self._closed(job, job.window)
        return None

    def _others(self, job: JobRecord) -> Wait | Cancel | None:
        if self._known is None:
            queued = self._snapshot.queued
            self._known = dict(zip(queued.ids, queued.jobs, strict=True))
            self._known.update((one.id, one) for one in self._snapshot.others)
        succeed, fail = frozenset(job.after), frozenset(job.after_fail)
        pending: list[str] = []
        for job_id in dict.fromkeys(waits_for(job)):
            other = self._known.get(job_id)
            if other is None or not other.state.is_terminal:
                pending.append(f"{job_id} ({'unknown' if other is None else other.state})")
            elif job_id in (fail if other.state is JobState.SUCCEEDED else succeed):
                return Cancel(job.id, EndReason.DEPENDENCY_FAILED, job_id)
        if pending:
            return Wait(job.id, WaitReason.DEPENDENCY, f"waits for job {', '.join(pending)}")
        return None

    def _closed(self, job: JobRecord, window: str) -> Wait:
        opening = self._hours.opening(window)
        if opening is None:
            return Wait(job.id, WaitReason.WINDOW, f"there is no window {window!r} any more")
        in_s, clock = opening
        return Wait(job.id, WaitReason.WINDOW, f"the window {window} opens {clock}", self._now + in_s)

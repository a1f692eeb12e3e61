"""What keeps a job from standing in line at all: its owner, other jobs, a date, a window.

Owns those four; a job that does not get through keeps nothing for itself and holds nobody up.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import compress, count
from operator import attrgetter
from typing import NamedTuple

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.scheduling.decisions import Cancel, Wait
from superpipe_cluster.scheduling.snapshot import Snapshot, waits_for
from superpipe_cluster.scheduling.windows import Hours

#: What a job has to have for a gate to matter to it. See [Note: column by column] in `order.py`.
_GATES = tuple(map(attrgetter, ("after", "after_any", "after_fail", "begin_at", "window")))


class Crowd(NamedTuple):
    """The jobs of a snapshot, by what there is to decide about them."""

    #: Those that hold a device, in a state that nobody knows too, in the order of their numbers.
    holding: list[JobRecord]
    #: Those that may stand in line.
    eligible: list[JobRecord]
    #: What keeps the others that wait.
    stopped: list[Wait | Cancel]


def sort_out(snapshot: Snapshot, hours: Hours) -> Crowd:
    """Look at each job once.

    Args:
        snapshot: the moment.
        hours: its windows.
    """
    gates = _Gates(snapshot, hours)
    states = [job.state for job in snapshot.jobs]
    queued = [job for job, state in zip(snapshot.jobs, states, strict=True) if state is JobState.QUEUED]
    crowd = Crowd([], [], [])
    for job, state in zip(snapshot.jobs, states, strict=True):
        if state is JobState.HELD:
            crowd.stopped.append(Wait(job.id, WaitReason.HELD, "held by its owner"))
        elif state is not JobState.QUEUED and not state.is_terminal:
            crowd.holding.append(job)
    crowd.holding.sort(key=lambda job: (len(job.id), job.id))
    gated = {place for field in _GATES for place in compress(count(), map(field, queued))}
    for place, job in enumerate(queued):
        stop = gates.stop(job) if place in gated else None
        if stop is None:
            crowd.eligible.append(job)
        else:
            crowd.stopped.append(stop)
    return crowd


class _Gates:
    def __init__(self, snapshot: Snapshot, hours: Hours) -> None:
        self._now = snapshot.now
        self._hours = hours
        self._snapshot = snapshot
        self._known: dict[str, JobRecord] | None = None

    def stop(self, job: JobRecord) -> Wait | Cancel | None:
        """What keeps the job; None when nothing does."""
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
            self._known = {one.id: one for one in self._snapshot.jobs}
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

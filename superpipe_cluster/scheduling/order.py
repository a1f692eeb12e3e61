"""Who comes before whom."""

from __future__ import annotations

from collections.abc import Iterable

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState


def in_line(jobs: Iterable[JobRecord]) -> list[JobRecord]:
    """The queued jobs, first come first served within each priority.

    By when they were submitted, not by when they were queued: a job that was lost or preempted goes back to
    the place it had. The id decides between jobs of the same moment, so that the order is total.
    """
    queued = (job for job in jobs if job.state is JobState.QUEUED)
    return sorted(queued, key=lambda job: (-job.priority, job.submitted_at, len(job.id), job.id))

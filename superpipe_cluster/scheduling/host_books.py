"""The page of the books for host memory: RAM for the host copies of all jobs.

Owns its sums, and that a copy which several jobs share is counted once.

[Note: shared copies] Frozen weights that several jobs stream are in RAM once, for as long as one of them runs
(`streaming/homes/shared_copies.py`). So whoever comes to a copy that others keep takes only its own part of the RAM,
and the copy's bytes come back with the last of them. A job that was asked to leave keeps nothing for newcomers: it may
be gone before they have found the copy. Nor does one that has only been promised a place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.pool import Pool


def promised(holding: Iterable[JobRecord]) -> int:
    """RAM that these jobs are promised together. See [Note: shared copies]."""
    own, copies = 0, dict[str, int]()
    for job in holding:
        own += own_bytes(job)
        if job.shared_copy is not None:
            copies[job.shared_copy] = max(job.shared_bytes, copies.get(job.shared_copy, 0))
    return own + sum(copies.values())


def own_bytes(job: JobRecord) -> int:
    """RAM that the job takes for itself alone."""
    return job.host_bytes - job.shared_bytes if job.shared_copy is not None else job.host_bytes


class HostBooks:
    """RAM for host copies.

    Args:
        free_bytes: what is promised to nobody.
        holding: the jobs that hold a device.
        leaving: those of them that were asked to stop.
    """

    def __init__(
        self, free_bytes: int, holding: Collection[JobRecord], leaving: Collection[JobRecord]
    ) -> None:
        self._pool = Pool(free_bytes)
        #: What an empty cluster has.
        self.usable = free_bytes + promised(holding)
        #: How many jobs keep each copy for those that come.
        self._keepers = Counter(job.shared_copy for job in holding if job.shared_copy is not None)
        for job in leaving:
            self.leave(job)

    @property
    def now(self) -> int:
        """What may be given away at once."""
        return self._pool.now

    @property
    def soon(self) -> int:
        """What is there once everybody who was asked to leave has left."""
        return self._pool.soon

    def needs(self, job: JobRecord) -> int:
        """RAM that a job which waits takes when it comes now."""
        return own_bytes(job) if self._keepers[job.shared_copy or ""] else job.host_bytes

    def take(self, job: JobRecord) -> None:
        """The job starts."""
        self._pool.free -= self.needs(job)
        if job.shared_copy is not None:
            self._keepers[job.shared_copy] += 1

    def claim(self, job: JobRecord) -> None:
        """Set aside what the job needs: it starts as soon as that is free."""
        self._pool.claimed += self.needs(job)

    def leave(self, job: JobRecord) -> None:
        """The job is asked to stop; what it has comes back."""
        self._pool.coming += self.freed_by([job])
        if job.shared_copy is not None:
            self._keepers[job.shared_copy] -= 1

    def freed_by(self, jobs: Collection[JobRecord], newcomer: JobRecord | None = None) -> int:
        """RAM that comes back if these leave, none of which was asked to before; a copy that `newcomer` needs stays."""
        freed = sum(map(own_bytes, jobs))
        copies = {job.shared_copy: job.shared_bytes for job in jobs if job.shared_copy is not None}
        if newcomer is not None:
            copies.pop(newcomer.shared_copy or "", None)
        leave = Counter(job.shared_copy for job in jobs)
        return freed + sum(size for copy, size in copies.items() if self._keepers[copy] <= leave[copy])

"""What the scheduler sees: jobs, devices, host memory, users, quotas and windows at one moment.

Owns the immutable picture and the sums over it. Taking it from the store and the machine is the head's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.scheduling.host_books import promised
from superpipe_cluster.scheduling.policy import DEFAULT, Policy
from superpipe_cluster.scheduling.queued import Queued
from superpipe_cluster.scheduling.windows import Window


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device, as far as its bytes and its link go.

    Attributes:
        id: its name.
        capacity_bytes: what all our jobs on it together may hold now: what is left after everything that is not
            ours to give (the driver's share, foreign processes).
        link_bytes_per_s: what its link to the host carries; 0: not known, and not limited.
        foreign_bytes: of the device, what processes hold that are not ours. Not part of `capacity_bytes`.
    """

    id: str
    capacity_bytes: int
    link_bytes_per_s: int = 0
    foreign_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user may count on, and what they may not go beyond.

    Attributes:
        user: their name.
        guaranteed_bytes: of all devices together, bytes that they get back from others when they want them. Others
            may borrow them in the meantime.
        limit_bytes: bytes that their jobs together may hold; None: as many as there are.
        weight: their share beside others'; one of weight 2 may use twice as much before they come after them.
    """

    user: str
    guaranteed_bytes: int = 0
    limit_bytes: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the cluster.

    Args:
        now: unix seconds by the store's clock.
        queued: the jobs that are queued, whatever they wait for.
        others: all others that have not ended, and those of the ended ones that a waiting job names in `after...`.
        devices: all that may be used.
        host_free_bytes: RAM for host copies that is not promised yet. A job that starts is promised its
            `host_bytes` long before it has used them, so this is a ledger's figure, not a reading. A copy that several
            jobs share counts once.
        usage: byte-seconds each user has used, decayed, the running part included (`usage.py`).
        quotas: by user; who is not in it has no guarantee, no limit and weight 1.
        windows: by name.
        wall: unix seconds by the wall clock, which windows go by; None: `now`.
        policy: the numbers to decide by.
    """

    now: float
    queued: Queued
    others: tuple[JobRecord, ...]
    devices: tuple[DeviceView, ...]
    host_free_bytes: int
    usage: Mapping[str, float] = field(default_factory=dict[str, float])
    quotas: Mapping[str, Quota] = field(default_factory=dict[str, Quota])
    windows: Mapping[str, Window] = field(default_factory=dict[str, Window])
    wall: float | None = None
    policy: Policy = DEFAULT

    @staticmethod
    def of(
        records: Sequence[JobRecord],
        devices: Iterable[DeviceView],
        *,
        host_usable_bytes: int,
        now: float,
        usage: Mapping[str, float] | None = None,
        quotas: Mapping[str, Quota] | None = None,
        windows: Mapping[str, Window] | None = None,
        wall: float | None = None,
        policy: Policy = DEFAULT,
    ) -> Snapshot:
        """The snapshot of all `records` of the store, ended ones included.

        Args:
            records: every job there is; those that have ended and that no waiting one names may be left out.
            devices: all that may be used.
            host_usable_bytes: RAM for the host copies of all jobs together.
            now: unix seconds by the store's clock.
            usage: as in the snapshot.
            quotas: as in the snapshot.
            windows: as in the snapshot.
            wall: as in the snapshot.
            policy: as in the snapshot.
        """
        queued = Queued.of(record for record in records if record.state is JobState.QUEUED)
        others = [record for record in records if record.state is not JobState.QUEUED]
        named = named_by(queued, others)
        return Snapshot(
            now=now,
            queued=queued,
            others=tuple(one for one in others if not one.state.is_terminal or one.id in named),
            devices=tuple(devices),
            host_free_bytes=host_usable_bytes - promised(one for one in others if one.state.holds_device),
            usage=usage or {},
            quotas=quotas or {},
            windows=windows or {},
            wall=wall,
            policy=policy,
        )

    @property
    def jobs(self) -> tuple[JobRecord, ...]:
        """All of them."""
        return (*self.queued.jobs, *self.others)

    def with_jobs(self, jobs: Iterable[JobRecord]) -> Snapshot:
        """The same moment with other jobs."""
        jobs = list(jobs)
        queued = [job for job in jobs if job.state is JobState.QUEUED]
        others = tuple(job for job in jobs if job.state is not JobState.QUEUED)
        return replace(self, queued=Queued.of(queued), others=others)

    def used_bytes(self, device_id: str) -> int:
        """What is promised on a device, whether its jobs use it or not."""
        return sum(
            record.promised_bytes
            for record in self.others
            if record.device == device_id and record.state.holds_device
        )

    def host_usable_bytes(self) -> int:
        """RAM for the host copies of all jobs together: what an empty cluster has."""
        return self.host_free_bytes + promised(one for one in self.others if one.state.holds_device)


def waits_for(record: JobRecord) -> tuple[str, ...]:
    """The ids of all jobs whose end the job waits for, in one way or another."""
    return (*record.after, *record.after_any, *record.after_fail)


def named_by(queued: Queued, others: Iterable[JobRecord]) -> set[str]:
    """The ids of all jobs whose end a waiting job waits for."""
    gated = [queued.jobs[place] for place in np.flatnonzero(queued.column("is_gated")).tolist()]
    return {job_id for record in (*gated, *others) if record.state.is_waiting for job_id in waits_for(record)}

"""What the scheduler sees: jobs, devices, host memory, users, quotas and windows at one moment.

Owns the immutable picture and the sums over it. Taking it from the store and the machine is the head's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, count
from operator import attrgetter

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.scheduling.policy import DEFAULT, Policy
from superpipe_cluster.scheduling.windows import Window

_NAMES = tuple(map(attrgetter, ("after", "after_any", "after_fail")))


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
        jobs: all that have not ended, and those of the ended ones that a waiting job names in `after...`.
        devices: all that may be used.
        host_free_bytes: RAM for host copies that is not promised yet. A job that starts is promised its
            `host_bytes` long before it has used them, so this is a ledger's figure, not a reading.
        usage: byte-seconds each user has used, decayed, the running part included (`usage.py`).
        quotas: by user; who is not in it has no guarantee, no limit and weight 1.
        windows: by name.
        wall: unix seconds by the wall clock, which windows go by; None: `now`.
        policy: the numbers to decide by.
    """

    now: float
    jobs: tuple[JobRecord, ...]
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
        # Field by field, see [Note: column by column] in `order.py`.
        states = [record.state for record in records]
        naming = {place for field in _NAMES for place in compress(count(), map(field, records))}
        named = {
            job_id for place in naming if states[place].is_waiting for job_id in waits_for(records[place])
        }
        others = [place for place, state in enumerate(states) if state is not JobState.QUEUED]
        promised = sum(records[place].host_bytes for place in others if states[place].holds_device)
        ended = {place for place in others if states[place].is_terminal and records[place].id not in named}
        if ended:
            records = [record for place, record in enumerate(records) if place not in ended]
        return Snapshot(
            now=now,
            jobs=tuple(records),
            devices=tuple(devices),
            host_free_bytes=host_usable_bytes - promised,
            usage=usage or {},
            quotas=quotas or {},
            windows=windows or {},
            wall=wall,
            policy=policy,
        )

    def used_bytes(self, device_id: str) -> int:
        """What is promised on a device, whether its jobs use it or not."""
        return sum(
            record.promised_bytes
            for record in self.jobs
            if record.device == device_id and record.state.holds_device
        )

    def host_usable_bytes(self) -> int:
        """RAM for the host copies of all jobs together: what an empty cluster has."""
        return self.host_free_bytes + sum(job.host_bytes for job in self.jobs if job.state.holds_device)


def waits_for(record: JobRecord) -> tuple[str, ...]:
    """The ids of all jobs whose end the job waits for, in one way or another."""
    return (*record.after, *record.after_any, *record.after_fail)

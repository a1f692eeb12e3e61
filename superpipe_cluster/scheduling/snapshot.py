"""What the scheduler sees: the jobs, the devices and the memory of the host at one moment.

Owns the immutable picture and the sums over it. Taking it from the store and the machine is the head's work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from superpipe_cluster.lifecycle.record import JobRecord


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device, as far as its bytes go.

    `capacity_bytes` is what all jobs on it together may hold: what is left after everything that is not ours
    to give (the driver's share, foreign processes).
    """

    id: str
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the cluster.

    Args:
        now: unix seconds by the store's clock.
        jobs: all that have not ended, and those of the ended ones that a waiting job names in `after`.
        devices: all that may be used.
        host_free_bytes: RAM for host copies that is not promised yet. A job that starts is promised its
            `host_bytes` long before it has used them, so this is a ledger's figure, not a reading.
    """

    now: float
    jobs: tuple[JobRecord, ...]
    devices: tuple[DeviceView, ...]
    host_free_bytes: int

    @staticmethod
    def of(
        records: Sequence[JobRecord], devices: Iterable[DeviceView], *, host_usable_bytes: int, now: float
    ) -> Snapshot:
        """The snapshot of all `records` of the store, ended ones included.

        Args:
            records: every job there is.
            devices: all that may be used.
            host_usable_bytes: RAM for the host copies of all jobs together.
            now: unix seconds by the store's clock.
        """
        named = {job_id for record in records if record.state.is_waiting for job_id in record.after}
        promised = sum(record.host_bytes for record in records if record.state.holds_device)
        return Snapshot(
            now=now,
            jobs=tuple(record for record in records if not record.state.is_terminal or record.id in named),
            devices=tuple(devices),
            host_free_bytes=host_usable_bytes - promised,
        )

    def used_bytes(self, device_id: str) -> int:
        """The sum of the budgets on a device, whether their jobs use them or not."""
        return sum(
            record.budget_bytes or 0
            for record in self.jobs
            if record.device == device_id and record.state.holds_device
        )

    def host_usable_bytes(self) -> int:
        """RAM for the host copies of all jobs together: what an empty cluster has."""
        return self.host_free_bytes + sum(job.host_bytes for job in self.jobs if job.state.holds_device)

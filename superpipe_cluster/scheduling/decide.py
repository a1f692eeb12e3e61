"""The decision: which queued jobs start now, on which device, with how many bytes, and why the others do not.

Owns the rules, in this order:

1. A job waits for the jobs it names in `after`, and is cancelled when one of them did not succeed.
2. The others stand in line by priority, then age (`order.py`). Each in turn takes its guaranteed bytes on
   the device where the fewest are left over (best fit), and its host memory.
3. A job that has to wait is overtaken by nobody, see [Note: nothing overtakes].
4. When all who can start have their guaranteed bytes, they share what is left up to what they want, in the
   order of the line: more jobs at once come before more bytes for one.

[Note: nothing overtakes] A job that has to wait keeps every device it could run on for itself: nobody behind
it in the line takes bytes there, nor host memory that it needs. Jobs behind it may start only on devices too
small for it. So it starts as soon as enough of those before it have ended, whatever comes later. A job that
could not run even on an empty cluster keeps nothing.

Integers for bytes everywhere, so that no sum is ever rounded past a capacity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.scheduling.order import in_line
from superpipe_cluster.scheduling.snapshot import Snapshot
from superpipe_cluster.spec.units import format_bytes


@dataclass(frozen=True, slots=True)
class Start:
    """Place the job on `device` with `budget_bytes`."""

    job_id: str
    device: str
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Leave the job where it is. `message` says what it waits for, in a sentence."""

    job_id: str
    reason: WaitReason
    message: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The job can never start: the job `because_of`, which it waits for, ended without success."""

    job_id: str
    reason: EndReason
    because_of: str


Decision = Start | Wait | Cancel


def decide(snapshot: Snapshot) -> list[Decision]:
    """One decision for every waiting job (queued or held), in the order of the line."""
    ledger = _Ledger(snapshot)
    known = {job.id: job for job in snapshot.jobs}
    placed = [_after(job, known) or ledger.place(job) for job in in_line(snapshot.jobs)]
    queued = [ledger.topped_up(one) if isinstance(one, Start) else one for one in placed]
    held = [job.id for job in snapshot.jobs if job.state is JobState.HELD]
    return [*queued, *(Wait(job_id, WaitReason.HELD, "held by its owner") for job_id in held)]


def _after(job: JobRecord, known: Mapping[str, JobRecord]) -> Decision | None:
    """What the jobs named in `after` mean for this one; None when nothing keeps it."""
    pending: list[str] = []
    for job_id in job.after:
        other = known.get(job_id)
        if other is not None and other.state in (JobState.FAILED, JobState.CANCELLED):
            return Cancel(job.id, EndReason.DEPENDENCY_FAILED, job_id)
        if other is None or other.state is not JobState.SUCCEEDED:
            pending.append(f"{job_id} ({'unknown' if other is None else other.state})")
    if pending:
        return Wait(job.id, WaitReason.DEPENDENCY, f"waits for job {', '.join(pending)}")
    return None


class _Ledger:
    """Free bytes while decisions are made, and what is kept for those who wait."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._capacity = {device.id: device.capacity_bytes for device in snapshot.devices}
        self._free = {
            device.id: device.capacity_bytes - snapshot.used_bytes(device.id) for device in snapshot.devices
        }
        self._host_free = snapshot.host_free_bytes
        self._host_usable = snapshot.host_usable_bytes()
        #: Device that somebody waits for -> the fewest bytes that would let one of those start.
        self._kept: dict[str, int] = {}
        #: The most host memory that one of those who wait needs.
        self._host_kept_bytes = 0
        #: Job that starts -> the bytes it would like.
        self._wanted: dict[str, int] = {}

    def place(self, job: JobRecord) -> Start | Wait:
        """Take the job's guaranteed bytes, or keep for it what it waits for."""
        never = self._never(job)
        if never is not None:
            return never
        fitting = [device for device, free in self._free.items() if free >= job.budget_min_bytes]
        open_to_it = [device for device in fitting if device not in self._kept]
        if not open_to_it:
            return self._waits(job, self._why_no_device(job, fitting))
        overtaken = self._host_overtaken(job)
        if overtaken is not None:
            return self._waits(job, overtaken)
        device = min(open_to_it, key=lambda device: (self._free[device], device))
        self._free[device] -= job.budget_min_bytes
        self._host_free -= job.host_bytes
        self._wanted[job.id] = job.budget_max_bytes
        return Start(job.id, device, job.budget_min_bytes)

    def topped_up(self, start: Start) -> Start:
        """The start with as much of its range as the device has left, once everybody has their minimum."""
        smallest = self._kept.get(start.device)
        if smallest is not None and start.budget_bytes + smallest <= self._capacity[start.device]:
            # Somebody who waits could run beside it here, and more bytes for it could keep them out.
            return start
        extra = min(max(self._wanted[start.job_id] - start.budget_bytes, 0), self._free[start.device])
        self._free[start.device] -= extra
        return Start(start.job_id, start.device, start.budget_bytes + extra)

    def _never(self, job: JobRecord) -> Wait | None:
        """The wait of a job that even an empty cluster is too small for, and that therefore keeps nothing."""
        if not any(capacity >= job.budget_min_bytes for capacity in self._capacity.values()):
            most = max(self._capacity.values(), default=0)
            return Wait(
                job.id,
                WaitReason.RESOURCES,
                f"needs {format_bytes(job.budget_min_bytes)}; the largest device of this cluster has "
                f"{format_bytes(most)}",
            )
        if job.host_bytes > self._host_usable:
            return Wait(
                job.id,
                WaitReason.HOST_MEMORY,
                f"its host copy needs {format_bytes(job.host_bytes)} of RAM; all jobs together may use "
                f"{format_bytes(self._host_usable)}",
            )
        return None

    def _why_no_device(self, job: JobRecord, fitting: list[str]) -> Wait:
        # [Note: messages that stay] Every message that changes is a write. Ten thousand waiting jobs must not
        # be written again because one of them started, so only those who are first in line for a device read
        # today's figures; the others' messages name nothing that changes.
        if fitting:
            message = f"would fit on {min(fitting)}, but jobs ahead of it need those bytes first"
            return Wait(job.id, WaitReason.PRIORITY, message)
        needs = f"needs {format_bytes(job.budget_min_bytes)}"
        if any(self._capacity[device] >= job.budget_min_bytes for device in self._kept):
            return Wait(job.id, WaitReason.RESOURCES, f"{needs}, and other jobs are ahead of it")
        best = max(self._free, key=lambda device: (self._free[device], device))
        free, all_of_it = format_bytes(max(self._free[best], 0)), format_bytes(self._capacity[best])
        message = f"{needs}; the most is free on {best}: {free} of {all_of_it}"
        return Wait(job.id, WaitReason.RESOURCES, message)

    def _host_overtaken(self, job: JobRecord) -> Wait | None:
        """The wait for host memory, or for those ahead who need it; None when there is enough for all."""
        if job.host_bytes > self._host_free:
            needs = f"its host copy needs {format_bytes(job.host_bytes)} of RAM"
            free = format_bytes(max(self._host_free, 0))
            return Wait(job.id, WaitReason.HOST_MEMORY, f"{needs}; {free} is free")
        if self._host_kept_bytes and job.host_bytes > max(self._host_free - self._host_kept_bytes, 0):
            message = "would fit, but a job ahead of it needs the host memory first"
            return Wait(job.id, WaitReason.PRIORITY, message)
        return None

    def _waits(self, job: JobRecord, wait: Wait) -> Wait:
        """`wait`, after keeping for the job every device it could run on, and its host memory."""
        for device, capacity in self._capacity.items():
            if capacity >= job.budget_min_bytes:
                self._kept[device] = min(self._kept.get(device, capacity), job.budget_min_bytes)
        self._host_kept_bytes = max(self._host_kept_bytes, job.host_bytes)
        return wait

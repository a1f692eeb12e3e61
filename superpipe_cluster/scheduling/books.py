"""The books while decisions are made: what every device, user and array holds, and what has been decided so far.

Owns the sums, and that no decision breaks them: bytes are given only out of what is free now. Everybody who decides
something writes it down here at once, so that the next one sees it. Nothing outlives one call of `decide`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.scheduling.curve import ends_at, run_s
from superpipe_cluster.scheduling.decisions import Preempt, Resize
from superpipe_cluster.scheduling.device_books import (
    ASKABLE,
    UNLIMITED,
    DeviceBooks,
    Holder,
    Shadow,
    is_leaving,
)
from superpipe_cluster.scheduling.host_books import HostBooks, own_bytes
from superpipe_cluster.scheduling.snapshot import Snapshot
from superpipe_cluster.scheduling.windows import Hours


class End(NamedTuple):
    """A job's likely end, and what comes back with it.

    Attributes:
        at: unix seconds; infinite when nobody can tell.
        size: bytes of the device.
        spare: of these, what it can be asked for before.
        link: bytes per second of its link that it was promised.
        traffic: bytes per second that it is likely to use of it.
        strain: how many more if it were asked for all that it can spare.
        host: RAM for host copies, of its own.
        device: where.
        copy: the shared copy that it is the last one to use; None for none.
        copy_bytes: the size of that.
    """

    at: float
    size: int
    spare: int
    link: int
    traffic: int
    strain: int
    host: int
    device: DeviceBooks | None
    copy: str | None
    copy_bytes: int

    def frees(self, newcomer: JobRecord | None = None) -> int:
        """RAM that comes back; a copy that `newcomer` needs stays."""
        stays = self.copy is None or (newcomer is not None and newcomer.shared_copy == self.copy)
        return self.host if stays else self.host + self.copy_bytes


class Books:
    """All of it.

    Args:
        snapshot: the moment.
        holding: its jobs that hold a device, in an order that does not depend on the snapshot's.
        hours: its windows.
    """

    def __init__(self, snapshot: Snapshot, holding: Collection[JobRecord], hours: Hours) -> None:
        self.now = snapshot.now
        self.policy = snapshot.policy
        self.quotas = snapshot.quotas
        self.hours = hours
        keeper = hours.keeper
        floor = keeper.interactive_floor_bytes if keeper is not None else 0
        views = sorted(snapshot.devices, key=lambda view: view.id)
        self.devices = [
            DeviceBooks(view, min(floor, max(view.capacity_bytes, 0)), self.policy.link_crowd)
            for view in views
        ]
        leaving = [job for job in holding if is_leaving(job)]
        self.host = HostBooks(snapshot.host_free_bytes, holding, leaving)
        #: Shadows of jobs that wait, also those for host memory alone.
        self.shadows: list[Shadow] = []
        self.user_bytes: dict[str, int] = {}
        #: Array -> how many of its tasks hold a device.
        self.tasks: dict[str, int] = {}
        self.holders: list[Holder] = []
        self._placed: list[End] = []
        #: What `ends` found last; None once something was decided that changes it.
        self._ends: list[End] | None = None
        by_id = {device.id: device for device in self.devices}
        for job in holding:
            self._enter(job, by_id.get(job.device or ""))

    def _enter(self, job: JobRecord, device: DeviceBooks | None) -> None:
        promised = job.promised_bytes
        leaves = is_leaving(job)
        target = 0 if leaves else promised
        if job.budget_asked_bytes is not None and not leaves:
            target = job.budget_asked_bytes
        floor = target
        if job.may_shrink and (job.state in ASKABLE or job.state is JobState.STARTING):
            floor = min(target, max(job.budget_min_bytes, job.floor_bytes))
        is_askable = job.state in ASKABLE and job.budget_asked_bytes is None and job.stop_asked is None
        holder = Holder(job, device, promised, target, floor, ends_at(job, self.now), is_askable)
        self.holders.append(holder)
        self._count_job(job, promised)
        if device is None:
            return
        device.holders.append(holder)
        device.bytes.free -= promised
        device.bytes.coming += promised - target
        device.link.free -= job.link_min_bytes_per_s
        device.resized(job, 0, target)
        device.count(job, promised)
        if leaves:
            device.link.coming += job.link_min_bytes_per_s

    def quota_left(self, user: str) -> int:
        """Bytes that the user may still take."""
        quota = self.quotas.get(user)
        if quota is None or quota.limit_bytes is None:
            return UNLIMITED
        return quota.limit_bytes - self.user_bytes.get(user, 0)

    def guaranteed_left(self, user: str) -> int:
        """Bytes of the user's guarantee that they do not hold; below 0: they borrow that many."""
        quota = self.quotas.get(user)
        return (quota.guaranteed_bytes if quota is not None else 0) - self.user_bytes.get(user, 0)

    def needs(self, device: DeviceBooks, job: JobRecord, relieved: int = 0) -> int | None:
        """As `DeviceBooks.needs`, within what the job's user may still take; who has nothing comes in sooner."""
        if not self.user_bytes.get(job.user):
            relieved += device.view.link_bytes_per_s
        size = device.needs(job, relieved)
        return (
            size
            if size is None or size == job.budget_min_bytes or size <= self.quota_left(job.user)
            else None
        )

    # ---- what is decided -------------------------------------------------------------------------------

    def start(self, job: JobRecord, device: DeviceBooks, size: int) -> None:
        """Give a waiting job the bytes that it needs there."""
        device.bytes.free -= size
        device.link.free -= job.link_min_bytes_per_s
        self._place(job, device, size)
        self.host.take(job)

    def top_up(self, job: JobRecord, device: DeviceBooks, more: int) -> None:
        """Give a job that starts more than its guaranteed bytes."""
        device.bytes.free -= more
        device.count(job, more)
        self.user_bytes[job.user] += more

    def claim(self, job: JobRecord, device: DeviceBooks, size: int) -> None:
        """Set aside what a waiting job needs there: it starts as soon as that is free."""
        device.bytes.claimed += size
        device.link.claimed += job.link_min_bytes_per_s
        self._place(job, device, size)
        self.host.claim(job)

    def keep(self, devices: Iterable[DeviceBooks], shadow: Shadow) -> None:
        """Keep what the first one in line for these devices needs."""
        self.shadows.append(shadow)
        for device in devices:
            device.shadow = shadow

    def shrink(self, holder: Holder, target: int, why: str, for_job: str | None = None) -> None:
        """Ask for fewer bytes. Who is asked already for somebody else goes on being asked for them."""
        assert holder.can_be_asked
        assert target <= holder.target
        self._ends = None
        if holder.device is not None:
            holder.device.bytes.coming += holder.target - target
            holder.device.resized(holder.job, holder.target, target)
        holder.target = target
        holder.floor = min(holder.floor, target)
        if not holder.why:
            holder.why, holder.for_job = why, for_job

    def grow(self, holder: Holder, target: int, why: str) -> None:
        """Offer more bytes. They count from now on, see [Note: two phases] in `lifecycle/record.py`."""
        assert holder.can_be_asked
        assert holder.device is not None
        self._ends = None
        more = target - holder.promised
        holder.device.bytes.free -= more
        holder.device.count(holder.job, more)
        holder.device.resized(holder.job, holder.target, target)
        self.user_bytes[holder.job.user] += more
        holder.promised = holder.target = holder.floor = target
        holder.why = why

    def preempt(self, holder: Holder, why: str, for_job: str | None = None) -> None:
        """Ask for all of its bytes: it is to save and queue again."""
        self._ends = None
        holder.is_preempted, holder.can_be_asked = True, False
        holder.why, holder.for_job = why, for_job
        self.host.leave(holder.job)
        if holder.device is not None:
            holder.device.bytes.coming += holder.target
            holder.device.link.coming += holder.job.link_min_bytes_per_s
            holder.device.resized(holder.job, holder.target, 0)
        holder.target = holder.floor = 0

    def asked(self) -> list[Preempt | Resize]:
        """What is asked of running jobs now."""
        asked: list[Preempt | Resize] = []
        for holder in self.holders:
            if holder.is_preempted:
                asked.append(Preempt(holder.job.id, holder.why, holder.for_job))
            elif holder.why:
                asked.append(Resize(holder.job.id, holder.target, holder.why, holder.for_job))
        return asked

    def ends(self) -> Sequence[End]:
        """What comes back when, soonest first, those who have just been placed or promised a place included."""
        if self._ends is None:
            there = (_end_of_holder(one) for one in self.holders if not one.is_leaving)
            self._ends = _each_copy_once(sorted([*there, *self._placed], key=_when))
        return self._ends

    def _place(self, job: JobRecord, device: DeviceBooks, size: int) -> None:
        end, use = self.now + run_s(job), device.use(job, size)
        device.count(job, size)
        device.resized(job, 0, size)
        self._count_job(job, size)
        self._ends = None
        self._placed.append(_end_of(job, device, size, end, use))
        if device.shadow is not None:
            device.shadow.take_device(job, size, use, end)
        for shadow in self.shadows:
            shadow.take_host(self.host.needs(job), end)

    def _count_job(self, job: JobRecord, size: int) -> None:
        self.user_bytes[job.user] = self.user_bytes.get(job.user, 0) + size
        if job.array is not None:
            self.tasks[job.array] = self.tasks.get(job.array, 0) + 1


def _end_of(
    job: JobRecord,
    device: DeviceBooks | None,
    size: int,
    at: float,
    use: int,
    spare: int = 0,
    strain: int = 0,
) -> End:
    link, copy, copy_bytes = job.link_min_bytes_per_s, job.shared_copy, job.shared_bytes
    return End(at, size, spare, link, use, strain, own_bytes(job), device, copy, copy_bytes)


def _end_of_holder(one: Holder) -> End:
    device, job = one.device, one.job
    use, strain = (device.use(job, one.target), device.strain_of(one)) if device is not None else (0, 0)
    return _end_of(job, device, one.target, one.ends_at, use, one.target - one.floor, strain)


def _each_copy_once(ends: list[End]) -> list[End]:
    """A shared copy's bytes come back with the last of those who use it."""
    seen: set[str] = set()
    for place in range(len(ends) - 1, -1, -1):
        copy = ends[place].copy
        if copy in seen:
            ends[place] = ends[place]._replace(copy=None)
        elif copy is not None:
            seen.add(copy)
    return ends


def _when(end: End) -> float:
    return end.at

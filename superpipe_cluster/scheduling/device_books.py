"""One device's page of the books: who holds bytes there, what is free, on its way back, set aside, or kept.

Owns the sums of one device. Those of all of them, and what is decided, are in `books.py`.

[Note: the link] There are two accounts of it. What jobs were promised to be no slower than they may (`link`) is a
resource like bytes. What they are likely to move at their budgets, by their forecasts (`traffic_left`), is not promised
to anybody and may be more than the link carries, but only `link_crowd` times: beyond that, one more job makes all the
others slower by more than it gets done. So a newcomer starts with more than its guarantee where it would crowd the link
otherwise, and waits where no budget helps. The first job of a user who has nothing running may crowd it by one link
more, so that two jobs of one user do not keep everybody else out; an interactive one is let in all the same: somebody
sits waiting for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.scheduling.curve import falls, least_within, left_s, link_use
from superpipe_cluster.scheduling.pool import Pool
from superpipe_cluster.scheduling.snapshot import DeviceView

#: The class whose jobs may take what a window keeps for interactive ones.
INTERACTIVE = 2
#: Stands for "as much as anybody wants": a link of unknown speed, a user without a limit.
UNLIMITED = 1 << 62

#: Where a worker can be asked for another budget; elsewhere its bytes stay as they are.
ASKABLE = (JobState.RUNNING, JobState.PAUSED)


@dataclass(slots=True, eq=False)
class Holder:
    """A job with a device.

    Attributes:
        job: its record.
        device: where it is; None when that device is not there any more.
        promised: bytes that count against the device now.
        target: what it will hold once it has done all it was asked to; 0 when it is to stop.
        floor: the smallest that `target` may become to let others in.
        ends_at: when it is likely to end, unix seconds; infinite when nobody can tell.
        why: the sentence that goes with what is asked of it now; empty while nothing is.
        for_job: whom that is for.
        can_be_asked: whether a budget may be asked for: its program runs, and no other ask is under way from before.
        is_preempted: it is asked now to save and queue again.
        way: what its bytes cost from `target` down to a floor, as found last, and these two.
    """

    job: JobRecord
    device: DeviceBooks | None
    promised: int
    target: int
    floor: int
    ends_at: float
    can_be_asked: bool
    why: str = ""
    for_job: str | None = None
    is_preempted: bool = False
    way: tuple[int, int, Sequence[tuple[int, float]]] = (0, 0, ())

    def way_down(self, floor: int, horizon_s: float) -> Sequence[tuple[int, float]]:
        """What its bytes cost from its target down to `floor`, see `curve.falls`."""
        if self.way[:2] != (self.target, floor):
            parts = falls(self.job, self.target, floor, left_s(self.job, horizon_s))
            self.way = self.target, floor, parts
        return self.way[2]

    @property
    def is_leaving(self) -> bool:
        """Whether it has been asked to stop, before or now."""
        return self.is_preempted or is_leaving(self.job)

    @property
    def can_be_stopped(self) -> bool:
        """Whether it may be asked to save and stop. A job in a state that only a newer version knows is left alone."""
        return not self.is_leaving and (self.job.state in ASKABLE or self.job.state is JobState.STARTING)


@dataclass(slots=True)
class Shadow:
    """What is kept for the first job in line for a device. See [Note: backfill] in `backfill.py`.

    Attributes:
        until: when that job can start, unix seconds; None when nobody can tell.
        bytes_left: of the device, what is left beside it then.
        link_left: of its link.
        traffic_left: of what its jobs may use of the link together.
        host_left: of the RAM for host copies.
    """

    until: float | None
    bytes_left: int
    link_left: int
    traffic_left: int
    host_left: int

    def lets_host(self, size: int, end: float) -> bool:
        """Whether a job may take so much host memory and delays nobody by that."""
        return not size or self._is_over(end) or size <= self.host_left

    def lets_device(self, job: JobRecord, size: int, use: int, end: float) -> bool:
        """Whether the job may take `size` bytes of the device, use the link for so much, and delays nobody by that."""
        return self._is_over(end) or (
            size <= self.bytes_left
            and job.link_min_bytes_per_s <= self.link_left
            and (use <= self.traffic_left or not use)
        )

    def take_host(self, size: int, end: float) -> None:
        """Count what a job takes of what was left beside the first one."""
        if not self._is_over(end):
            self.host_left -= size

    def take_device(self, job: JobRecord, size: int, use: int, end: float) -> None:
        """Count what the job takes of what was left beside the first one."""
        if not self._is_over(end):
            self.bytes_left -= size
            self.link_left -= job.link_min_bytes_per_s
            self.traffic_left -= use

    def _is_over(self, end: float) -> bool:
        return self.until is not None and end <= self.until


class DeviceBooks:
    """One device.

    Args:
        view: what is known of it.
        interactive_floor: bytes that only interactive jobs may take now.
        link_crowd: see `Policy`.
    """

    def __init__(self, view: DeviceView, interactive_floor: int, link_crowd: float) -> None:
        self.id = view.id
        self.view = view
        self.capacity = view.capacity_bytes
        self.bytes = Pool(view.capacity_bytes)
        self.link = Pool(view.link_bytes_per_s or UNLIMITED)
        self.holders: list[Holder] = []
        self.interactive_floor = interactive_floor
        #: What interactive jobs hold, or are promised: it counts towards their floor.
        self.interactive_bytes = 0
        self.shadow: Shadow | None = None
        #: Bytes per second that newcomers may use of the link. See [Note: the link].
        self.traffic_left = int(link_crowd * view.link_bytes_per_s)
        #: Whether the first one in line waits for less traffic on the link.
        self.is_crowded = False
        #: What `use` found: it is asked the same things over and over.
        self._uses: dict[tuple[str, int], int] = {}

    def use(self, job: JobRecord, size: int) -> int:
        """Bytes per second of the link that the job is likely to use here with `size` bytes."""
        if not size:
            return 0
        key = job.id, size
        use = self._uses.get(key)
        if use is None:
            use = self._uses[key] = min(link_use(job, size), self.view.link_bytes_per_s)
        return use

    def resized(self, job: JobRecord, before: int, after: int) -> None:
        """Count how the traffic changes when the job has `after` bytes in place of `before`; 0: it is not here."""
        self.traffic_left += self.use(job, before) - self.use(job, after)

    def strain_of(self, holder: Holder) -> int:
        """Bytes per second more that a job here is likely to use of the link once it has given what it can spare."""
        return self.use(holder.job, holder.floor) - self.use(holder.job, holder.target)

    @property
    def strain(self) -> int:
        """The same of all jobs here: what making the most of `reclaimable` costs."""
        return sum(self.strain_of(holder) for holder in self.holders if holder.floor < holder.target)

    def needs(self, job: JobRecord, relieved: int = 0) -> int | None:
        """The fewest bytes that the job may start with here, see [Note: the link]; None when it may not start at all.

        Args:
            job: one that waits.
            relieved: bytes per second that jobs here will not use any more by then.
        """
        left, low = self.traffic_left + relieved, job.budget_min_bytes
        if left >= self.view.link_bytes_per_s or job.priority >= INTERACTIVE or self.use(job, low) <= left:
            return low
        return least_within(job, left)

    def kept_from(self, job: JobRecord) -> int:
        """Bytes that this job may not take, since others may need them at any moment."""
        if not self.interactive_floor or job.priority >= INTERACTIVE:
            return 0
        return max(self.interactive_floor - self.interactive_bytes, 0)

    def room(self, job: JobRecord) -> int:
        """Bytes that this job may take at once."""
        return self.bytes.now - self.kept_from(job)

    @property
    def reclaimable(self) -> int:
        """Bytes that jobs here can be asked for, now or once they have done what they were asked last."""
        return sum(holder.target - holder.floor for holder in self.holders)

    def most(self, job: JobRecord) -> int:
        """Bytes that this job could have if it were alone here."""
        return self.capacity if job.priority >= INTERACTIVE else self.capacity - self.interactive_floor

    def could_ever(self, job: JobRecord) -> bool:
        """Whether the job would fit if it were alone here."""
        link = self.view.link_bytes_per_s
        return job.budget_min_bytes <= self.most(job) and (not link or job.link_min_bytes_per_s <= link)

    def count(self, job: JobRecord, size: int) -> None:
        """Count `size` bytes more of the job towards the interactive floor, if it is one that this is for."""
        if job.priority >= INTERACTIVE:
            self.interactive_bytes += size


def is_leaving(job: JobRecord) -> bool:
    """Whether a job with a device was asked to stop, at any time before now."""
    return job.stop_asked is not None or job.state is JobState.STOPPING

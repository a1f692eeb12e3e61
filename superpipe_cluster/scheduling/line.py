"""A job's turn in the line: it starts, is made room for, or waits and says for what.

Owns the order of these: what is free now, what is on its way back, what others can be asked for, whom to preempt, and
at last what to keep for the first one that has to wait. See [Note: backfill] in `backfill.py` for those behind it.

[Note: messages that stay] Every message that changes is a write. Ten thousand waiting jobs must not be written again
because one of them started, so only those who are first in line for a device read today's figures; the others'
messages name nothing that changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.scheduling.backfill import keep_for
from superpipe_cluster.scheduling.books import Books
from superpipe_cluster.scheduling.curve import run_s
from superpipe_cluster.scheduling.decisions import Wait, behind
from superpipe_cluster.scheduling.device_books import UNLIMITED, DeviceBooks
from superpipe_cluster.scheduling.queued import Flags, Integers, Queued
from superpipe_cluster.scheduling.room import Room, by_preempting, by_shrinking, carry_out
from superpipe_cluster.sizes import format_bytes

#: Seconds within which a worker that did not say how long its steps take is expected to make room.
_A_STEP_S = 10.0


class Line:
    """Gives the jobs their turns, first one first.

    Args:
        books: written to by every turn.
    """

    def __init__(self, books: Books) -> None:
        self._books = books
        self._has_limits = any(quota.limit_bytes is not None for quota in books.quotas.values())
        self._largest = max((device.capacity for device in books.devices), default=-1)
        #: Those that start, where, and with how many bytes.
        self.starts: list[tuple[JobRecord, DeviceBooks, int]] = []
        #: Those that wait, first one first.
        self.waits: list[Wait] = []
        #: Of the first of them that wait for bytes, with nobody asked to make room for them: place in `waits`, and job.
        self.front: list[tuple[int, JobRecord]] = []
        #: How often others were asked to make room.
        self._rooms = 0
        #: How many could not be let past those ahead of them.
        self._denied = 0
        #: The fewest bytes that one of those who wait for bytes needs.
        self.least_waiting = UNLIMITED
        self._look()

    def run(self, queued: Queued, line: Integers) -> None:
        """Give every job its turn.

        Once every device that could be is kept for somebody, only jobs that are small enough for what is free can still
        start. The others wait, all with the same words, and are not looked at: so a long line costs little.

        Args:
            queued: the jobs.
            line: the places there of those in line, first one first.
        """
        needs = queued.column("needs")[line]
        least = int(needs.min(initial=UNLIMITED))
        places: list[int] = line.tolist()
        turn = 0
        while turn < len(places) and self._most_unkept >= least:
            self._take(queued.jobs[places[turn]])
            turn += 1
        policy = self._books.policy
        worded = self._worded(queued, line, needs)
        may_start = needs <= self._most_now
        while turn < len(places) and len(self.front) < policy.forecast_depth:
            place = places[turn]
            if worded[turn] or (may_start[turn] and self._denied < policy.backfill_depth):
                self._take(queued.jobs[place])
            else:
                self._waits(queued.jobs[place])
                self.waits.append(queued.behind[place])
            turn += 1
        passed_over = np.arange(len(places)) >= turn
        for later in np.flatnonzero((worded | may_start) & passed_over):
            if worded[later] or self._denied < policy.backfill_depth:
                self._take(queued.jobs[places[later]])
                passed_over[later] = False
        # As they are listed from here on: so they lie in memory, and no order matters any more.
        rest: list[int] = np.sort(line[passed_over]).tolist()
        self.waits += [queued.behind[place] for place in rest]
        self.least_waiting = min(self.least_waiting, int(needs[passed_over].min(initial=UNLIMITED)))

    def _worded(self, queued: Queued, line: Integers, needs: Integers) -> Flags:
        """Who in line waits for something else than the others, and is told so."""
        worded = queued.column("is_bounded")[line] | (needs > self._largest)
        if self._has_limits:
            left = [min(self._books.quota_left(user), UNLIMITED) for user in queued.users]
            worded |= np.array(left, np.int64)[queued.column("user")[line]] < needs
        return worded

    def _take(self, job: JobRecord) -> None:
        """The job's turn, and its outcome written down."""
        if max(self._most_now, self._most_unkept) < job.budget_min_bytes <= self._largest:
            outcome = self._limited(job)
            if outcome is None:
                self._waits(job)
                outcome = behind(job.id)
        else:
            outcome = self._turn(job)
        if isinstance(outcome, Wait):
            self.waits.append(outcome)
        else:
            self.starts.append((job, *outcome))

    def _turn(self, job: JobRecord) -> tuple[DeviceBooks, int] | Wait:
        """Where the job starts now, and with how many bytes, or why it does not."""
        wait = self._limited(job) or self._never(job)
        if wait is not None:
            return wait
        place = self._start(job)
        if place is not None:
            return place
        first_for = [one for one in self._books.devices if one.shadow is None and one.could_ever(job)]
        if first_for and self._is_first_for_host(job):
            return self._wait_in_front(job, first_for)
        self._denied += 1
        self._waits(job)
        return behind(job.id)

    def _look(self) -> None:
        """Note the most that is free, and the largest device that is kept for nobody: what the next turn may find."""
        self._most_now = self._most_unkept = -1
        for device in self._books.devices:
            now, shadow = device.bytes.now, device.shadow
            if shadow is None:
                self._most_unkept = max(self._most_unkept, device.capacity)
            elif shadow.until is None:
                now = min(now, shadow.bytes_left)
            self._most_now = max(self._most_now, now)

    def _waits(self, job: JobRecord) -> None:
        if len(self.front) < self._books.policy.forecast_depth:
            self.front.append((len(self.waits), job))
        self.least_waiting = min(self.least_waiting, job.budget_min_bytes)

    # ---- not now, whatever is free ---------------------------------------------------------------------

    def _limited(self, job: JobRecord) -> Wait | None:
        """The wait of a job that its array or its user's quota keeps; it holds nobody up."""
        books = self._books
        if job.array_limit is not None and books.tasks.get(job.array or "", 0) >= job.array_limit:
            message = f"{job.array_limit} tasks of its array may run at once"
            return Wait(job.id, WaitReason.ARRAY_LIMIT, message)
        if books.quotas and books.quota_left(job.user) < job.budget_min_bytes:
            limit = books.quotas[job.user].limit_bytes or 0
            message = f"needs {format_bytes(job.budget_min_bytes)}; {job.user} may hold {format_bytes(limit)} at once"
            return Wait(job.id, WaitReason.QUOTA, message)
        return None

    def _never(self, job: JobRecord) -> Wait | None:
        """The wait of a job that the cluster is too small for as it is now; it keeps nothing."""
        books, needs = self._books, job.budget_min_bytes
        if job.host_bytes > books.host.usable:
            copy, all_of_it = format_bytes(job.host_bytes), format_bytes(books.host.usable)
            message = f"its host copy needs {copy} of RAM; all jobs together may use {all_of_it}"
            return Wait(job.id, WaitReason.HOST_MEMORY, message)
        if any(device.could_ever(job) for device in books.devices):
            return None
        if any(device.most(job) >= needs for device in books.devices):
            needs_link = format_bytes(job.link_min_bytes_per_s)
            message = f"needs {needs_link}/s of a link to be no slower than it may; no device has that"
            return Wait(job.id, WaitReason.LINK, message)
        for device in books.devices:
            if device.view.foreign_bytes and device.most(job) + device.view.foreign_bytes >= needs:
                message = f"needs {format_bytes(needs)}; processes that are not ours are on {device.id}"
                return Wait(job.id, WaitReason.FOREIGN_PROCESS, message)
        keeper = books.hours.keeper
        if keeper is not None and any(device.capacity >= needs for device in books.devices):
            in_s, clock = books.hours.opening(keeper.name) or (0.0, "never")
            kept = format_bytes(keeper.interactive_floor_bytes)
            message = f"{kept} of each device are for interactive jobs until {clock}"
            return Wait(job.id, WaitReason.WINDOW, message, books.now + in_s)
        most = format_bytes(max(self._largest, 0))
        message = f"needs {format_bytes(needs)}; the largest device of this cluster has {most}"
        return Wait(job.id, WaitReason.RESOURCES, message)

    # ---- now -------------------------------------------------------------------------------------------

    def _start(self, job: JobRecord) -> tuple[DeviceBooks, int] | None:
        """Start the job where the fewest bytes are left over, if that is somewhere, and delays nobody."""
        books = self._books
        host_bytes = books.host.needs(job)
        if host_bytes > books.host.now and host_bytes:
            return None
        end = books.now + run_s(job) if books.shadows else inf
        if not all(shadow.lets_host(host_bytes, end) for shadow in books.shadows):
            return None
        best: tuple[int, str, DeviceBooks, int] | None = None
        for device in books.devices:
            if device.room(job) < job.budget_min_bytes or device.link.now < job.link_min_bytes_per_s:
                continue
            needs, shadow = self._books.needs(device, job), device.shadow
            if needs is None or device.room(job) < needs:
                continue
            if shadow is not None and not shadow.lets_device(job, needs, device.use(job, needs), end):
                continue
            left = device.room(job) - needs
            if best is None or (left, device.id) < best[:2]:
                best = left, device.id, device, needs
        if best is None:
            return None
        _, _, chosen, size = best
        books.start(job, chosen, size)
        self._look()
        return chosen, size

    # ---- first in line ---------------------------------------------------------------------------------

    def _is_first_for_host(self, job: JobRecord) -> bool:
        """Whether the job takes no host memory that somebody ahead of it waits for."""
        host_bytes = self._books.host.needs(job)
        if not self._books.shadows or not host_bytes:
            return True
        end = self._books.now + run_s(job)
        return all(shadow.lets_host(host_bytes, end) for shadow in self._books.shadows)

    def _wait_in_front(self, job: JobRecord, devices: Sequence[DeviceBooks]) -> Wait:
        """Have room made for the job on one of the devices, or keep them for it."""
        room = self._coming(job, devices)
        if room is None and self._rooms < self._books.policy.rooms_at_once:
            self._rooms += 1
            room = self._shrunk(job, devices)
            if room is None and not any(self._will_have_room(job, device) for device in devices):
                room = self._preempted(job, devices)
        if room is not None:
            carry_out(self._books, room, f"room for job {job.id}", job.id)
            wait = self._room_is_made(job, room.device)
            size = self._books.needs(room.device, job)
            assert size is not None  # else there would not be room
            self._books.claim(job, room.device, size)
        else:
            wait = self._stuck(job, devices)
            wait = Wait(job.id, wait.reason, wait.message, keep_for(self._books, devices, job))
            self._waits(job)
        self._look()
        return wait

    def _coming(self, job: JobRecord, devices: Sequence[DeviceBooks]) -> Room | None:
        """A device on which enough is on its way back already."""
        host_bytes = self._books.host.needs(job)
        if host_bytes > self._books.host.soon and host_bytes:
            return None
        enough = [
            (device.bytes.soon - device.kept_from(job), device.id, device)
            for device in devices
            if (needs := self._books.needs(device, job)) is not None
            and device.bytes.soon - device.kept_from(job) >= needs
            and device.link.soon >= job.link_min_bytes_per_s
        ]
        return Room(min(enough)[2], []) if enough else None

    def _shrunk(self, job: JobRecord, devices: Sequence[DeviceBooks]) -> Room | None:
        rooms = [room for device in devices if (room := by_shrinking(self._books, device, job)) is not None]
        return min(rooms, key=lambda room: (room.damage_s, len(room.shrinks), room.device.id), default=None)

    def _will_have_room(self, job: JobRecord, device: DeviceBooks) -> bool:
        """Whether shrinking will do once those who were asked before have answered: nobody is to be stopped then."""
        return (
            (needs := self._books.needs(device, job, -device.strain)) is not None
            and device.bytes.soon + device.reclaimable - device.kept_from(job) >= needs
            and device.link.soon >= job.link_min_bytes_per_s
            and self._books.host.soon >= self._books.host.needs(job)
        )

    def _preempted(self, job: JobRecord, devices: Sequence[DeviceBooks]) -> Room | None:
        rooms = [room for device in devices if (room := by_preempting(self._books, device, job)) is not None]
        return min(
            rooms,
            key=lambda room: (
                max(victim.job.priority for victim in room.victims),
                len(room.victims),
                room.damage_s,
                room.device.id,
            ),
            default=None,
        )

    def _room_is_made(self, job: JobRecord, device: DeviceBooks) -> Wait:
        """The wait of a job that starts as soon as those who were asked have answered."""
        makers = [one for one in device.holders if one.target < one.promised]
        steps_s = [one.job.step_s or _A_STEP_S for one in makers]
        if makers:
            names = _listed([one.job.id for one in makers])
            message = f"{names} {'is' if len(makers) == 1 else 'are'} making room for it on {device.id}"
        else:
            message = "a job that is stopping frees what it needs"
        return Wait(job.id, WaitReason.RESOURCES, message, self._books.now + max(steps_s, default=_A_STEP_S))

    def _has_room(self, device: DeviceBooks, job: JobRecord) -> bool:
        """Whether there are bytes for the job now, and the traffic on the link is light enough for it."""
        needs = self._books.needs(device, job)
        return needs is not None and device.room(job) >= needs

    def _would_fit(self, job: JobRecord) -> bool:
        """Whether the job could start at once if nothing were kept for those ahead of it."""
        return self._books.host.needs(job) <= self._books.host.now and any(
            self._has_room(device, job) and device.link.now >= job.link_min_bytes_per_s
            for device in self._books.devices
        )

    def _stuck(self, job: JobRecord, devices: Sequence[DeviceBooks]) -> Wait:
        """What the first in line for these devices waits for."""
        books = self._books
        if self._would_fit(job):
            return behind(job.id)
        needs = f"needs {format_bytes(job.budget_min_bytes)}"
        with_bytes = [device for device in devices if device.room(job) >= job.budget_min_bytes]
        with_room = [device for device in with_bytes if self._has_room(device, job)]
        for device in with_bytes:
            device.is_crowded = device not in with_room
        if any(device.link.now >= job.link_min_bytes_per_s for device in with_room):
            copy, free = format_bytes(books.host.needs(job)), format_bytes(max(books.host.now, 0))
            return Wait(job.id, WaitReason.HOST_MEMORY, f"its host copy needs {copy} of RAM; {free} is free")
        if with_room:
            needs_link = format_bytes(job.link_min_bytes_per_s)
            message = f"needs {needs_link}/s of the link to {with_room[0].id} to be no slower than it may"
            return Wait(job.id, WaitReason.LINK, message)
        if with_bytes:
            message = f"the jobs on {with_bytes[0].id} use as much of its link as they may together"
            return Wait(job.id, WaitReason.LINK, message)
        for device in devices:
            foreign = device.view.foreign_bytes
            if foreign and device.room(job) + foreign >= job.budget_min_bytes:
                message = f"{needs}; processes that are not ours hold {format_bytes(foreign)} of {device.id}"
                return Wait(job.id, WaitReason.FOREIGN_PROCESS, message)
        best = max(devices, key=lambda device: (device.room(job), device.id))
        free, all_of_it = format_bytes(max(best.room(job), 0)), format_bytes(best.capacity)
        message = f"{needs}; the most is free on {best.id}: {free} of {all_of_it}"
        return Wait(job.id, WaitReason.RESOURCES, message)


def _listed(ids: Sequence[str]) -> str:
    """`job 3`, or `jobs 3, 4 and 5`."""
    if len(ids) == 1:
        return f"job {ids[0]}"
    return f"jobs {', '.join(ids[:-1])} and {ids[-1]}"

"""Making room on a device: whose bytes to ask for so that it costs least, and whom to preempt when that is not enough.

Owns the choice among those who hold bytes. Whether room is to be made at all, and for whom, is decided in `line.py` and
`running.py`.

[Note: least damage] Bytes are asked for where they cost the fewest seconds: each job's forecast says how much longer
its remaining steps take in a smaller budget, part by part of the curve, and the cheapest part of any job goes first.
Its guarantee bounds every job's loss, so that none is slowed down beyond its `max_slowdown`. A job that stands
still loses nothing and gives first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.books import Books
from superpipe_cluster.scheduling.device_books import DeviceBooks, Holder


@dataclass(slots=True)
class Room:
    """A way to make room on a device.

    Attributes:
        device: where.
        shrinks: who would be asked, and for which budget.
        victims: who would be preempted.
        damage_s: seconds that those who are asked lose.
    """

    device: DeviceBooks
    shrinks: list[tuple[Holder, int]]
    victims: Sequence[Holder] = ()
    damage_s: float = 0.0


def soft_floor(holder: Holder) -> int:
    """How far a job may be shrunk to let another one in."""
    return holder.floor


def hard_floor(holder: Holder) -> int:
    """How far a job can be shrunk at all: where its program stops working."""
    job = holder.job
    if not job.may_shrink:
        return holder.floor
    workable = max(job.floor_bytes, job.curve[0][0] if job.curve else 0)
    return min(holder.floor, workable) if workable else holder.floor


def cheapest(
    holders: Iterable[Holder],
    missing: int,
    horizon_s: float,
    floor: Callable[[Holder], int] = soft_floor,
) -> tuple[list[tuple[Holder, int]], float]:
    """Whom to ask for `missing` bytes, or for as many of them as there are. See [Note: least damage].

    Returns:
        Who, and for which budget; and the seconds that it costs.
    """
    parts: list[
        tuple[float, int, int, int]
    ] = []  # (cost of a byte, number, place on its way down, where it ends)
    able = [one for one in holders if one.can_be_asked and one.target > floor(one)]
    ways = [one.way_down(floor(one), horizon_s) for one in able]
    for number, way in enumerate(ways):
        parts.append((way[0][1], number, 0, way[0][0]))
    heapify(parts)
    targets: dict[int, int] = {}
    damage_s = 0.0
    while missing > 0 and parts:
        cost, number, place, end = heappop(parts)
        high = targets.get(number, able[number].target)
        given = min(high - end, missing)
        targets[number] = high - given
        missing -= given
        damage_s += cost * given
        if place + 1 < len(ways[number]):
            below, below_cost = ways[number][place + 1]
            heappush(parts, (below_cost, number, place + 1, below))
    return [(able[number], target) for number, target in sorted(targets.items())], damage_s


def by_shrinking(books: Books, device: DeviceBooks, job: JobRecord) -> Room | None:
    """The cheapest way to let the job in by shrinking others; None when their floors do not allow it."""
    if device.link.soon < job.link_min_bytes_per_s or books.host.soon < books.host.needs(job):
        return None
    there = device.bytes.soon - device.kept_from(job)
    can_be_there = there + sum(one.target - one.floor for one in device.holders if one.can_be_asked)
    if job.budget_min_bytes > can_be_there:
        return None
    needs = books.needs(device, job)
    if needs is None or needs > can_be_there:
        return None
    missing = needs - there
    shrinks, damage_s = cheapest(device.holders, missing, books.policy.horizon_s)
    room = Room(device, shrinks, damage_s=damage_s)
    return room if _may_start_in(books, room, job, needs) else None


def by_preempting(books: Books, device: DeviceBooks, job: JobRecord) -> Room | None:
    """The fewest victims whose bytes let the job in, the others shrunk where needed; None when none would do.

    Victims are of a lower class, or on bytes that the job's user is owed; of the latter only as many as leave their
    own users what those are guaranteed.
    """
    owed = books.guaranteed_left(job.user) >= job.budget_min_bytes
    candidates = sorted((one for one in device.holders if _may_go(books, one, job, owed)), key=least_first)
    if not candidates:
        return None
    link = job.link_min_bytes_per_s - device.link.soon
    host = books.host.needs(job) - books.host.soon
    kept = device.kept_from(job) - device.bytes.soon
    spare = sum(one.target - one.floor for one in device.holders if one.can_be_asked)

    def suffice(victims: Sequence[Holder]) -> bool:
        needs = books.needs(device, job, sum(device.use(one.job, one.target) for one in victims))
        return needs is not None and (
            # What a victim could be asked for is part of `spare`.
            sum(one.floor if one.can_be_asked else one.target for one in victims) + spare >= needs + kept
            and sum(one.job.link_min_bytes_per_s for one in victims) >= link
            and books.host.freed_by([one.job for one in victims], job) >= host
        )

    def lawful(victims: Sequence[Holder]) -> bool:
        borrowed: dict[str, int] = {}
        for one in victims:
            if one.job.priority >= job.priority:
                left = borrowed.get(one.job.user, -books.guaranteed_left(one.job.user))
                borrowed[one.job.user] = left - one.promised
        return all(left >= 0 for left in borrowed.values())

    victims = fewest(candidates, suffice, lawful)
    if victims is None:
        return None
    chosen = {id(one) for one in victims}
    rest = [one for one in device.holders if id(one) not in chosen]
    needs = books.needs(device, job, sum(device.use(one.job, one.target) for one in victims))
    assert needs is not None  # or they would not suffice
    missing = needs + kept - sum(one.target for one in victims)
    shrinks, damage_s = cheapest(rest, missing, books.policy.horizon_s)
    room = Room(device, shrinks, victims, damage_s)
    return room if _may_start_in(books, room, job, needs) else None


def fewest(
    candidates: Sequence[Holder],
    suffice: Callable[[Sequence[Holder]], bool],
    lawful: Callable[[Sequence[Holder]], bool] = lambda _: True,
) -> Sequence[Holder] | None:
    """The first candidate that suffices alone, else the largest ones until they do, and none that is not needed.

    Args:
        candidates: in the order in which they are to be taken if it is all the same.
        suffice: whether these are enough.
        lawful: whether these may be taken together.
    """
    for one in candidates:
        if suffice([one]) and lawful([one]):
            return [one]
    chosen: list[Holder] = []
    for one in sorted(candidates, key=lambda one: -one.target):
        if not lawful([*chosen, one]):
            continue
        chosen.append(one)
        if suffice(chosen):
            break
    else:
        return None
    for one in sorted(chosen, key=least_first, reverse=True):
        others = [other for other in chosen if other is not one]
        if suffice(others):
            chosen = others
    return chosen


def carry_out(books: Books, room: Room, why: str, for_job: str | None) -> None:
    """Ask everybody for what the plan takes from them."""
    for victim in room.victims:
        books.preempt(victim, why, for_job)
    for holder, target in room.shrinks:
        books.shrink(holder, target, why, for_job)


def least_first(holder: Holder) -> tuple[int, float, int, str]:
    """Whom to stop first: the lowest class, then the youngest run, which has least to lose."""
    job = holder.job
    return job.priority, -(job.started_at or math.inf), len(job.id), job.id


def _may_start_in(books: Books, room: Room, job: JobRecord, size: int) -> bool:
    """Whether the job may start in `size` bytes once this room is made: who is shrunk uses more of the link."""
    device = room.device
    relieved = sum(device.use(one.job, one.target) for one in room.victims)
    more = sum(device.use(one.job, target) - device.use(one.job, one.target) for one, target in room.shrinks)
    needs = books.needs(device, job, relieved - more)
    return needs is not None and needs <= size


def _may_go(books: Books, holder: Holder, job: JobRecord, owed: bool) -> bool:
    """Whether the job may have this one stopped, alone."""
    victim = holder.job
    if not holder.can_be_stopped or victim.started_at is None:
        return False
    if books.now - victim.started_at < books.policy.min_runtime_s:
        return False
    return victim.priority < job.priority or (
        owed and victim.priority == job.priority and victim.user != job.user
    )

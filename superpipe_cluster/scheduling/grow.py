"""Who gets the bytes that nobody waits for.

Owns that share-out, to jobs that start now and to jobs that run. Leftover bytes go where each of them saves most
seconds, by the jobs' own forecasts.

[Note: hysteresis] A running job is offered more only when it has had its budget for `grow_hold_s` and its steps become
shorter by `grow_min_gain`; bytes are never taken from one job to make another one faster; and nothing grows where a
waiting job could run beside it. So after every change the budgets come to rest. A program that had use for less and now
has for more takes it back without either: the rest it has had, and what it gave is not weighed as a gain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.scheduling.books import Books
from superpipe_cluster.scheduling.curve import gain, left_s, rise
from superpipe_cluster.scheduling.device_books import DeviceBooks, Holder


@dataclass(slots=True, eq=False)
class _Taker:
    """A job that could use more.

    Attributes:
        job: its record.
        device: where it is.
        had: its budget as decided so far.
        gets: the same with its share.
        floor: what it could be shrunk to again.
        holder: None for a job that starts now.
    """

    job: JobRecord
    device: DeviceBooks
    had: int
    gets: int
    floor: int
    holder: Holder | None


def share_out(
    books: Books, starts: Iterable[tuple[JobRecord, DeviceBooks, int]], least_waiting: int
) -> dict[str, int]:
    """Give what is left over to those who gain most by it.

    Args:
        books: after everybody in the line had their turn. Growth of running jobs is written there.
        starts: the jobs that start now, where, and with how many bytes, in the order of the line.
        least_waiting: the fewest bytes that one of those needs who wait for bytes.

    Returns:
        The budgets of those that start.
    """
    takers = [
        _Taker(job, device, size, size, min(size, max(job.budget_min_bytes, job.floor_bytes)), None)
        for job, device, size in starts
    ]
    takers += [
        _Taker(holder.job, holder.device, holder.target, holder.target, holder.floor, holder)
        for holder in books.holders
        if holder.device is not None and _may_grow(books, holder)
    ]
    by_device: dict[str, list[_Taker]] = {}
    for taker in takers:
        if not _is_wanted(taker, least_waiting):
            by_device.setdefault(taker.device.id, []).append(taker)
    for device in books.devices:
        _share(books, by_device.get(device.id, []))
    return {taker.job.id: taker.gets for taker in takers if taker.holder is None}


def _may_grow(books: Books, holder: Holder) -> bool:
    job = holder.job
    return bool(
        job.may_grow
        # A program that nothing is forecast of and that needs every byte it has does not stream.
        and (job.curve or job.floor_bytes < holder.target or _is_told(job))
        and job.state is JobState.RUNNING
        and holder.can_be_asked
        and not holder.why
        and job.pause_asked is None
        and holder.target < job.most_bytes
        and (_is_told(job) or books.now - _since(job) >= books.policy.grow_hold_s)
        and not books.hours.has_closed(job.window)
    )


def _since(job: JobRecord) -> float:
    return max(job.budget_since or 0.0, job.started_at or 0.0)


def _is_told(job: JobRecord) -> bool:
    """Whether its program has said what it has use for after it was given its budget."""
    return job.wants_since is not None and job.wants_since >= _since(job)


def _is_wanted(taker: _Taker, least_waiting: int) -> bool:
    """Whether somebody who waits could run beside it, so that more bytes for it might keep them out.

    Who waits for less traffic on the link is let in sooner when those who run have more.
    """
    return not taker.device.is_crowded and taker.floor + least_waiting <= taker.device.capacity


def _share(books: Books, takers: list[_Taker]) -> None:
    """Give the bytes of one device away, those that save most first. See [Note: hysteresis]."""
    offers: list[tuple[float, int, int]] = []
    for number, taker in enumerate(takers):
        if _is_worth_asking(books, taker, _limit(books, taker)):
            _offer(books, offers, number, taker)
    heapify(offers)
    while offers:
        _, number, to = heappop(offers)
        taker = takers[number]
        if to > _limit(books, taker):
            # Somebody else, or another job of the same user, was faster: see what is left for this one.
            _offer(books, offers, number, taker)
            continue
        _take(books, taker, to)
        _offer(books, offers, number, taker)
    for taker in takers:
        _settle(books, taker)


def _offer(books: Books, offers: list[tuple[float, int, int]], number: int, taker: _Taker) -> None:
    best = rise(taker.job, taker.gets, _limit(books, taker), left_s(taker.job, books.policy.horizon_s))
    if best is not None:
        to, saved = best
        heappush(offers, (-saved, number, to))


def _limit(books: Books, taker: _Taker) -> int:
    """The most it could have now."""
    free = min(taker.device.room(taker.job), books.quota_left(taker.job.user))
    return min(taker.job.most_bytes, taker.gets + max(free, 0))


def _is_worth_asking(books: Books, taker: _Taker, to: int) -> bool:
    """A job that starts takes what it gets at no cost, one that had it before takes it back; others have to copy."""
    return (
        taker.holder is None
        or _is_told(taker.job)
        or gain(taker.job, taker.had, to) >= books.policy.grow_min_gain
    )


def _take(books: Books, taker: _Taker, to: int) -> None:
    books.top_up(taker.job, taker.device, to - taker.gets)
    taker.gets = to


def _settle(books: Books, taker: _Taker) -> None:
    """Write the growth of a running job down, or give back what is not worth asking for."""
    if taker.holder is None or taker.gets == taker.had:
        return
    books.top_up(taker.job, taker.device, taker.had - taker.gets)
    if _is_worth_asking(books, taker, taker.gets):
        books.grow(taker.holder, taker.gets, "nobody else wants these bytes")

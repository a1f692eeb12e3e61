"""What jobs that run are asked for on account of nobody in the line: windows, foreign processes, their owners' changes.

Owns these five, in this order: the end of a window, a range that was lowered, a device that has fewer bytes than were
promised, what a closed window keeps for interactive jobs, and guarantees that are not met. All before anybody in the
line has a turn. Growth is `grow.py`.
"""

from __future__ import annotations

from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.scheduling.books import Books
from superpipe_cluster.scheduling.decisions import Pause, Resume
from superpipe_cluster.scheduling.device_books import INTERACTIVE, DeviceBooks, Holder
from superpipe_cluster.scheduling.room import (
    Room,
    carry_out,
    cheapest,
    fewest,
    hard_floor,
    least_first,
    soft_floor,
)
from superpipe_cluster.sizes import format_bytes

_STANDS_OR_RUNS = (JobState.RUNNING, JobState.PAUSED)


def mind(books: Books) -> list[Pause | Resume]:
    """Ask running jobs for what is due whoever waits; the pauses and resumptions among it."""
    turns: list[Pause | Resume] = []
    for holder in books.holders:
        turn = _window(books, holder)
        if turn is not None:
            turns.append(turn)
        _lowered(books, holder)
    for device in books.devices:
        _overbooked(books, device)
        _kept_for_interactive(books, device)
        _owed(books, device)
    return turns


def _window(books: Books, holder: Holder) -> Pause | Resume | None:
    """What the job asked for at the end of its window, and the way back when that opens again."""
    job = holder.job
    if not holder.can_be_stopped:
        return None
    closed = books.hours.has_closed(job.window)
    stands_or_runs = job.state in _STANDS_OR_RUNS
    if job.pause_asked == "window" and stands_or_runs and not (closed and job.at_window_end == "pause"):
        return Resume(job.id)
    if not closed:
        return None
    why = f"its window {job.window} has closed"
    if job.at_window_end == "requeue":
        books.preempt(holder, why)
    elif job.at_window_end == "pause":
        return Pause(job.id) if stands_or_runs and job.pause_asked is None else None
    elif holder.can_be_asked and holder.target > holder.floor:
        books.shrink(holder, holder.floor, why)
    return None


def _lowered(books: Books, holder: Holder) -> None:
    """Its owner has lowered what it may hold at most, or its program has no use for all of it."""
    job = holder.job
    most = max(job.most_bytes, job.floor_bytes)
    if holder.can_be_asked and holder.target > most > 0:
        why = f"its range ends at {format_bytes(job.budget_max_bytes)} now"
        if job.most_bytes < job.budget_max_bytes:
            why = "its program has no use for more now"
        books.shrink(holder, most, why)


def _overbooked(books: Books, device: DeviceBooks) -> None:
    """More is promised than there is: a process that is not ours came, or the device has become smaller.

    First the jobs give what they can spare, then they go down to where their programs stop working. Only when that is
    not enough, the youngest of the lowest class go. Who cannot be asked at the moment counts as one who will be: nobody
    is stopped for bytes that are likely to come back.
    """
    missing = -device.bytes.soon
    if missing <= 0:
        return
    why = f"{device.id} has {format_bytes(device.capacity)} left for our jobs"
    if device.view.foreign_bytes:
        why = f"processes that are not ours hold {format_bytes(device.view.foreign_bytes)} of {device.id}"
    short = missing - sum(one.target - hard_floor(one) for one in device.holders)
    if short > 0:
        candidates = sorted((one for one in device.holders if one.can_be_stopped), key=least_first)
        victims = fewest(candidates, lambda chosen: sum(map(hard_floor, chosen)) >= short)
        carry_out(books, Room(device, [], victims or candidates), why, None)
    for floor in (soft_floor, hard_floor):
        shrinks, _ = cheapest(device.holders, -device.bytes.soon, books.policy.horizon_s, floor)
        carry_out(books, Room(device, shrinks), why, None)


def _kept_for_interactive(books: Books, device: DeviceBooks) -> None:
    """Have the others give back, as far as their floors allow, what they hold of the interactive floor."""
    if not device.interactive_floor:
        return
    others = [one for one in device.holders if one.job.priority < INTERACTIVE]
    excess = sum(one.target for one in others) - (device.capacity - device.interactive_floor)
    if excess > 0:
        shrinks, _ = cheapest(others, excess, books.policy.horizon_s)
        carry_out(books, Room(device, shrinks), "these bytes are for interactive jobs now", None)


def _owed(books: Books, device: DeviceBooks) -> None:
    """Give back to running jobs what they have less than their guarantee, before anybody new comes in.

    Their owners raised the range, or a foreign process had taken the bytes. What is not free yet is set aside.
    """
    for holder in device.holders:
        job = holder.job
        more = min(job.budget_min_bytes - holder.target, books.quota_left(job.user))
        if more <= 0 or job.state is not JobState.RUNNING or not holder.can_be_asked or holder.why:
            continue
        rested = books.now - (job.budget_since or 0.0) >= books.policy.grow_hold_s
        if rested and device.room(job) >= more:
            books.grow(holder, holder.target + more, "its guaranteed bytes are there (again)")
        else:
            device.bytes.claimed += min(more, max(device.bytes.soon - device.kept_from(job), 0))

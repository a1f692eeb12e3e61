"""Does a start put off the job that is first in line? Judged by the programs' true seconds.

Owns the arithmetic, the other way round than the scheduler's: how long the others stay at most, how long the one that
starts stays at least. It tells nothing where more than bytes decides who is first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from simulation.books import Books
from simulation.programs import Folder
from simulation.workers import SAVE_S
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState


@dataclass(frozen=True, slots=True)
class PutOff:
    """By how much the first in line has to wait longer, at the least."""

    by_s: float
    sentence: str


def put_off(
    books: Mapping[str, Books],
    folders: Mapping[str, Folder],
    capacities: Mapping[str, int],
    started: JobRecord,
) -> PutOff | None:
    """What the start of `started` means for the first in line; None when nothing can be said.

    Args:
        books: of all jobs, `started` among those that hold a device.
        folders: with the programs.
        capacities: bytes by device.
        started: the job that was just placed.
    """
    first = _first_in_line(books)
    if first is None or started.priority > first.priority or started.submitted_at <= first.submitted_at:
        return None
    if (started.queued_at or 0.0) < (first.queued_at or 0.0):
        return None  # it has waited longer, since the first one was back in line, and may have aged past it
    place = started.device or ""
    alone = {
        device: _empty_in_s(books, folders, device, started.id, size - first.budget_min_bytes)
        for device, size in capacities.items()
    }
    beside = dict(alone)
    if started.budget_min_bytes + first.budget_min_bytes > capacities[place]:
        program = folders[started.id].program
        beside[place] = max(alone[place], program.curve[-1][1] * (program.steps - started.step))
    could = [device for device, size in capacities.items() if size >= first.budget_min_bytes]
    before_s = min((alone[device] for device in could), default=inf)
    now_s = min((beside[device] for device in could), default=inf)
    if before_s == inf:
        return None
    return PutOff(
        now_s - before_s,
        f"before job {first.id}, which could have had a device in {before_s:.0f} s at the latest, and now waits "
        f"{now_s:.0f} s at least",
    )


def _first_in_line(books: Mapping[str, Books]) -> JobRecord | None:
    """The job that nobody may delay; None where more than bytes decides who that is."""
    users = {book.record.user for book in books.values()}
    waiting = [book.record for book in books.values() if book.record.state is JobState.QUEUED]
    if len(users) > 1 or not waiting or not all(_is_plain(record) for record in waiting):
        return None
    return min(waiting, key=lambda record: (-record.priority, record.submitted_at, int(record.id)))


def _empty_in_s(
    books: Mapping[str, Books], folders: Mapping[str, Folder], device: str, but_for: str, beside_bytes: int
) -> float:
    """Seconds until all has ended on the device, at the latest, but for those that stand still in `beside_bytes`."""
    latest = 0.0
    for book in books.values():
        record = book.record
        if record.device != device or not record.state.holds_device or record.id == but_for:
            continue
        if record.state is JobState.PAUSED or record.pause_asked is not None:
            beside_bytes -= record.promised_bytes
            if beside_bytes < 0:
                return inf
            continue
        program = folders[record.id].program
        saves_s = (program.steps / program.save_every + 2) * SAVE_S
        steps_s = program.curve[0][1] * (program.steps - record.step)
        latest = max(latest, steps_s + program.boots_s + saves_s)
    return latest


def _is_plain(record: JobRecord) -> bool:
    """Whether nothing but device bytes can keep the job waiting."""
    return not (
        record.after or record.after_any or record.after_fail or record.array_limit or record.window
        or record.begin_at or record.link_min_bytes_per_s or record.host_bytes
    )  # fmt: skip

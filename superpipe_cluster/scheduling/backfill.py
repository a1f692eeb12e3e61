"""When the first in line can start, and what is left beside it then; when those behind it are likely to.

Owns looking ahead. It goes by likely ends (`curve.ends_at`), never by wishes: where nobody can tell when enough comes
back, nobody can tell when a job starts.

[Note: backfill] EASY backfilling (Lifka 1995; Mu'alem & Feitelson 2001): the first job in line that has to wait for a
device gets a promise, the earliest moment at which enough will have come back there (the shadow time), and what will
be left beside it then. Those behind it may start now if they end before that moment, or are content with what is left
beside it. So they use what would lie idle, and do not delay it by a second. Where the ends are not known there is no
such moment, and nobody overtakes on any device that the first one could run on. Each device has a first one in line of
its own: the first job that could run there and that no device was kept for yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from math import isinf

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.books import Books, End
from superpipe_cluster.scheduling.curve import run_s
from superpipe_cluster.scheduling.device_books import UNLIMITED, DeviceBooks, Shadow


def keep_for(books: Books, devices: Sequence[DeviceBooks], job: JobRecord) -> float | None:
    """Keep what the job needs on the devices that it is the first in line for. See [Note: backfill].

    Returns:
        When it can start, unix seconds; None when nobody can tell.
    """
    best: tuple[float, str, DeviceBooks, Shadow] | None = None
    unknown: list[DeviceBooks] = []
    ends = books.ends()
    for device in devices:
        shadow = _shadow(books, device, job, ends)
        if shadow is None or shadow.until is None:
            unknown.append(device)
        elif best is None or (shadow.until, device.id) < best[:2]:
            best = shadow.until, device.id, device, shadow
    if best is None:
        host_left = max(books.host.now - books.host.needs(job), 0)
        books.keep(unknown, Shadow(None, 0, 0, 0, host_left))
        return None
    until, _, device, shadow = best
    books.keep([device], shadow)
    for other in unknown:  # it may have room there sooner, nobody knows
        other.shadow = Shadow(None, 0, 0, 0, UNLIMITED)
    return until


def _shadow(books: Books, device: DeviceBooks, job: JobRecord, ends: Sequence[End]) -> Shadow | None:
    """The earliest moment at which the job fits on the device, and what is left beside it; None if unknown."""
    size, spare = device.bytes.soon - device.kept_from(job), device.reclaimable
    link = device.link.soon - job.link_min_bytes_per_s
    host = books.host.soon - books.host.needs(job)
    at, relieved, strain = books.now, 0, device.strain

    def fit() -> tuple[int, int] | None:
        """What is left then of the bytes and of the traffic; with nobody shrunk if that will do."""
        for room, traffic in ((size, relieved), (size + spare, relieved - strain)):
            needs = books.needs(device, job, traffic)
            if needs is not None and needs <= room:
                return room - needs, device.traffic_left + traffic - device.use(job, needs)
        return None

    left = fit()
    for end in ends:
        if left is not None and link >= 0 and host >= 0:
            break
        at = end.at
        host += end.frees(job)
        if end.device is device:
            size, spare = size + end.size, spare - end.spare
            relieved, strain = relieved + end.traffic, strain - end.strain
            link += end.link
            left = fit()
    if isinf(at) or left is None or link < 0 or host < 0:
        return None
    return Shadow(at, left[0], link, left[1], host)


def likely_starts(books: Books, line: Sequence[JobRecord]) -> dict[str, float]:
    """When the jobs of the line are likely to start if each waits for those before it; only those one can tell of.

    Args:
        books: after everybody in the line had their turn.
        line: those who wait for bytes, first one first.
    """
    free = {device.id: device.bytes.soon + device.reclaimable for device in books.devices}
    link = {device.id: device.link.soon for device in books.devices}
    relieved = dict.fromkeys(free, 0)
    host, at = books.host.soon, books.now
    number = count()
    ends = [(end.at, next(number), end) for end in books.ends() if not isinf(end.at)]
    heapify(ends)
    starts: dict[str, float] = {}
    for job in line:
        needs_link, host_bytes = job.link_min_bytes_per_s, books.host.needs(job)
        able = [device for device in books.devices if device.could_ever(job)]
        while True:
            fitting = [
                (free[device.id], device.id, device, needs)
                for device in able
                if (room := free[device.id] - device.kept_from(job)) >= job.budget_min_bytes
                and link[device.id] >= needs_link
                and host >= host_bytes
                and (needs := books.needs(device, job, relieved[device.id])) is not None
                and room >= needs
            ]
            if fitting or not ends:
                break
            end_at, _, end = heappop(ends)
            at = max(at, end_at)
            host += end.frees()
            if end.device is not None:
                free[end.device.id] += end.size - end.spare
                link[end.device.id] += end.link
                relieved[end.device.id] += end.traffic
        if not fitting:
            break
        _, chosen, device, needs = min(fitting)
        starts[job.id] = at
        free[chosen] -= needs
        link[chosen] -= needs_link
        use = device.use(job, needs)
        relieved[chosen] -= use
        host -= host_bytes
        end_at = at + run_s(job)
        if not isinf(end_at):
            heappush(
                ends,
                (
                    end_at,
                    next(number),
                    End(end_at, needs, 0, needs_link, use, 0, host_bytes, device, None, 0),
                ),
            )
    return starts

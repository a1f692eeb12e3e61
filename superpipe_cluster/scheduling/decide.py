"""The decision: `decide(snapshot)`. Its body is the table of contents of the policy.

Owns the order of the rules; each rule is in a file of its own, and README.md tells them in a page:

1. Running jobs are asked for what is due whoever waits: windows, foreign processes, guarantees (`running.py`).
2. Who waits for another job, a date or a window stands in no line (`gates.py`).
3. The others stand in line by class, quota, usage and age (`order.py`).
4. Each in turn starts, is made room for, or waits for what it says (`line.py`, `room.py`, `backfill.py`).
5. What is left over goes where it saves most (`grow.py`).

Pure: no clock, no I/O, no randomness. Integers for bytes everywhere, so that no sum is ever rounded past a capacity.
"""

from __future__ import annotations

from dataclasses import replace

from superpipe_cluster.scheduling.backfill import likely_starts
from superpipe_cluster.scheduling.books import Books
from superpipe_cluster.scheduling.decisions import Decision, Start
from superpipe_cluster.scheduling.gates import sort_out
from superpipe_cluster.scheduling.grow import share_out
from superpipe_cluster.scheduling.line import Line
from superpipe_cluster.scheduling.order import in_line
from superpipe_cluster.scheduling.running import mind
from superpipe_cluster.scheduling.snapshot import Snapshot
from superpipe_cluster.scheduling.windows import Hours


def decide(snapshot: Snapshot) -> list[Decision]:
    """What is to be done now: with running jobs where something is, and with every waiting job.

    Returns:
        First what running jobs are asked for, then one decision for every waiting job (queued or held). They are to be
        carried out in this order; each is right whether or not the others could be.
    """
    hours = Hours(snapshot.windows, snapshot.now if snapshot.wall is None else snapshot.wall)
    crowd = sort_out(snapshot, hours)
    books = Books(snapshot, crowd.holding, hours)
    turns = mind(books)
    line = Line(books)
    line.run(snapshot.queued, in_line(crowd.eligible, crowd.holding, snapshot))
    budgets = share_out(books, line.starts, line.least_waiting)
    _expect(books, line)
    return [
        *turns,
        *books.asked(),
        *(Start(job.id, device.id, budgets[job.id]) for job, device, _ in line.starts),
        *line.waits,
        *crowd.stopped,
    ]


def _expect(books: Books, line: Line) -> None:
    """Tell those at the front of the line when they are likely to start."""
    likely = likely_starts(books, [job for _, job in line.front])
    for place, job in line.front:
        wait = line.waits[place]
        if wait.expected_start_at is None and job.id in likely:
            line.waits[place] = replace(wait, expected_start_at=likely[job.id])

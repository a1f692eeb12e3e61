"""The queued jobs of a picture as a table: one row a job, oldest first.

Owns what is read of a queued job to put it in line. Who comes before whom is `order.py`'s.

[Note: a table] Ten thousand records are more than a processor's cache holds, and reading them one by one is most of
what a long line would cost. So what the scheduler needs of each is read once, when the job joins the queue or its
record changes, and kept from picture to picture in an array, whose columns are gone through in one call. The records
themselves are looked at for the few jobs whose turn it really is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.decisions import Wait, behind

Rows = NDArray[np.void]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

T = TypeVar("T")

_ROW = np.dtype(
    [
        ("number", np.int64),
        ("submitted_at", np.float64),
        # From when the waiting counts that lifts it in line, as far as its own record tells; unix seconds.
        ("since", np.float64),
        ("priority", np.int64),
        # Its guaranteed bytes.
        ("needs", np.int64),
        # Its user's place in `users`.
        ("user", np.int64),
        # Whether something may keep it from standing in line: another job, a date, a window.
        ("is_gated", np.bool_),
        # Whether its array bounds how many of its tasks run at once.
        ("is_bounded", np.bool_),
    ]
)


@dataclass(frozen=True, slots=True)
class Queued:
    """Immutable; `changed` makes the next one. Two are equal when their jobs are.

    Attributes:
        jobs: the records, oldest first; of the same moment, the one with the smaller number.
        ids: theirs.
        behind: what is said to each of them that is not first in line.
        rows: what is read of them, see `_ROW`.
        users: everybody who has, or has had, a job here.
    """

    jobs: list[JobRecord]
    ids: list[str] = field(repr=False, compare=False)
    behind: list[Wait] = field(repr=False, compare=False)
    rows: Rows = field(repr=False, compare=False)
    users: tuple[str, ...] = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.jobs)

    def column(self, name: str) -> NDArray[Any]:
        """One field of every job."""
        return self.rows[name]

    @staticmethod
    def of(jobs: Iterable[JobRecord]) -> Queued:
        """The table of these jobs, all of which are queued."""
        return _NOBODY.changed((), jobs)

    def changed(self, gone: Collection[JobRecord], new: Iterable[JobRecord]) -> Queued:
        """The table without the records `gone` (these very objects), and with the records `new`."""
        new = list(new)
        if not gone and not new:
            return self
        leaving = set(map(id, gone))
        stays = [id(job) not in leaving for job in self.jobs]
        user_numbers = {user: number for number, user in enumerate(self.users)}
        for job in new:
            user_numbers.setdefault(job.user, len(user_numbers))
        added = np.array([_row(job, user_numbers) for job in new], _ROW)
        rows = np.concatenate((self.rows[np.array(stays, np.bool_)], added))
        order = np.lexsort((rows["number"], rows["submitted_at"]))
        places = order.tolist()

        def list_of(old: list[T], added: Iterable[T]) -> list[T]:
            both = [*compress(old, stays), *added]
            return [both[place] for place in places]

        return Queued(
            list_of(self.jobs, new),
            list_of(self.ids, (job.id for job in new)),
            list_of(self.behind, (behind(job.id) for job in new)),
            rows[order],
            tuple(user_numbers),
        )


def _row(job: JobRecord, user_numbers: Mapping[str, int]) -> tuple[object, ...]:
    waits_for_jobs = job.after or job.after_any or job.after_fail
    return (
        int(job.id),
        job.submitted_at,
        max(job.submitted_at, job.queued_at or 0.0, job.begin_at or 0.0),
        job.priority,
        job.budget_min_bytes,
        user_numbers[job.user],
        bool(waits_for_jobs or job.begin_at is not None or job.window is not None),
        job.array_limit is not None,
    )


_NOBODY = Queued([], [], [], np.empty(0, _ROW), ())

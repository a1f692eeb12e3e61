"""The queue as bytes: what was written once is written again only when the job has changed.

Owns the text of the listing. Of ten thousand jobs in a queue a handful changes between two looks at it; making their
views and writing them as JSON is nearly all the work there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from superpipe_cluster.api.views import job_view
from superpipe_cluster.lifecycle.record import JobRecord


class _Written(NamedTuple):
    """A job as it was written, and of what."""

    record: JobRecord
    expected_start_at: float | None
    text: bytes


class Listing:
    """Safe to use from several threads: each reads and replaces whole entries."""

    def __init__(self) -> None:
        self._written: dict[tuple[str, bool], _Written] = {}

    def text(self, jobs: Iterable[tuple[JobRecord, bool, float | None]]) -> bytes:
        """The JSON of a `JobList`.

        Args:
            jobs: the records; whether all of each may be seen; when it is likely to start.
        """
        return b'{"jobs":[' + b",".join([self._job(*job) for job in jobs]) + b"]}"

    def _job(self, record: JobRecord, whole: bool, expected_start_at: float | None) -> bytes:
        known = self._written.get((record.id, whole))
        # The very same object: a number that was given out again, after Redis lost its last second, is another job.
        if known is None or known.record is not record or known.expected_start_at != expected_start_at:
            view = job_view(record, private=not whole, expected_start_at=expected_start_at)
            known = _Written(record, expected_start_at, view.model_dump_json().encode())
            self._written[record.id, whole] = known
        return known.text

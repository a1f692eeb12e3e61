"""The newest decision about the line as a whole: when those who wait are likely to start, and whether there is one.

Owns figures that change with every decision and are therefore in no record. A new head knows them after its first
decision.
"""

from __future__ import annotations

from collections.abc import Mapping

from superpipe_cluster.scheduling.decisions import Wait


class Outlook:
    """Written by the tick, read by the threads that answer people."""

    def __init__(self) -> None:
        self._expected: Mapping[str, float] = {}
        self._behind: Wait | None = None

    @property
    def behind(self) -> Wait | None:
        """The wait of one who is not at the front of the line; None when nobody stands there."""
        return self._behind

    def replace(self, expected: Mapping[str, float], behind: Wait | None = None) -> None:
        """Forget the last decision's figures.

        Args:
            expected: job id -> unix seconds by the store's clock.
            behind: as the property.
        """
        self._expected = expected
        self._behind = behind

    def expected_start_at(self, job_id: str) -> float | None:
        """When the job is likely to start; None when nobody can tell, or it does not wait."""
        return self._expected.get(job_id)

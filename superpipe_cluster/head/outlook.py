"""When those who wait are likely to start, as of the newest decision.

Owns a figure that changes with every decision and is therefore in no record. A new head knows it after its first
decision.
"""

from __future__ import annotations

from collections.abc import Mapping


class Outlook:
    """Written by the tick, read by the threads that answer people."""

    def __init__(self) -> None:
        self._expected: Mapping[str, float] = {}

    def replace(self, expected: Mapping[str, float]) -> None:
        """Forget the last decision's figures: job id -> unix seconds by the store's clock."""
        self._expected = expected

    def expected_start_at(self, job_id: str) -> float | None:
        """When the job is likely to start; None when nobody can tell, or it does not wait."""
        return self._expected.get(job_id)

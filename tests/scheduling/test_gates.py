"""Jobs that wait for other jobs, or for a date."""

from __future__ import annotations

import pytest

from scheduling.situations import NOW, all_waits, decided, job, starts, waits
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.scheduling.decisions import Cancel


@pytest.mark.parametrize(
    ("how", "starts_after", "cancelled_after"),
    [
        ("after", {"SUCCEEDED"}, {"FAILED", "CANCELLED"}),
        ("after_any", {"SUCCEEDED", "FAILED", "CANCELLED"}, set()),
        ("after_fail", {"FAILED", "CANCELLED"}, {"SUCCEEDED"}),
    ],
)
def test_after_ok_any_and_fail(how: str, starts_after: set[str], cancelled_after: set[str]) -> None:
    for state in JobState:
        first = job("1", 1, state=state, device="cpu:0", budget_bytes=1)
        situation = [first, job("2", **{how: ("1",)})]
        if state.value in starts_after:
            assert "2" in starts(*situation)
        elif state.value in cancelled_after:
            assert Cancel("2", EndReason.DEPENDENCY_FAILED, "1") in decided(*situation)
        else:
            wait = all_waits(*situation)["2"]
            assert (wait.reason, wait.message) == (WaitReason.DEPENDENCY, f"waits for job 1 ({state})")


def test_all_kinds_at_once() -> None:
    good, bad, open_ = job("1", state="SUCCEEDED"), job("2", state="FAILED"), job("3", 9, state="HELD")
    kinds = {"after": ("1",), "after_fail": ("2",)}
    assert "9" in starts(good, bad, job("9", **kinds))
    assert waits(good, bad, open_, job("9", **kinds, after_any=("3",)))["9"] is WaitReason.DEPENDENCY
    assert Cancel("9", EndReason.DEPENDENCY_FAILED, "2") in decided(
        good, bad, open_, job("9", after=("3", "2"))
    )


def test_a_date_is_waited_for() -> None:
    wait = all_waits(job("1", begin_at=NOW + 50))["1"]
    assert wait.reason is WaitReason.BEGIN_TIME
    assert wait.expected_start_at == NOW + 50
    assert "2027-01-15 08:00 UTC" in wait.message
    assert starts(job("1", begin_at=NOW)) == {"1": ("cpu:0", 1)}
    assert starts(job("1", 9, begin_at=NOW + 1), job("2", 5)) == {"2": ("cpu:0", 5)}

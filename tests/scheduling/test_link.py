"""The link as jobs are likely to use it: who is put together with whom, in how many bytes, and who waits for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.situations import NOW, job, running
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.scheduling.curve import least_within, link_use
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Decision, Resize, Start, Wait
from superpipe_cluster.scheduling.policy import Policy
from superpipe_cluster.scheduling.snapshot import DeviceView, Quota, Snapshot

SPEED = 100
#: Bound by the link up to 6 of its 8 bytes, where a step is as short as it can be; whole it moves nothing.
STREAMS = ((2, 3.0, 300), (6, 1.0, 100), (8, 1.0, 0))
STREAMING: dict[str, Any] = {"curve": STREAMS, "steps": 1000}


def decided(*jobs: JobRecord, capacity: int = 100, speed: int = SPEED, **fields: Any) -> dict[str, Decision]:
    view = DeviceView("cpu:0", capacity, link_bytes_per_s=speed)
    decisions = decide(Snapshot.of(jobs, [view], host_usable_bytes=1000, now=NOW, **fields))
    return {one.job_id: one for one in decisions}


def streaming(job_id: str, low: int = 2, high: int = 8, **fields: Any) -> JobRecord:
    return job(job_id, low, high, **{**STREAMING, **fields})


def streams(job_id: str, held: int, **fields: Any) -> JobRecord:
    """A running one that keeps the link busy in 2 to 6 bytes."""
    return running(job_id, "cpu:0", held, **{"low": 2, "budget_max_bytes": 8, **STREAMING, **fields})


def test_where_jobs_would_use_more_than_the_link_carries_one_more_of_the_same_user_waits() -> None:
    one = streams("1", 2, budget_max_bytes=2)
    wait = decided(one, streaming("3", 2, 2))["3"]
    assert isinstance(wait, Wait)
    assert wait.reason is WaitReason.LINK
    assert "link" in wait.message
    half = streams("1", 7, budget_max_bytes=7)
    assert isinstance(decided(half, streaming("3", 2, 2))["3"], Start)
    assert isinstance(decided(one, streaming("3", 2, 2), speed=0)["3"], Start)  # of a link nothing is known
    assert isinstance(decided(one, job("3", 2))["3"], Start)  # of whose use of it nothing is known


@pytest.mark.parametrize("fields", [{"user": "bob"}, {"priority": 2}])
def test_a_newcomer_and_somebody_who_sits_waiting_are_let_in(fields: dict[str, Any]) -> None:
    one = streams("1", 2, budget_max_bytes=2)
    assert isinstance(decided(one, streaming("3", 2, 2, **fields))["3"], Start)


def test_a_newcomer_may_crowd_the_link_by_one_more_and_not_by_two() -> None:
    two = [streams(str(number), 2, budget_max_bytes=2, user=f"user{number}") for number in (1, 2)]
    assert isinstance(decided(*two, streaming("4", 2, 2, user="bob"))["4"], Wait)
    assert isinstance(decided(two[0], streaming("4", 2, 2, user="bob"))["4"], Start)


def test_a_job_starts_with_more_than_its_guarantee_where_it_would_crowd_the_link_otherwise() -> None:
    started = decided(streams("1", 2, budget_max_bytes=2), streaming("3"), job("4", 100))["3"]
    assert isinstance(started, Start)
    assert started.budget_bytes == 7


def test_not_beyond_what_its_user_may_hold() -> None:
    asked = streams("1", 2, budget_max_bytes=2), streaming("3")
    assert isinstance(decided(*asked, quotas={"ann": Quota("ann", limit_bytes=2 + 6)})["3"], Wait)
    assert isinstance(decided(*asked, quotas={"ann": Quota("ann", limit_bytes=2 + 7)})["3"], Start)


def test_nobody_is_shrunk_for_one_who_could_not_start_then_on_account_of_the_link() -> None:
    whole = streams("1", 8, may_shrink=True), streams("2", 8, may_shrink=True)
    asked = decided(*whole, streaming("3", 4, 4), capacity=16)
    assert not any(isinstance(one, Resize) for one in asked.values())
    assert isinstance(asked["3"], Wait)
    fast = decided(*whole, streaming("3", 4, 4), capacity=16, speed=10 * SPEED)
    assert any(isinstance(one, Resize) for one in fast.values())


def test_those_who_run_grow_while_the_first_in_line_waits_for_the_link() -> None:
    asked = decided(streams("1", 2, budget_max_bytes=5), streaming("3", 2, 2))
    assert isinstance(asked["3"], Wait)
    assert [one.budget_bytes for one in asked.values() if isinstance(one, Resize)] == [5]


def test_who_waits_for_the_link_is_promised_the_moment_when_it_is_light_enough() -> None:
    one = streams("1", 2, budget_max_bytes=2, may_grow=False, step=990, step_s=3.0)
    wait = decided(one, streaming("3", 2, 2))["3"]
    assert isinstance(wait, Wait)
    assert wait.expected_start_at == NOW + 30.0
    # Who comes after it and uses the link too would be in its way, but for one that ends before.
    behind = decided(one, streaming("3", 2, 2), streaming("4", 2, 2, steps=9, user="bob"))
    assert isinstance(behind["4"], Start)
    behind = decided(one, streaming("3", 2, 2), streaming("4", 2, 2, steps=11, user="bob"))
    assert isinstance(behind["4"], Wait)


@given(
    points=st.lists(
        st.tuples(st.integers(1, 50), st.integers(1, 20), st.integers(0, 500)), min_size=1, max_size=5
    ),
    low=st.integers(1, 60),
    more=st.integers(0, 60),
    link=st.integers(0, 600),
)
def test_the_least_budget_within_a_part_of_the_link(
    points: list[tuple[int, int, int]], low: int, more: int, link: int
) -> None:
    budgets = sorted({size for size, _, _ in points})
    seconds = sorted((float(s) for _, s, _ in points), reverse=True)
    moved = sorted((size for _, _, size in points), reverse=True)
    one = job("1", low, low + more, curve=tuple(zip(budgets, seconds, moved, strict=False)))
    found = least_within(one, link)
    if found is None:
        corners = [size for size in (*budgets, low, low + more) if low <= size <= low + more]
        assert all(link_use(one, size) > link for size in corners)
    else:
        assert low <= found <= low + more
        assert link_use(one, found) <= link
        assert found == low or link_use(one, low) > link


def test_the_crowd_is_a_tunable() -> None:
    one = streams("1", 2, budget_max_bytes=2)
    assert isinstance(decided(one, streaming("3", 2, 2), policy=Policy(link_crowd=2.0))["3"], Start)

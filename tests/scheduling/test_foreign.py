"""Processes that are not ours on a device: ours give way, and are not crashed."""

from __future__ import annotations

from scheduling.situations import NOW, job, running
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Decision, Preempt, Resize, Start, Wait
from superpipe_cluster.scheduling.snapshot import DeviceView, Snapshot


def beside(foreign: int, *jobs: JobRecord, size: int = 10) -> list[Decision]:
    view = DeviceView("cpu:0", size - foreign, foreign_bytes=foreign)
    return decide(Snapshot.of(jobs, [view], host_usable_bytes=1000, now=NOW))


def asked(decisions: list[Decision]) -> dict[str, int | None]:
    """Job -> the budget it is asked for; None: it is preempted."""
    return {
        one.job_id: one.budget_bytes if isinstance(one, Resize) else None
        for one in decisions
        if isinstance(one, Resize | Preempt)
    }


ELASTIC = {"low": 6, "floor_bytes": 2}


def test_ours_shrink_to_what_they_can_spare() -> None:
    (resize,) = beside(3, running("1", "cpu:0", 10, **ELASTIC))
    assert resize == Resize("1", 7, "processes that are not ours hold 3 B of cpu:0")


def test_then_to_where_they_stop_working() -> None:
    assert asked(beside(5, running("1", "cpu:0", 10, **ELASTIC))) == {"1": 5}
    assert asked(beside(8, running("1", "cpu:0", 10, **ELASTIC))) == {"1": 2}
    # Without a word of the worker, the forecast's smallest budget.
    curve = {"low": 6, "curve": ((3, 2.0, 0), (10, 1.0, 0))}
    assert asked(beside(7, running("1", "cpu:0", 10, **curve))) == {"1": 3}
    # All give what they can spare before anybody gives more.
    two = [running("1", "cpu:0", 5, low=3, floor_bytes=1), running("2", "cpu:0", 5, low=5, floor_bytes=1)]
    assert asked(beside(2, *two)) == {"1": 3}


def test_then_the_youngest_of_the_lowest_class_goes() -> None:
    assert asked(beside(9, running("1", "cpu:0", 10, **ELASTIC))) == {"1": None}
    rigid = [
        running("1", "cpu:0", 3, started_at=NOW - 100),
        running("2", "cpu:0", 3, started_at=NOW - 10),
        running("3", "cpu:0", 3, started_at=NOW - 1, priority=1),
    ]
    assert asked(beside(2, *rigid)) == {"2": None}
    assert asked(beside(10, *rigid)) == {"1": None, "2": None, "3": None}


def test_nobody_is_stopped_for_bytes_that_are_on_their_way() -> None:
    shrinking = running("1", "cpu:0", 10, low=4, budget_asked_bytes=7)
    assert beside(3, shrinking) == []
    # It will be asked for the rest when it has answered.
    assert beside(6, shrinking) == []
    assert asked(beside(7, shrinking)) == {"1": None}
    leaving = running("1", "cpu:0", 10, state="STOPPING", stop_asked="cancelled")
    assert beside(5, leaving) == []


def test_nothing_starts_where_there_is_less_than_was_promised() -> None:
    decisions = beside(3, running("1", "cpu:0", 10, low=4), job("2", 0))
    assert not any(isinstance(one, Start) for one in decisions)


def test_those_who_wait_are_told_whom_they_wait_for() -> None:
    (wait,) = beside(6, job("2", 5))
    assert isinstance(wait, Wait)
    assert wait.reason is WaitReason.FOREIGN_PROCESS
    first = [one for one in beside(4, running("1", "cpu:0", 4), job("2", 5)) if isinstance(one, Wait)]
    assert [one.reason for one in first] == [WaitReason.FOREIGN_PROCESS]
    # It would not fit without them either.
    first = [one for one in beside(1, running("1", "cpu:0", 8), job("2", 5)) if isinstance(one, Wait)]
    assert [one.reason for one in first] == [WaitReason.RESOURCES]


def test_a_job_that_only_they_keep_out_holds_nobody_up() -> None:
    decisions = beside(6, job("1", 8), job("2", 4))
    assert Start("2", "cpu:0", 4) in decisions


def test_what_was_taken_is_given_back_before_anybody_new_comes_in() -> None:
    squeezed = running("1", "cpu:0", 2, budget_since=NOW - 60).model_copy(update={"budget_min_bytes": 4})
    decisions = beside(0, squeezed, job("2", 8))
    assert asked(decisions) == {"1": 4}
    assert not any(isinstance(one, Start) for one in decisions)

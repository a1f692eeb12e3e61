"""Frozen weights that several jobs stream are in RAM once, and are counted once."""

from __future__ import annotations

from typing import Any

from scheduling.situations import all_waits, ending, job, preempted, running, starts, taking, waits
from superpipe_cluster.lifecycle.states import WaitReason

#: Each has two bytes of its own beside a copy of seven.
BASE: dict[str, Any] = {"host_bytes": 9, "shared_copy": "llama", "shared_bytes": 7}


def test_whoever_comes_to_a_copy_takes_its_own_part_alone() -> None:
    crowd = [running("1", "cpu:0", 1, **BASE), *(job(str(number), 1, **BASE) for number in (2, 3, 4))]
    assert set(starts(*crowd, host=13)) == {"2", "3"}
    assert waits(*crowd, host=13) == {"4": WaitReason.HOST_MEMORY}
    assert set(starts(*crowd[1:], host=13)) == {"2", "3", "4"}, "the first one brings it"


def test_another_copy_is_another_one() -> None:
    other = {**BASE, "shared_copy": "gpt"}
    crowd = [running("1", "cpu:0", 1, **BASE), job("2", 1, **other)]
    assert waits(*crowd, host=17) == {"2": WaitReason.HOST_MEMORY}
    assert set(starts(*crowd, host=18)) == {"2"}


def test_a_job_that_leaves_keeps_no_copy_for_those_that_come() -> None:
    leaving = running("1", "cpu:0", 1, state="STOPPING", stop_asked="cancelled", **BASE)
    assert starts(leaving, job("2", 1, **BASE), host=17) == {}
    assert set(starts(leaving, job("2", 1, **BASE), host=18)) == {"2"}


def test_a_copy_comes_back_with_the_last_that_uses_it() -> None:
    two = [ending("1", "cpu:0", 1, 100.0, **BASE), ending("2", "cpu:0", 1, 300.0, **BASE)]
    first = all_waits(*two, taking("3", 1, 10.0, host_bytes=3), host=12)["3"]
    later = all_waits(*two, taking("3", 1, 10.0, host_bytes=4), host=12)["3"]
    assert first.expected_start_at is not None
    assert later.expected_start_at is not None
    assert later.expected_start_at - first.expected_start_at == 200.0
    # Nor is it gone when the last one ends, for somebody who needs it too.
    same = all_waits(*two, taking("3", 1, 10.0, **{**BASE, "host_bytes": 11}), host=12)["3"]
    assert same.expected_start_at == later.expected_start_at


def test_a_copy_that_is_only_promised_is_there_for_nobody() -> None:
    """Room is being made for the second job, which will bring the copy; the third one would bring it now."""
    crowd = [
        running("1", "cpu:0", 8, low=1, budget_max_bytes=8),
        job("2", 5, **BASE, priority=1),
        job("3", 1, **BASE),
    ]
    devices = {"cpu:0": 10, "cpu:1": 1}
    assert starts(*crowd, devices=devices, host=17) == {}
    assert starts(*crowd, devices=devices, host=18) == {"3": ("cpu:1", 1)}


def test_as_many_are_stopped_as_it_takes_for_the_copy_to_go() -> None:
    one, two = (running(number, "cpu:0", 2, **BASE, priority=-1) for number in ("1", "2"))
    assert preempted(one, two, job("3", 1, host_bytes=2, priority=1), host=11) == {"1"}
    assert preempted(one, two, job("3", 1, host_bytes=4, priority=1), host=11) == {"1", "2"}
    upper = running("4", "cpu:0", 2, **BASE, priority=2)
    assert preempted(one, two, upper, job("3", 1, host_bytes=4, priority=1), host=13) == {"1", "2"}
    assert preempted(one, two, upper, job("3", 1, host_bytes=5, priority=1), host=13) == set()


def test_nobody_is_stopped_for_the_copy_that_the_newcomer_needs() -> None:
    only = running("1", "cpu:0", 2, **BASE, priority=-1)
    assert preempted(only, job("2", 1, **BASE, priority=1), host=10) == {"1"}
    assert preempted(only, job("2", 1, **{**BASE, "host_bytes": 11}, priority=1), host=10) == set()

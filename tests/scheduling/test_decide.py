"""Decisions in situations one can name."""

from __future__ import annotations

from scheduling.situations import NOW, decided, job, running, snapshot, starts, waits
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Cancel, Start, Wait
from superpipe_cluster.scheduling.snapshot import Snapshot


def test_a_job_gets_what_it_wants_where_there_is_enough() -> None:
    assert starts(job("1", 2, 6)) == {"1": ("cpu:0", 6)}
    assert starts(job("1", 2, 60)) == {"1": ("cpu:0", 10)}


def test_two_jobs_at_once_come_before_more_bytes_for_one() -> None:
    assert starts(job("1", 3, 10), job("2", 4, 10)) == {"1": ("cpu:0", 6), "2": ("cpu:0", 4)}


def test_best_fit_leaves_the_large_gap_for_the_large_job() -> None:
    devices = {"a": 10, "b": 4, "c": 20}
    assert starts(job("1", 3), job("2", 9), job("3", 20), devices=devices) == {
        "1": ("b", 3),
        "2": ("a", 9),
        "3": ("c", 20),
    }


def test_priority_then_age_and_a_number_is_a_number() -> None:
    old, urgent = job("1", 7), job("2", 7, priority=1)
    assert starts(old, urgent) == {"2": ("cpu:0", 7)}
    assert waits(old, urgent) == {"1": WaitReason.RESOURCES}
    same_moment = [job("10", 7, submitted_at=NOW), job("9", 7, submitted_at=NOW)]
    assert starts(*same_moment) == {"9": ("cpu:0", 7)}


def test_a_requeued_job_keeps_its_place() -> None:
    assert starts(job("1", 7, queued_at=NOW - 1, attempt=1), job("2", 7, queued_at=NOW - 90)) == {
        "1": ("cpu:0", 7)
    }


def test_nothing_overtakes_a_job_on_a_device_it_could_use() -> None:
    situation = [running("1", "cpu:0", 6), job("2", 8), job("3", 1)]
    assert starts(*situation) == {}
    assert waits(*situation) == {"2": WaitReason.RESOURCES, "3": WaitReason.PRIORITY}


def test_a_device_too_small_for_the_first_is_open_to_the_others() -> None:
    devices = {"big": 10, "small": 4}
    situation = [running("1", "big", 6), job("2", 8), job("3", 1), job("4", 4)]
    assert starts(*situation, devices=devices) == {"3": ("small", 1)}
    assert waits(*situation, devices=devices) == {
        "2": WaitReason.RESOURCES,
        "4": WaitReason.PRIORITY,
    }


def test_a_job_that_fits_no_device_holds_nobody_up() -> None:
    situation = [job("1", 11), job("2", 10)]
    assert starts(*situation) == {"2": ("cpu:0", 10)}
    (wait,) = [one for one in decided(*situation) if isinstance(one, Wait)]
    assert wait.reason is WaitReason.RESOURCES
    assert "largest device" in wait.message


def test_a_start_does_not_grow_into_the_place_of_one_who_waits() -> None:
    # 6 of 10 are in use. Job 3 waits; when the 6 come back, it could run beside job 2 if that stays small.
    situation = [running("1", "cpu:0", 6), job("2", 2, 4), job("3", 8)]
    assert starts(*situation) == {"2": ("cpu:0", 2)}
    # Here it could not anyway.
    situation = [running("1", "cpu:0", 6), job("2", 2, 4), job("3", 9)]
    assert starts(*situation) == {"2": ("cpu:0", 4)}


def test_host_memory_is_a_resource_too() -> None:
    situation = [
        running("1", "cpu:0", 2, host_bytes=60),
        job("2", 2, host_bytes=50),
        job("3", 2, host_bytes=1),
    ]
    assert starts(*situation, host=100) == {}
    assert waits(*situation, host=100) == {"2": WaitReason.HOST_MEMORY, "3": WaitReason.PRIORITY}
    assert starts(*situation, host=110) == {"2": ("cpu:0", 2)}
    assert starts(*situation, host=111) == {"2": ("cpu:0", 2), "3": ("cpu:0", 2)}


def test_host_memory_is_kept_for_a_job_that_waits_for_a_device() -> None:
    devices = {"big": 10, "small": 4}
    first = [running("1", "big", 6, host_bytes=0), job("2", 8, host_bytes=70)]
    assert waits(*first, job("3", 1, host_bytes=31), devices=devices, host=100)["3"] is WaitReason.PRIORITY
    assert starts(*first, job("3", 1, host_bytes=30), devices=devices, host=100) == {"3": ("small", 1)}


def test_a_job_larger_than_all_host_memory_holds_nobody_up() -> None:
    situation = [job("1", 2, host_bytes=101), job("2", 2, host_bytes=100)]
    assert starts(*situation, host=100) == {"2": ("cpu:0", 2)}
    assert waits(*situation, host=100) == {"1": WaitReason.HOST_MEMORY}


def test_a_job_waits_for_those_it_names() -> None:
    for state in JobState:
        ahead = job(
            "1", 1, state=state, device="cpu:0", budget_bytes=1, ended_at=1.0 if state.is_terminal else None
        )
        decision = next(one for one in decide(snapshot(ahead, job("2", after=("1",)))) if one.job_id == "2")
        if state is JobState.SUCCEEDED:
            assert isinstance(decision, Start)
        elif state.is_terminal:
            assert decision == Cancel("2", EndReason.DEPENDENCY_FAILED, "1")
        else:
            assert isinstance(decision, Wait)
            assert decision.reason is WaitReason.DEPENDENCY
            assert f"1 ({state})" in decision.message


def test_a_job_that_waits_for_another_holds_nobody_up() -> None:
    situation = [running("1", "cpu:0", 4), job("2", 10, after=("1",)), job("3", 6)]
    assert starts(*situation) == {"3": ("cpu:0", 6)}


def test_a_dependency_nobody_knows_is_waited_for() -> None:
    assert waits(job("2", after=("77",))) == {"2": WaitReason.DEPENDENCY}


def test_a_held_job_is_left_alone_and_says_so() -> None:
    assert waits(job("1", state="HELD")) == {"1": WaitReason.HELD}


def test_every_job_with_a_worker_counts_and_so_does_one_in_a_state_nobody_knows() -> None:
    for state in ("STARTING", "RUNNING", "PAUSED", "STOPPING", "RESIZING"):
        assert starts(job("1", 6, state=state, device="cpu:0", budget_bytes=6), job("2", 5)) == {}
    ended = job("1", 6, state="SUCCEEDED", device="cpu:0", budget_bytes=6)
    assert starts(ended, job("2", 5)) == {"2": ("cpu:0", 5)}


def test_a_device_that_shrank_under_its_jobs_takes_no_more() -> None:
    assert starts(running("1", "cpu:0", 12), job("2", 0)) == {}


def test_without_a_device_everybody_waits() -> None:
    empty = Snapshot.of([job("1")], [], host_usable_bytes=10, now=1.0)
    (decision,) = decide(empty)
    assert isinstance(decision, Wait)


def test_a_snapshot_is_taken_of_what_matters() -> None:
    records = [
        job("1", state="SUCCEEDED"),
        job("2", state="FAILED"),
        job("3", after=("1",), host_bytes=5),
        running("4", "cpu:0", 3, host_bytes=30),
    ]
    taken = snapshot(*records, host=100)
    assert taken.queued.ids == ["3"]
    assert [one.id for one in taken.others] == ["1", "4"]
    assert (taken.host_free_bytes, taken.host_usable_bytes(), taken.used_bytes("cpu:0")) == (70, 100, 3)


def test_only_the_first_in_line_reads_figures_that_change() -> None:
    """Every changed message is a write; a long queue must not be written again at every start and end."""
    queue = [job("2", 9), job("3", 9), job("4", 1)]
    first, second = (
        {
            one.job_id: one.message
            for one in decide(snapshot(running("1", "cpu:0", held), *queue))
            if isinstance(one, Wait)
        }
        for held in (5, 6)
    )
    assert first["2"] != second["2"]
    assert "4 B of 10 B" in second["2"]
    assert {first["3"], first["4"]} == {second["3"], second["4"]}

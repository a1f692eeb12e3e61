"""Budgets of running jobs: asked for, waited for, given back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduling.situations import (
    NOW,
    all_waits,
    decided,
    job,
    preempted,
    resizes,
    running,
    snapshot,
    starts,
    waits,
)
from superpipe_cluster.lifecycle.states import JobState, WaitReason
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Preempt, Resize, Start
from superpipe_cluster.scheduling.policy import Policy
from superpipe_cluster.scheduling.snapshot import DeviceView

#: A step takes 2 s in 4 bytes, 1 s in 10 bytes or more.
SLOPE = ((4, 2.0, 60), (10, 1.0, 0))
#: It takes hardly longer in 4 than in 10.
FLAT = ((4, 1.06, 6), (10, 1.0, 0))
#: All of its gain lies between 4 and 6.
KNEE = ((4, 2.0, 60), (6, 1.0, 10), (10, 1.0, 0))

STEPS = {"steps": 1000, "step": 0}


def under_way(job_id: str, held: int, asked: int, **fields: object):
    """A job that has been asked for another budget and has not answered."""
    ask = {"budget_asked_bytes": asked, "budget_asked_at": NOW - 1, "charged_bytes": max(held, asked)}
    return running(job_id, "cpu:0", held, low=1, **{**ask, **fields})


# ---- room for a newcomer ------------------------------------------------------------------------------


def test_a_newcomer_is_let_in_by_what_a_neighbour_can_spare() -> None:
    situation = [running("1", "cpu:0", 10, low=5), job("2", 3)]
    assert starts(*situation) == {}
    assert Resize("1", 7, "room for job 2", "2") in decided(*situation)
    wait = all_waits(*situation)["2"]
    assert wait.reason is WaitReason.RESOURCES
    assert wait.message == "job 1 is making room for it on cpu:0"
    assert wait.expected_start_at is not None
    assert wait.expected_start_at > NOW


def test_bytes_are_given_away_only_when_they_are_free() -> None:
    asked = [under_way("1", 10, 7), job("2", 3)]
    assert starts(*asked) == {}
    assert resizes(*asked) == {}
    assert all_waits(*asked)["2"].message == "job 1 is making room for it on cpu:0"
    assert starts(running("1", "cpu:0", 7, low=4), job("2", 3)) == {"2": ("cpu:0", 3)}


def test_nobody_is_shrunk_below_the_floor_or_in_vain() -> None:
    for floors in ({"floor_bytes": 8}, {"may_shrink": False}):
        situation = [running("1", "cpu:0", 10, low=4, **floors), job("2", 3)]
        assert resizes(*situation) == {}
        assert waits(*situation) == {"2": WaitReason.RESOURCES}
    assert resizes(running("1", "cpu:0", 10, low=8), job("2", 3)) == {}


def test_only_a_running_or_a_paused_job_can_be_asked() -> None:
    for state in ("STARTING", "STOPPING", "RESIZING"):
        assert resizes(running("1", "cpu:0", 10, low=4, state=state), job("2", 3)) == {}
    assert resizes(running("1", "cpu:0", 10, low=4, state="PAUSED"), job("2", 3)) == {"1": 7}


def test_a_job_that_has_been_asked_is_not_asked_again() -> None:
    assert resizes(under_way("1", 10, 7), job("2", 5)) == {}
    assert resizes(under_way("1", 7, 10), job("2", 3)) == {}
    # Who has not been asked is asked for the rest.
    situation = [under_way("1", 6, 4), running("3", "cpu:0", 4, low=1), job("2", 3)]
    assert resizes(*situation) == {"3": 3}


def test_those_are_asked_who_lose_least() -> None:
    steep = running("1", "cpu:0", 10, low=4, curve=SLOPE, **STEPS)
    flat = running("2", "cpu:0", 10, low=4, curve=FLAT, **STEPS)
    assert resizes(steep, flat, job("3", 5), devices={"cpu:0": 20}) == {"2": 5}
    # The flat one first, as far as its floor; then the other.
    assert resizes(steep, flat, job("3", 8), devices={"cpu:0": 20}) == {"2": 4, "1": 8}
    # Nearly done loses nearly nothing.
    nearly_done = steep.model_copy(update={"step": 999})
    assert resizes(nearly_done, flat, job("3", 5), devices={"cpu:0": 20}) == {"1": 5}


def test_the_cheap_part_of_a_curve_is_given_first() -> None:
    knee = running("1", "cpu:0", 10, low=4, curve=KNEE, **STEPS)
    slope = running("2", "cpu:0", 10, low=4, curve=SLOPE, **STEPS)
    assert resizes(knee, slope, job("3", 6), devices={"cpu:0": 20}) == {"1": 6, "2": 8}


def test_the_device_with_the_least_damage_makes_room() -> None:
    situation = [
        running("1", "a", 10, low=4, curve=SLOPE, **STEPS),
        running("2", "b", 10, low=4, curve=FLAT, **STEPS),
    ]
    assert resizes(*situation, job("3", 5), devices={"a": 10, "b": 10}) == {"2": 5}


def test_several_are_let_in_at_once_and_each_is_asked_once() -> None:
    situation = [running("1", "cpu:0", 10, low=2), job("2", 3), job("3", 4), job("4", 2)]
    assert resizes(*situation) == {"1": 3}
    reasons = all_waits(*situation)
    assert reasons["2"].message == reasons["3"].message == "job 1 is making room for it on cpu:0"
    assert reasons["4"].reason is WaitReason.RESOURCES


def test_one_decision_makes_room_for_a_few() -> None:
    giver = running("1", "cpu:0", 100, low=20)
    small = [job(str(n), 2) for n in range(2, 42)]
    assert resizes(giver, *small, devices={"cpu:0": 100}) == {"1": 68}
    policy = Policy(rooms_at_once=1)
    assert resizes(giver, *small, devices={"cpu:0": 100}, policy=policy) == {"1": 98}
    # The next one has not been forgotten: nobody overtakes it.
    assert waits(giver, *small, devices={"cpu:0": 100}, policy=policy)["3"] is WaitReason.RESOURCES


def test_what_is_on_its_way_back_is_not_given_to_somebody_behind() -> None:
    # 3 are free, 5 on their way: job 2 needs 6 of the 8, and job 3 may have the other 2 at once.
    situation = [under_way("1", 7, 2), job("2", 6), job("3", 2), job("4", 1)]
    assert starts(*situation) == {"3": ("cpu:0", 2)}
    assert waits(*situation) == {"2": WaitReason.RESOURCES, "4": WaitReason.RESOURCES}


def test_host_memory_and_the_link_are_set_aside_as_well() -> None:
    leaving = {"state": "STOPPING", "stop_asked": "cancelled", "host_bytes": 6, "link_min_bytes_per_s": 6}
    ahead = [running("1", "cpu:0", 2, **leaving)]
    by_host = [*ahead, job("2", 2, host_bytes=8)]
    assert starts(*by_host, job("3", 2, host_bytes=2), host=10) == {"3": ("cpu:0", 2)}
    assert starts(*by_host, job("3", 2, host_bytes=3), host=10) == {}
    by_link = [*ahead, job("2", 2, link_min_bytes_per_s=8)]
    views = [DeviceView("cpu:0", 10, link_bytes_per_s=10)]
    for needs, fits in ((2, True), (3, False)):
        picture = snapshot(*by_link, job("3", 2, link_min_bytes_per_s=needs))
        decisions = decide(replace(picture, devices=tuple(views)))
        assert any(isinstance(one, Start) and one.job_id == "3" for one in decisions) is fits


def test_a_stopping_job_makes_room() -> None:
    situation = [running("1", "cpu:0", 10, state="STOPPING", stop_asked="cancelled"), job("2", 3)]
    assert all_waits(*situation)["2"].message == "job 1 is making room for it on cpu:0"


# ---- preemption ---------------------------------------------------------------------------------------


def test_a_lower_class_is_preempted_when_shrinking_is_not_enough() -> None:
    situation = [
        running("1", "cpu:0", 6),
        running("2", "cpu:0", 4, low=2, priority=1),
        job("3", 8, priority=1),
    ]
    assert Preempt("1", "room for job 3", "3") in decided(*situation)
    assert resizes(*situation) == {"2": 2}
    assert all_waits(*situation)["3"].message == "jobs 1 and 2 are making room for it on cpu:0"


def test_nobody_is_preempted_for_the_same_class_or_in_vain_or_too_early() -> None:
    assert preempted(running("1", "cpu:0", 10), job("2", 8)) == set()
    assert (
        preempted(running("1", "cpu:0", 6), running("2", "cpu:0", 4, priority=1), job("3", 8, priority=1))
        == set()
    )
    young = running("1", "cpu:0", 10, started_at=NOW - 599)
    assert preempted(young, job("2", 8, priority=2)) == set()
    old = running("1", "cpu:0", 10, started_at=NOW - 600)
    assert preempted(old, job("2", 8, priority=2)) == {"1"}


def test_shrinking_comes_before_preemption() -> None:
    situation = [running("1", "cpu:0", 10, low=2), job("2", 8, priority=2)]
    assert preempted(*situation) == set()
    assert resizes(*situation) == {"1": 2}


def test_nobody_is_preempted_while_one_who_can_spare_the_bytes_is_yet_to_answer() -> None:
    growing = under_way("1", 7, 10, priority=1)
    situation = [growing, running("2", "cpu:0", 4), job("3", 3, priority=1)]
    assert preempted(*situation, devices={"cpu:0": 14}) == set()
    answered = running("1", "cpu:0", 10, low=1, priority=1)
    assert resizes(answered, *situation[1:], devices={"cpu:0": 14}) == {"1": 7}


def test_as_few_as_possible_are_preempted_and_the_youngest() -> None:
    young, old = NOW - 1000, NOW - 5000
    one_is_enough = [
        running("1", "cpu:0", 2, started_at=young),
        running("2", "cpu:0", 4, started_at=old),
        running("3", "cpu:0", 4, started_at=young),
    ]
    assert preempted(*one_is_enough, job("4", 3, priority=1)) == {"3"}
    assert preempted(*one_is_enough, job("4", 2, priority=1)) in ({"1"}, {"3"})
    low_and_old = one_is_enough[1].model_copy(update={"priority": -1})
    situation = [one_is_enough[0], low_and_old, one_is_enough[2], job("4", 3, priority=1)]
    assert preempted(*situation) == {"2"}
    assert preempted(*one_is_enough, job("4", 7, priority=1)) == {"2", "3"}


def test_ageing_gives_a_place_in_the_line_and_no_right_to_preempt() -> None:
    patient = job("2", 8, submitted_at=NOW - 7 * 86_400)
    assert preempted(running("1", "cpu:0", 10), patient) == set()


# ---- growth -------------------------------------------------------------------------------------------


def test_leftover_bytes_go_where_they_save_most() -> None:
    steep = running("1", "cpu:0", 4, curve=SLOPE, **STEPS).model_copy(update={"budget_max_bytes": 10})
    flat = running("2", "cpu:0", 4, curve=FLAT, **STEPS).model_copy(update={"budget_max_bytes": 10})
    assert resizes(steep, flat, devices={"cpu:0": 14}) == {"1": 10}
    assert resizes(steep, flat, devices={"cpu:0": 20}) == {"1": 10, "2": 10}
    # A gain of one percent is not worth asking for.
    assert resizes(steep, flat, devices={"cpu:0": 15}) == {"1": 10}


def test_bytes_that_save_nothing_are_left_free() -> None:
    knee = running("1", "cpu:0", 4, curve=KNEE, **STEPS).model_copy(update={"budget_max_bytes": 10})
    assert resizes(knee) == {"1": 6}
    assert starts(job("1", 4, 10, curve=KNEE)) == {"1": ("cpu:0", 6)}


@pytest.mark.parametrize(
    "unfit",
    [
        {"budget_since": NOW - 29},
        {"may_grow": False},
        {"state": JobState.PAUSED},
        {"pause_asked": "owner"},
        {"state": JobState.STARTING},
        {"budget_max_bytes": 4},
        {"budget_asked_bytes": 3},
        {"stop_asked": "cancelled"},
        {"floor_bytes": 4},  # its worker's word: it does not stream
    ],
)
def test_some_do_not_grow(unfit: dict[str, object]) -> None:
    wants = {"budget_max_bytes": 10}
    assert resizes(running("1", "cpu:0", 4).model_copy(update=wants)) == {"1": 10}
    assert resizes(running("1", "cpu:0", 4).model_copy(update={**wants, **unfit})) == {}


def test_nothing_grows_where_somebody_waits_who_could_run_beside_it() -> None:
    grower = running("1", "cpu:0", 2).model_copy(update={"budget_max_bytes": 10})
    beside = [grower, running("2", "cpu:0", 6), job("3", 5)]
    assert resizes(*beside) == {}
    # Nobody who waits can run beside this one, however small it stays.
    assert resizes(grower, running("2", "cpu:0", 6), job("3", 9)) == {"1": 4}
    # However far behind they are.
    far = [grower, running("2", "cpu:0", 6), job("3", 9), job("4", 9), job("5", 5)]
    assert resizes(*far, policy=Policy(forecast_depth=1)) == {}


def test_a_new_job_and_a_running_one_share_what_is_left() -> None:
    runs = running("1", "cpu:0", 4, curve=SLOPE, **STEPS).model_copy(update={"budget_max_bytes": 10})
    new = job("2", 4, 10, curve=FLAT, steps=1000)
    assert starts(runs, new, devices={"cpu:0": 14}) == {"2": ("cpu:0", 4)}
    assert resizes(runs, new, devices={"cpu:0": 14}) == {"1": 10}


def test_growth_stays_within_the_device() -> None:
    growers = [running(str(n), "cpu:0", 2).model_copy(update={"budget_max_bytes": 10}) for n in range(1, 4)]
    assert sum(resizes(*growers).get(one.id, 2) for one in growers) == 10


# ---- what owners change while it runs -----------------------------------------------------------------


def test_a_lowered_range_takes_bytes_back() -> None:
    lowered = running("1", "cpu:0", 8, low=2).model_copy(update={"budget_max_bytes": 5})
    assert resizes(lowered) == {"1": 5}
    assert resizes(lowered.model_copy(update={"floor_bytes": 6})) == {"1": 6}


def test_a_raised_guarantee_comes_before_newcomers() -> None:
    raised = running("1", "cpu:0", 4).model_copy(update={"budget_min_bytes": 8, "budget_max_bytes": 8})
    assert resizes(raised, job("2", 5)) == {"1": 8}
    assert starts(raised, job("2", 5)) == {}
    assert starts(raised, job("2", 2)) == {"2": ("cpu:0", 2)}
    # What is not there yet is set aside.
    beside = running("3", "cpu:0", 4)
    assert starts(raised, beside, job("2", 2)) == {}
    assert resizes(raised, beside, job("2", 2)) == {}


# ---- what programs have no use for --------------------------------------------------------------------


def test_what_a_program_has_no_use_for_is_taken_back_as_far_as_its_guarantee() -> None:
    idle = running("1", "cpu:0", 8, low=3, wants_bytes=0, wants_since=NOW)
    assert decided(idle) == [Resize("1", 3, "its program has no use for more now")]
    assert resizes(idle.model_copy(update={"wants_bytes": 5})) == {"1": 5}
    assert resizes(idle.model_copy(update={"floor_bytes": 4})) == {"1": 4}
    assert resizes(idle.model_copy(update={"wants_bytes": 99})) == {}
    assert resizes(idle.model_copy(update={"wants_bytes": None})) == {}
    assert resizes(idle.model_copy(update={"budget_bytes": 3, "charged_bytes": 3})) == {}
    lowered = idle.model_copy(update={"wants_bytes": 7, "budget_max_bytes": 6})
    assert decided(lowered) == [Resize("1", 6, "its range ends at 6 B now")]


@pytest.mark.parametrize("fixed", ["may_shrink", "may_grow"])
def test_who_is_not_to_move_keeps_what_it_has_no_use_for(fixed: str) -> None:
    assert resizes(running("1", "cpu:0", 8, low=3, wants_bytes=0, wants_since=NOW, **{fixed: False})) == {}


def test_what_one_has_no_use_for_is_another_ones() -> None:
    given_back = running("1", "cpu:0", 3, low=3, wants_bytes=0, wants_since=NOW - 60).model_copy(
        update={"budget_max_bytes": 10}
    )
    grower = running("2", "cpu:0", 2).model_copy(update={"budget_max_bytes": 10})
    assert resizes(given_back, grower) == {"2": 7}
    assert starts(given_back, job("2", 2, 10)) == {"2": ("cpu:0", 7)}
    enough = given_back.model_copy(update={"wants_bytes": 5})
    assert resizes(enough) == {"1": 5}


def test_who_has_use_for_more_again_is_not_kept_waiting() -> None:
    shrunk = running("1", "cpu:0", 3, low=3, budget_since=NOW - 2).model_copy(
        update={"budget_max_bytes": 10, "floor_bytes": 3}
    )
    assert resizes(shrunk) == {}
    told = {"wants_bytes": None, "wants_since": NOW - 1}
    assert resizes(shrunk.model_copy(update=told)) == {"1": 10}
    beside = running("2", "cpu:0", 6)
    assert resizes(shrunk.model_copy(update=told), beside) == {"1": 4}
    # It gave them back of its own accord, and takes them back however little its forecast says of them.
    hardly_faster = {"curve": ((3, 1.01, 6), (10, 1.0, 0))}
    assert resizes(shrunk.model_copy(update={**hardly_faster, "budget_since": NOW - 60})) == {}
    assert resizes(shrunk.model_copy(update={**hardly_faster, **told})) == {"1": 10}
    # Nobody else is asked for what is not free, and the next bytes come as to anybody.
    grown = shrunk.model_copy(update={**told, "budget_bytes": 4, "charged_bytes": 4, "budget_since": NOW})
    assert resizes(grown, running("2", "cpu:0", 6, low=1)) == {}


def test_a_start_is_given_what_is_free_and_nothing_else() -> None:
    (start,) = [one for one in decided(under_way("1", 4, 2), job("2", 6, 10)) if isinstance(one, Start)]
    assert start.budget_bytes == 6

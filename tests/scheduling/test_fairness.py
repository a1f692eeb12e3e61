"""Who comes before whom, and what users may hold."""

from __future__ import annotations

import numpy as np

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
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.scheduling.decisions import Preempt
from superpipe_cluster.scheduling.order import in_line
from superpipe_cluster.scheduling.policy import Policy
from superpipe_cluster.scheduling.snapshot import Quota

DAY_S = 86_400.0


def line(*jobs: JobRecord, **fields: object) -> list[str]:
    """The ids in line, first one first."""
    picture = snapshot(*jobs, **fields)
    holding = [one for one in jobs if one.state.holds_device]
    everybody = np.arange(len(picture.queued))
    return [picture.queued.ids[place] for place in in_line(everybody, holding, picture)]


# ---- the line -----------------------------------------------------------------------------------------


def test_class_comes_before_usage_and_usage_before_age() -> None:
    jobs = [
        job("1", user="ann"),
        job("2", user="bob"),
        job("3", user="ann", priority=1),
        job("4", user="cid", priority=-1),
    ]
    assert line(*jobs) == ["3", "1", "2", "4"] or line(*jobs) == ["3", "2", "1", "4"]
    assert line(*jobs, usage={"bob": 1e9}) == ["3", "1", "2", "4"]
    assert line(*jobs, usage={"ann": 1e9}) == ["3", "2", "1", "4"]


def test_a_hundred_jobs_of_one_user_take_turns_with_the_jobs_of_others() -> None:
    flood = [job(str(n), 2, user="ann") for n in range(1, 101)]
    others = [job("200", 2, user="bob"), job("201", 2, user="bob"), job("300", 2, user="cid")]
    assert line(*flood, *others)[:6] == ["1", "200", "300", "2", "201", "3"]


def test_what_a_user_was_given_just_now_counts_before_it_is_used() -> None:
    just_now = running("1", "cpu:0", 4, user="ann", placed_at=NOW - 1)
    assert line(just_now, job("2", user="ann"), job("3", user="bob")) == ["3", "2"]
    long_ago = running("1", "cpu:0", 4, user="ann")
    assert line(long_ago, job("2", user="ann"), job("3", user="bob")) == ["2", "3"]


def test_a_larger_weight_is_a_larger_share() -> None:
    jobs = [job("1", user="ann"), job("2", user="bob")]
    usage = {"ann": 5e6, "bob": 3e6}
    assert line(*jobs, usage=usage) == ["2", "1"]
    assert line(*jobs, usage=usage, quotas={"ann": Quota("ann", weight=2.0)}) == ["1", "2"]


def test_waiting_lifts_a_job_by_a_class_a_day_without_an_end() -> None:
    fresh = [job("5", priority=2), job("6", priority=1), job("7", priority=0)]
    for days, place in ((0.9, 3), (1.1, 3), (2.1, 2), (3.1, 1), (4.1, 0)):
        patient = job("1", priority=-1, user="bob", submitted_at=NOW - days * DAY_S)
        expected = ["5", "6", "7"]
        expected.insert(place, "1")
        assert line(*fresh, patient, usage={"bob": 1e12}) == expected, days


def test_waiting_for_others_or_for_a_date_is_not_waiting_in_line() -> None:
    old = {"submitted_at": NOW - 10 * DAY_S, "user": "bob"}
    usage = {"bob": 1e12}
    assert line(job("2", **old), job("3"), usage=usage) == ["2", "3"]
    assert line(job("2", **old, begin_at=NOW - 60), job("3"), usage=usage) == ["3", "2"]
    ended = job("1", state="SUCCEEDED", ended_at=NOW - 60)
    assert line(ended, job("2", **old, after=("1",)), job("3"), usage=usage) == ["3", "2"]


def test_guarantees_come_first_within_a_class() -> None:
    quotas = {"bob": Quota("bob", guaranteed_bytes=4)}
    usage = {"bob": 1e12}
    jobs = [
        job("1", 3, user="ann"),
        job("2", 3, user="bob"),
        job("3", 3, user="bob"),
        job("4", 3, priority=1),
    ]
    assert line(*jobs, usage=usage, quotas=quotas) == ["4", "2", "1", "3"]
    holds = running("9", "cpu:0", 3, user="bob")
    assert line(holds, *jobs, usage=usage, quotas=quotas) == ["4", "1", "2", "3"]


# ---- quotas -------------------------------------------------------------------------------------------


def test_nobody_goes_beyond_their_limit_and_holds_nobody_up() -> None:
    quotas = {"bob": Quota("bob", limit_bytes=5)}
    situation = [running("1", "cpu:0", 3, user="bob"), job("2", 3, user="bob"), job("3", 3, user="ann")]
    assert starts(*situation, quotas=quotas) == {"3": ("cpu:0", 3)}
    wait = all_waits(*situation, quotas=quotas)["2"]
    assert (wait.reason, wait.message) == (WaitReason.QUOTA, "needs 3 B; bob may hold 5 B at once")
    # Two at once are counted together, and so is what is more than the guarantee.
    two = [job("2", 3, user="bob"), job("4", 3, user="bob")]
    assert set(starts(*two, quotas=quotas)) == {"2"}
    assert starts(job("2", 3, 9, user="bob"), quotas=quotas) == {"2": ("cpu:0", 5)}
    grower = running("1", "cpu:0", 3, user="bob").model_copy(update={"budget_max_bytes": 9})
    assert resizes(grower, quotas=quotas) == {"1": 5}


def test_borrowed_bytes_are_given_back_first_by_shrinking_then_by_preemption() -> None:
    quotas = {"ann": Quota("ann", guaranteed_bytes=6)}
    borrowed = [running("1", "cpu:0", 10, low=4, user="bob"), job("2", 6, user="ann")]
    assert preempted(*borrowed, quotas=quotas) == set()
    assert resizes(*borrowed, quotas=quotas) == {"1": 4}
    rigid = [running("1", "cpu:0", 10, user="bob"), job("2", 6, user="ann")]
    assert Preempt("1", "room for job 2", "2") in decided(*rigid, quotas=quotas)
    assert preempted(*rigid) == set()


def test_what_somebody_is_guaranteed_themselves_is_not_taken_for_anothers_guarantee() -> None:
    quotas = {"ann": Quota("ann", guaranteed_bytes=6), "bob": Quota("bob", guaranteed_bytes=4)}
    own = [
        running("1", "cpu:0", 4, user="bob"),
        running("2", "cpu:0", 6, user="bob"),
        job("3", 6, user="ann"),
    ]
    assert preempted(*own, quotas=quotas) == {"2"}
    # Beyond what is owed nobody is preempted, nor ever one of a higher class.
    assert preempted(*own[:2], job("3", 7, user="ann"), quotas=quotas) == set()
    high = [own[0], own[1].model_copy(update={"priority": 1}), own[2]]
    assert preempted(*high, quotas=quotas) == set()


def test_two_borrowers_of_one_user_are_not_both_taken_when_one_is_their_own() -> None:
    quotas = {"ann": Quota("ann", guaranteed_bytes=10), "bob": Quota("bob", guaranteed_bytes=5)}
    situation = [running("1", "cpu:0", 5, user="bob"), running("2", "cpu:0", 5, user="bob")]
    assert preempted(*situation, job("3", 5, user="ann"), quotas=quotas) in ({"1"}, {"2"})
    assert preempted(*situation, job("3", 10, user="ann"), quotas=quotas) == set()


# ---- arrays -------------------------------------------------------------------------------------------


def test_an_array_runs_as_many_tasks_at_once_as_it_asked_for() -> None:
    tasks = [job(str(n), 1, array="1", array_index=n - 1, array_limit=2) for n in range(1, 5)]
    assert set(starts(*tasks)) == {"1", "2"}
    assert waits(*tasks) == {"3": WaitReason.ARRAY_LIMIT, "4": WaitReason.ARRAY_LIMIT}
    runs = running("1", "cpu:0", 1, array="1", array_index=0, array_limit=2)
    assert set(starts(runs, *tasks[1:], job("9", 1, user="bob"))) == {"2", "9"}


def test_the_numbers_are_a_policys() -> None:
    patient, fresh = job("1", user="bob", submitted_at=NOW - 600), job("2")
    assert line(patient, fresh, usage={"bob": 1e9}) == ["2", "1"]
    assert line(patient, fresh, usage={"bob": 1e9}, policy=Policy(ageing_s=500.0)) == ["1", "2"]


def test_those_behind_are_told_what_keeps_them_beside_the_line() -> None:
    task = {"array": "1", "array_limit": 1}
    situation = [
        running("1", "cpu:0", 10, array_index=0, **task),
        job("2", 8),
        job("3", 8),
        job("4", 8, array_index=1, **task),
        job("5", 11),
        job("6", 8, user="bob"),
    ]
    quotas = {"bob": Quota("bob", limit_bytes=7)}
    reasons = all_waits(*situation, quotas=quotas)
    assert {job_id: wait.reason for job_id, wait in reasons.items()} == {
        "2": WaitReason.RESOURCES,
        "3": WaitReason.PRIORITY,
        "4": WaitReason.ARRAY_LIMIT,
        "5": WaitReason.RESOURCES,
        "6": WaitReason.QUOTA,
    }
    assert "largest device" in reasons["5"].message

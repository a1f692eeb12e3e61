"""Budgets that change while jobs run: asked, applied, acknowledged, and only then given away."""

from __future__ import annotations

from pathlib import Path

import pytest

from head.fakes import GIB, Lab
from superpipe_cluster.execution.interface import Orders
from superpipe_cluster.head.care import ANSWER_LIMIT_S, FIRST_ANSWER_LIMIT_S, STOP_LIMIT_S
from superpipe_cluster.lifecycle.events import PauseAsked, ResizeAsked, ResumeAsked, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.step import REPLAYED_FIELDS, replay
from superpipe_cluster.store.writes import advance


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "home")


@pytest.fixture
def job(lab: Lab) -> JobRecord:
    """A running job that holds 8 GiB of 10, at its second step."""
    job = lab.submit(gib=8, budget_min_bytes=2 * GIB, may_grow=False)
    lab.run(job)
    lab.tell(job, step=2, k=4, step_s=1.0, held_bytes=8 * GIB, floor_bytes=2 * GIB)
    return job


def ask(lab: Lab, job: JobRecord, gib: int) -> int:
    """The first phase, as the tick writes it; the revision."""
    revision = lab.get(job).budget_revision + 1
    advance(lab.store, job.id, ResizeAsked(gib * GIB, revision))
    return revision


def acknowledge(lab: Lab, job: JobRecord, gib: int, revision: int, refused: str | None = None) -> Orders:
    """The second phase, as the worker says it in every report from now on."""
    return lab.tell(job, budget_bytes=gib * GIB, budget_revision=revision, budget_refused=refused)


def kinds(lab: Lab, job: JobRecord) -> list[str]:
    return [event.kind for event in lab.store.events(job.id)]


def test_a_newcomer_gets_bytes_only_once_they_are_acknowledged(lab: Lab, job: JobRecord) -> None:
    revision = ask(lab, job, 4)
    newcomer = lab.submit(gib=6)
    lab.tick.run()
    assert lab.state(newcomer) == "QUEUED"
    orders = lab.tell(job)
    assert (orders.budget_bytes, orders.budget_revision) == (4 * GIB, revision)
    woken = lab.woken
    acknowledge(lab, job, 4, revision)
    assert lab.woken > woken
    lab.tick.run()
    assert lab.state(newcomer) == "STARTING"
    assert (lab.get(job).budget_bytes, lab.get(job).promised_bytes) == (4 * GIB, 4 * GIB)
    assert lab.tell(job).budget_bytes is None


def test_the_larger_budget_counts_until_the_acknowledgement(lab: Lab, job: JobRecord) -> None:
    up = ask(lab, job, 10)
    assert lab.get(job).promised_bytes == 10 * GIB
    acknowledge(lab, job, 10, up)
    ask(lab, job, 5)
    assert lab.get(job).promised_bytes == 10 * GIB


def test_an_acknowledgement_that_is_told_again_changes_nothing(lab: Lab, job: JobRecord) -> None:
    revision = ask(lab, job, 4)
    for _ in range(3):
        acknowledge(lab, job, 4, revision)
    assert kinds(lab, job).count("resized") == 1


def test_a_late_acknowledgement_of_an_older_budget_frees_nothing(lab: Lab, job: JobRecord) -> None:
    first = ask(lab, job, 3)
    second = ask(lab, job, 6)
    acknowledge(lab, job, 3, first)
    assert (lab.get(job).promised_bytes, lab.get(job).budget_bytes) == (8 * GIB, 3 * GIB)
    acknowledge(lab, job, 3, first)
    assert kinds(lab, job).count("resized") == 1
    acknowledge(lab, job, 6, second)
    assert lab.get(job).promised_bytes == 6 * GIB


def test_a_worker_that_refuses_keeps_what_it_has_and_says_its_floor(lab: Lab, job: JobRecord) -> None:
    revision = ask(lab, job, 1)
    lab.tell(
        job,
        budget_bytes=8 * GIB,
        budget_revision=revision,
        budget_refused="needs 3.0 GiB",
        floor_bytes=3 * GIB,
    )
    after = lab.get(job)
    assert (after.budget_bytes, after.budget_asked_bytes, after.floor_bytes) == (8 * GIB, None, 3 * GIB)
    resized = lab.store.events(job.id)[-1]
    assert (resized.kind, resized.data["refused"]) == ("resized", "needs 3.0 GiB")


@pytest.mark.parametrize("gib", [9, 0, -3])
def test_bytes_that_it_was_never_promised_are_not_believed(lab: Lab, job: JobRecord, gib: int) -> None:
    revision = ask(lab, job, 4)
    acknowledge(lab, job, gib, revision)
    assert (lab.get(job).budget_asked_bytes, lab.get(job).promised_bytes) == (4 * GIB, 8 * GIB)


def test_an_ask_that_the_store_has_forgotten_sends_its_worker_home(lab: Lab, job: JobRecord) -> None:
    acknowledge(lab, job, 9, 1)  # of this ask nothing is written: Redis has crashed and lost its last second
    assert (lab.state(job), lab.get(job).stop_asked) == ("STOPPING", "preempted")
    assert lab.get(job).promised_bytes == 8 * GIB


def test_a_new_head_asks_again_and_takes_the_acknowledgement(lab: Lab, job: JobRecord) -> None:
    revision = ask(lab, job, 4)
    lab.new_head()
    lab.tick.run()
    assert lab.tell(job).budget_revision == revision
    lab.new_head()
    acknowledge(lab, job, 4, revision)
    assert lab.get(job).promised_bytes == 4 * GIB


def test_a_cancel_in_the_middle_of_a_resize(lab: Lab, job: JobRecord) -> None:
    revision = ask(lab, job, 4)
    advance(lab.store, job.id, StopAsked("cancelled"))
    orders = lab.tell(job)
    assert orders.stop == "cancelled"
    acknowledge(lab, job, 4, revision)
    assert lab.get(job).promised_bytes == 4 * GIB
    lab.end(job, "cancelled")
    after = lab.get(job)
    assert (after.state, after.budget_asked_bytes) == ("CANCELLED", None)


def test_one_that_does_not_make_room_is_preempted_then_killed_and_counted_until_clear(
    lab: Lab, job: JobRecord
) -> None:
    ask(lab, job, 4)
    newcomer = lab.submit(gib=6)
    lab.clock.now_s += ANSWER_LIMIT_S - 1
    lab.tell(job)
    lab.tick.run()
    assert lab.state(job) == "RUNNING"
    lab.clock.now_s += 2
    lab.tick.run()
    assert lab.tell(job).stop == "preempted"
    lab.clock.now_s += STOP_LIMIT_S + 1
    lab.tell(job)  # it reports, and does not go
    lab.executor.lingering.add(lab.folder(job).root)
    lab.tick.run()
    assert lab.executor.alive() == frozenset()
    lab.tick.run()
    assert (lab.state(job), lab.state(newcomer)) == ("STOPPING", "QUEUED")
    assert lab.get(job).promised_bytes == 8 * GIB
    lab.executor.lingering.clear()
    lab.tick.run()
    assert (lab.state(job), lab.get(job).losses) == ("STARTING", 0)  # preempted, and first in line again


def test_long_steps_and_the_time_before_the_first_one_are_waited_for(lab: Lab, job: JobRecord) -> None:
    lab.tell(job, step_s=20.0)
    ask(lab, job, 4)
    lab.clock.now_s += 99
    lab.tell(job)
    lab.tick.run()
    assert lab.state(job) == "RUNNING"
    lab.clock.now_s += 2
    lab.tick.run()
    assert lab.state(job) == "STOPPING"
    lab.end(job, "preempted")
    lab.run(job)  # its second attempt loads the model
    assert lab.get(job).k is None
    ask(lab, job, 4)
    lab.clock.now_s += FIRST_ANSWER_LIMIT_S - 1
    lab.tell(job)
    lab.tick.run()
    assert lab.state(job) == "RUNNING"


def test_nobody_is_stopped_for_not_growing(lab: Lab, job: JobRecord) -> None:
    ask(lab, job, 10)
    lab.clock.now_s += 10 * ANSWER_LIMIT_S
    lab.tell(job)
    lab.tick.run()
    assert lab.state(job) == "RUNNING"


def test_a_lost_worker_takes_its_resize_with_it(lab: Lab, job: JobRecord) -> None:
    revision = ask(lab, job, 4)
    lab.executor.workers.clear()
    lab.tick.run()
    after = lab.get(job)
    assert (after.state, after.budget_bytes, after.budget_asked_bytes) == ("STARTING", 8 * GIB, None)
    assert after.budget_revision == revision
    assert lab.tell(job, epoch=1, budget_bytes=4 * GIB, budget_revision=revision).stale
    assert lab.get(job).promised_bytes == 8 * GIB


def test_a_pause_is_told_for_as_long_as_it_lasts(lab: Lab, job: JobRecord) -> None:
    advance(lab.store, job.id, PauseAsked())
    assert lab.tell(job).pause
    lab.tell(job, paused=True)
    lab.tell(job, paused=True)
    assert (lab.state(job), kinds(lab, job).count("paused")) == ("PAUSED", 1)
    lab.new_head()
    assert lab.tell(job).pause
    advance(lab.store, job.id, ResumeAsked())
    assert not lab.tell(job, paused=True).pause
    lab.tell(job, paused=False)
    assert lab.state(job) == "RUNNING"


def test_one_that_stands_still_makes_room_too(lab: Lab, job: JobRecord) -> None:
    advance(lab.store, job.id, PauseAsked())
    lab.tell(job, paused=True)
    revision = ask(lab, job, 4)
    acknowledge(lab, job, 4, revision)
    assert (lab.state(job), lab.get(job).promised_bytes) == ("PAUSED", 4 * GIB)


def test_what_a_program_has_no_use_for_goes_to_others_and_comes_back(lab: Lab, job: JobRecord) -> None:
    lab.end(job)
    model = lab.submit(gib=8, budget_min_bytes=3 * GIB)
    lab.run(model)
    other = lab.submit(gib=2, budget_max_bytes=6 * GIB)
    lab.run(other)
    lab.clock.now_s += 60
    lab.tick.run()
    assert [lab.get(each).promised_bytes for each in (model, other)] == [8 * GIB, 2 * GIB]

    woken = lab.woken
    lab.tell(model, wants_bytes=0)
    assert lab.woken > woken
    lab.tick.run()
    orders = lab.tell(model, wants_bytes=0)  # as every report says it from now on
    assert orders.budget_bytes == 3 * GIB
    lab.tell(model, wants_bytes=0, budget_bytes=3 * GIB, budget_revision=orders.budget_revision)
    lab.tick.run()
    assert lab.get(other).budget_asked_bytes == 6 * GIB
    assert lab.store.events(model.id)[-2].data["why"] == "its program has no use for more now"
    lab.tell(other, budget_bytes=6 * GIB, budget_revision=lab.get(other).budget_revision)

    woken = lab.woken
    lab.tell(model)  # an older worker's report, which says nothing of it
    assert (lab.get(model).wants_bytes, lab.woken) == (0, woken)
    lab.tell(model, wants_bytes=None)
    assert lab.woken > woken
    lab.tick.run()  # at once, however short it has had its budget: what is free
    assert lab.get(model).budget_asked_bytes == 4 * GIB
    assert kinds(lab, model).count("wanted") == 2


def test_a_new_attempt_has_use_for_all_of_it_again(lab: Lab, job: JobRecord) -> None:
    lab.tell(job, wants_bytes=3 * GIB)
    assert lab.get(job).wants_bytes == 3 * GIB
    lab.executor.workers.clear()
    lab.tick.run()
    after = lab.get(job)
    assert (after.state, after.wants_bytes, after.budget_bytes) == ("STARTING", None, 8 * GIB)


def test_one_that_is_stopping_wants_nothing_any_more(lab: Lab, job: JobRecord) -> None:
    advance(lab.store, job.id, StopAsked("cancelled"))
    woken = lab.woken
    assert lab.tell(job, wants_bytes=0).stop == "cancelled"
    assert (lab.get(job).wants_bytes, lab.woken) == (None, woken)


def test_workers_with_orders_are_hurried_once(lab: Lab, job: JobRecord) -> None:
    lab.tick.run()
    assert lab.executor.hurried == []
    ask(lab, job, 4)
    for _ in range(3):
        lab.tick.watch()
    assert lab.executor.hurried == [lab.worker(job)]
    advance(lab.store, job.id, StopAsked("cancelled"))
    for _ in range(3):
        lab.tick.watch()
    assert lab.executor.hurried == [lab.worker(job)] * 2


def test_the_events_of_a_changing_budget_replay_to_the_record(lab: Lab, job: JobRecord) -> None:
    first = ask(lab, job, 3)
    lab.clock.now_s += 5
    second = ask(lab, job, 6)
    acknowledge(lab, job, 3, first)
    lab.clock.now_s += 5
    acknowledge(lab, job, 6, second)
    advance(lab.store, job.id, PauseAsked("window"))
    lab.tell(job, paused=True)
    lab.tell(job, paused=True, wants_bytes=2 * GIB)
    lab.clock.now_s += 5
    lab.end(job)
    replayed = replay(event.happened for event in lab.store.events(job.id))
    record = lab.get(job)
    assert {name: getattr(replayed, name) for name in REPLAYED_FIELDS} == {
        name: getattr(record, name) for name in REPLAYED_FIELDS
    }
    assert record.used_byte_s == 15 * 8 * GIB - 5 * 2 * GIB  # the last five seconds at 6 GiB

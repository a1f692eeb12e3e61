"""What single events do to a job."""

from __future__ import annotations

import pickle

import pytest

from superpipe_cluster.errors import Conflict
from superpipe_cluster.lifecycle.events import (
    DependencyFailed,
    Event,
    Exited,
    Held,
    Lost,
    Paused,
    Placed,
    Released,
    Resumed,
    Started,
    StopAsked,
    from_stored,
)
from superpipe_cluster.lifecycle.record import JobRecord, Progress, with_progress
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.lifecycle.step import Happened, InvalidTransition, begin, replay, step, stored_data

PLACED = Placed(device="cpu:0", budget_bytes=100)


def new_job(**fields: object) -> JobRecord:
    wanted = JobRecord.model_validate({"id": "1", "name": "a", "user": "ann", "kind": "train", **fields})
    return begin(wanted, 10.0)[0]


def after(record: JobRecord, *events: Event, now: float = 20.0) -> JobRecord:
    for event in events:
        record = step(record, event, now)
    return record


def test_a_job_that_just_works() -> None:
    job = after(new_job(), PLACED, now=11.0)
    assert (job.state, job.attempt, job.epoch, job.device, job.budget_bytes) == (
        "STARTING",
        1,
        1,
        "cpu:0",
        100,
    )
    job = after(job, Started(), now=12.0)
    assert (job.state, job.started_at) == ("RUNNING", 12.0)
    job = after(job, Exited(reason="ok", exit_code=0), now=13.0)
    assert (job.state, job.reason, job.exit_code, job.ended_at) == ("SUCCEEDED", "ok", 0, 13.0)
    assert (job.device, job.budget_bytes) == ("cpu:0", 100), "what it ran on is part of its story"
    assert (job.submitted_at, job.queued_at, job.changed_at) == (10.0, 10.0, 13.0)


def test_holding_and_releasing_starts_the_waiting_anew() -> None:
    job = new_job(state="HELD")
    assert (job.reason, job.queued_at) == (WaitReason.HELD, None)
    job = after(job, Released(), now=30.0)
    assert (job.state, job.reason, job.queued_at) == ("QUEUED", None, 30.0)
    assert after(job, Held()).reason == WaitReason.HELD


def test_pausing_keeps_the_device() -> None:
    job = after(new_job(), PLACED, Started(), Paused())
    assert job.state.holds_device
    assert job.device == "cpu:0"
    assert after(job, Resumed()).state == "RUNNING"


def test_a_lost_worker_goes_back_to_the_queue_under_a_new_epoch() -> None:
    job = after(new_job(max_attempts=2), PLACED, Started(), Lost(message="no actor of that name"))
    assert (job.state, job.attempt, job.epoch, job.losses) == ("QUEUED", 1, 2, 1)
    assert (job.device, job.budget_bytes, job.started_at, job.held_bytes) == (None, None, None, 0)
    job = after(job, PLACED, Started(), Lost())
    assert (job.state, job.reason, job.attempt, job.epoch) == ("FAILED", "worker_lost", 2, 4)


def test_a_killed_worker_is_tried_again_and_an_error_is_not() -> None:
    running = after(new_job(max_attempts=2), PLACED, Started())
    assert after(running, Exited(reason="worker_lost", exit_code=-9)).state == "QUEUED"
    failed = after(running, Exited(reason="error", message="ValueError: no", exit_code=1))
    assert (failed.state, failed.reason, failed.message, failed.exit_code) == (
        "FAILED",
        "error",
        "ValueError: no",
        1,
    )


def test_preemption_costs_no_attempt() -> None:
    job = new_job(max_attempts=1)
    for _ in range(3):
        job = after(job, PLACED, Started(), StopAsked(why="preempted"), Exited(reason="preempted"))
        assert (job.state, job.stop_asked, job.losses) == ("QUEUED", None, 0)
    assert job.attempt == 3


@pytest.mark.parametrize(
    ("asked", "said", "state", "reason"),
    [
        ("cancelled", "cancelled", "CANCELLED", "cancelled"),
        ("cancelled", "worker_lost", "CANCELLED", "cancelled"),
        ("cancelled", "error", "CANCELLED", "cancelled"),
        ("cancelled", "preempted", "CANCELLED", "cancelled"),
        ("cancelled", "ok", "SUCCEEDED", "ok"),
        ("time_limit", "time_limit", "FAILED", "time_limit"),
        ("time_limit", "worker_lost", "FAILED", "time_limit"),
        ("time_limit", "ok", "SUCCEEDED", "ok"),
        ("preempted", "worker_lost", "QUEUED", None),
        ("preempted", "error", "FAILED", "error"),
        ("preempted", "ok", "SUCCEEDED", "ok"),
    ],
)
def test_how_a_stopped_worker_ends(asked: str, said: str, state: str, reason: str | None) -> None:
    job = after(new_job(max_attempts=3), PLACED, Started(), StopAsked(why=asked))
    assert (job.state, job.stop_asked) == ("STOPPING", asked)
    job = after(job, Exited(reason=said))
    assert (job.state, job.reason) == (state, reason)


def test_a_cancelled_job_stays_cancelled_and_a_preempted_one_can_still_be_cancelled() -> None:
    stopping = after(new_job(), PLACED, StopAsked(why="cancelled"), StopAsked(why="preempted"))
    assert stopping.stop_asked == "cancelled"
    stopping = after(new_job(), PLACED, StopAsked(why="preempted"), StopAsked(why="cancelled"))
    assert stopping.stop_asked == "cancelled"


def test_a_waiting_job_is_cancelled_at_once() -> None:
    for state in ("QUEUED", "HELD"):
        job = after(new_job(state=state), StopAsked(why="cancelled"))
        assert (job.state, job.reason, job.ended_at) == ("CANCELLED", "cancelled", 20.0)
        job = after(new_job(state=state), DependencyFailed(job_id="7"))
        assert (job.state, job.reason) == ("CANCELLED", "dependency_failed")
        assert "7" in (job.message or "")


def test_a_waiting_job_cannot_run_out_of_time() -> None:
    with pytest.raises(InvalidTransition):
        step(new_job(), StopAsked(why="time_limit"), 1.0)


def test_only_real_reasons_stop_a_job() -> None:
    with pytest.raises(ValueError, match="boredom"):
        step(new_job(), StopAsked(why="boredom"), 1.0)


def test_a_worker_of_another_version_may_end_for_a_reason_of_its_own() -> None:
    job = after(new_job(), PLACED, Started(), Exited(reason="solar_flare", message="oh"))
    assert (job.state, job.reason, job.message) == ("FAILED", EndReason.ERROR, "oh")


def test_last_words_of_any_kind_can_be_stored() -> None:
    job = after(new_job(), PLACED, Exited(reason="error", message="caf\udce9" + "x" * 9999))
    assert job.message is not None
    assert job.message.startswith("caf?x")
    assert len(job.message) == 2000
    assert JobRecord.model_validate_json(job.model_dump_json()) == job


def test_a_forbidden_event_tells_the_story() -> None:
    ended = after(new_job(), PLACED, Started(), StopAsked(why="cancelled"), Exited(reason="cancelled"))
    with pytest.raises(InvalidTransition) as caught:
        step(ended, Started(), 99.0)
    error = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(error, Conflict)
    for piece in (
        "job 1 (a) is CANCELLED",
        "'started'",
        "attempt 1",
        "asked to stop: cancelled",
        "running since",
    ):
        assert piece in error.message
    assert "spcluster show 1" in (error.hint or "")


def test_a_new_attempt_counts_from_zero_and_goes_on_from_the_checkpoint() -> None:
    running = after(new_job(max_attempts=2), PLACED, Started())
    first = Progress(
        step=7, steps=9, metrics={"loss": 4.0}, loads=11, peak_bytes=50, k=2, units=8, checkpoint_step=5
    )
    running = with_progress(running, first)
    running = with_progress(running, Progress(step=8, metrics={"loss": 3.0, "lr": 0.1}))
    assert (running.step, running.loads, running.metrics, running.first_loss) == (
        8,
        11,
        {"loss": 3.0, "lr": 0.1},
        4.0,
    )
    again = after(running, Lost(), PLACED)
    assert (again.loads, again.peak_bytes, again.k, again.units) == (0, 0, None, None)
    assert (again.step, again.checkpoint_step, again.first_loss) == (8, 5, 4.0)


def test_a_diverged_loss_survives_storing() -> None:
    job = with_progress(new_job(), Progress(metrics={"loss": float("nan"), "max": float("inf")}))
    text = job.model_dump_json()
    again = JobRecord.model_validate_json(text)
    assert again.metrics["loss"] != again.metrics["loss"]
    assert again.metrics["max"] == float("inf")
    assert again.model_dump_json() == text


def test_only_a_new_record_begins() -> None:
    for fields in ({"state": "RUNNING"}, {"attempt": 1}, {"epoch": 1}, {"revision": 1}):
        with pytest.raises(ValueError, match="not new"):
            new_job(**fields)


def test_an_older_version_follows_a_newer_history() -> None:
    first, event = begin(JobRecord(id="1", name="a", user="ann", kind="train"), 1.0)
    history = [
        Happened(1.0, "submitted", {**stored_data(event, first), "colour": "red"}),
        Happened(
            2.0, "teleported", {"planet": "mars", "to_state": "ORBITING", "to_attempt": 3, "to_epoch": 5}
        ),
    ]
    record = replay(history)
    assert (str(record.state), record.attempt, record.epoch, record.changed_at) == ("ORBITING", 3, 5, 2.0)
    assert record.state.holds_device, "bytes that may be in use are not given away"
    with pytest.raises(InvalidTransition):
        step(record, Started(), 3.0)


def test_a_history_must_begin_with_the_submission() -> None:
    with pytest.raises(ValueError, match="submission"):
        replay([])
    with pytest.raises(ValueError, match="begins with 'submitted'"):
        replay([Happened(1.0, "started", {})])


def test_states_this_version_does_not_know_load_under_their_own_name() -> None:
    state = JobState("RESIZING")
    assert state == "RESIZING"
    assert state not in list(JobState)
    assert pickle.loads(pickle.dumps(state)) == state
    with pytest.raises(ValueError, match="3"):
        JobState(3)


def test_events_come_back_from_their_stored_form() -> None:
    for event in (PLACED, Exited(reason="ok", exit_code=0), Started(), Lost(), StopAsked(why="cancelled")):
        assert from_stored(event.kind, {**event.data(), "newer": 1}) == event
    assert from_stored("teleported", {}) is None

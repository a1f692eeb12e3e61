"""What `store/interface.py` promises, asked of every store."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from superpipe_cluster.errors import BadInput, Conflict, NotFound, StaleWrite
from superpipe_cluster.lifecycle.events import Event, Exited, Lost, Placed, Started, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import REPLAYED_FIELDS, InvalidTransition, replay, step
from superpipe_cluster.store.interface import JobStore, User, hash_token
from superpipe_cluster.store.writes import advance

PLACED = Placed(device="cpu:0", budget_bytes=100)
NewJob = Callable[..., JobRecord]


def happen(store: JobStore, record: JobRecord, *events: Event, now: float = 2000.0) -> JobRecord:
    for event in events:
        record = store.transition(record, step(record, event, now), event)
    return record


# ---- submitting and reading --------------------------------------------------------------------


def test_ids_count_up(store: JobStore) -> None:
    assert [store.next_job_id() for _ in range(3)] == ["1", "2", "3"]


def test_a_submitted_job_is_there_as_it_was(store: JobStore, new_job: NewJob) -> None:
    record = new_job(priority=1, after=("7",), plan={"units": 3}, time_limit_s=90.0)
    first = store.submit(record)
    assert first == store.get(record.id)
    assert first == record.model_copy(update={"revision": 1, "queued_at": 1001.0, "changed_at": 1001.0})


def test_a_job_without_a_time_is_submitted_now(store: JobStore, new_job: NewJob) -> None:
    before = store.now()
    record = store.submit(new_job(submitted_at=0.0))
    assert before <= record.submitted_at <= store.now()
    assert record.queued_at == record.submitted_at


def test_a_held_job_begins_held(store: JobStore, new_job: NewJob) -> None:
    record = store.submit(new_job(state="HELD"))
    assert (record.state, record.reason, record.queued_at) == ("HELD", "Held", None)


def test_an_unknown_job_is_not_found(store: JobStore, new_job: NewJob) -> None:
    ghost = new_job()
    with pytest.raises(NotFound):
        store.get(ghost.id)
    with pytest.raises(NotFound):
        store.report(ghost.id, 0, Progress(step=1))
    with pytest.raises(NotFound):
        store.set_wait(ghost.id, 0, "Resources")
    with pytest.raises(NotFound):
        happen(store, ghost, PLACED)
    with pytest.raises(NotFound):
        advance(store, ghost.id, PLACED)
    assert store.events() == []


def test_an_id_is_used_once(store: JobStore, new_job: NewJob) -> None:
    record = store.submit(new_job())
    with pytest.raises(Conflict):
        store.submit(record.model_copy(update={"revision": 0, "name": "other"}))
    assert store.get(record.id).name == record.name
    assert len(store.events()) == 1


@pytest.mark.parametrize(
    "fields", [{"id": "abc"}, {"id": "0"}, {"id": "1:2"}, {"state": "RUNNING"}, {"epoch": 3}]
)
def test_only_new_jobs_are_submitted(store: JobStore, new_job: NewJob, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not an id|not new"):
        store.submit(new_job(**fields))
    assert store.list_jobs() == []


def test_the_same_key_from_the_same_user_is_the_same_job(store: JobStore, new_job: NewJob) -> None:
    first = store.submit(new_job(), idempotency_key="a key\n☃")
    moved_on = happen(store, first, PLACED)
    again = store.submit(new_job(), idempotency_key="a key\n☃")
    assert again == moved_on
    assert store.submit(new_job(), idempotency_key="another").id != first.id
    assert store.submit(new_job(user="bob"), idempotency_key="a key\n☃").id != first.id
    assert len(store.list_jobs()) == 3
    assert [event.kind for event in store.events()] == ["submitted", "placed", "submitted", "submitted"]


def test_many_submits_at_once_with_one_key_are_one_job(store: JobStore, new_job: NewJob) -> None:
    jobs = [new_job() for _ in range(8)]
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda job=job: ids.append(store.submit(job, idempotency_key="k").id))
        for job in jobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert set(ids) == {store.list_jobs()[0].id}
    assert len(store.list_jobs()) == 1


def test_several_jobs_come_in_together_or_not_at_all(store: JobStore, new_job: NewJob) -> None:
    tasks = store.submit_all(
        [new_job(array="1", array_index=index) for index in range(3)], idempotency_key="k"
    )
    assert [(task.id, task.array_index, task.revision) for task in tasks] == [
        ("1", 0, 1),
        ("2", 1, 1),
        ("3", 2, 1),
    ]
    assert store.list_jobs() == store.list_jobs(active_only=True) == store.list_jobs(user="ann") == tasks
    assert [(event.job_id, event.kind) for event in store.events()] == [
        (str(n), "submitted") for n in (1, 2, 3)
    ]
    assert [len(store.events(task.id)) for task in tasks] == [1, 1, 1]
    moved_on = happen(store, tasks[1], PLACED)
    again = store.submit_all([new_job() for _ in range(5)], idempotency_key="k")
    assert again == [tasks[0], moved_on, tasks[2]]
    before = everything(store)
    fresh = new_job()
    with pytest.raises(Conflict, match="job 3"):
        store.submit_all([fresh, new_job(id="3"), new_job()], idempotency_key="l")
    assert everything(store) == before
    assert store.submit(fresh, idempotency_key="l").id == fresh.id


def test_jobs_that_come_in_together_are_of_one_user(store: JobStore, new_job: NewJob) -> None:
    first = new_job()
    for wrong in ([], [first, new_job(user="bob")], [first, first], [first, new_job(id="x")]):
        with pytest.raises(ValueError, match=r"one user|not an id"):
            store.submit_all(wrong)
    assert store.list_jobs() == []


def test_listings(store: JobStore, new_job: NewJob) -> None:
    jobs = [store.submit(new_job(user="bob" if number % 3 == 0 else "ann")) for number in range(1, 13)]
    happen(store, jobs[1], StopAsked(why="cancelled"))
    happen(store, jobs[5], StopAsked(why="cancelled"))
    assert [job.id for job in store.list_jobs()] == [str(number) for number in range(1, 13)], (
        "by number: 2 before 10"
    )
    assert [job.id for job in store.list_jobs(active_only=True)] == [
        "1",
        "3",
        "4",
        "5",
        "7",
        "8",
        "9",
        "10",
        "11",
        "12",
    ]
    assert [job.id for job in store.list_jobs(user="bob")] == ["3", "6", "9", "12"]
    assert [job.id for job in store.list_jobs(active_only=True, user="bob")] == ["3", "9", "12"]
    assert store.list_jobs(user="carl") == []


# ---- transitions -------------------------------------------------------------------------------


def test_a_transition_writes_record_and_event_together(store: JobStore, new_job: NewJob) -> None:
    record = store.submit(new_job())
    record = happen(store, record, PLACED, now=1500.0)
    assert store.get(record.id) == record
    assert (record.state, record.epoch, record.revision) == ("STARTING", 1, 2)
    event = store.events(record.id)[-1]
    assert (event.kind, event.at, event.job_id) == ("placed", 1500.0, record.id)
    assert event.data == {
        "device": "cpu:0", "budget_bytes": 100, "to_state": "STARTING", "to_attempt": 1, "to_epoch": 1,
    }  # fmt: skip


def test_of_two_writes_from_the_same_view_one_wins(store: JobStore, new_job: NewJob) -> None:
    record = store.submit(new_job())
    placed, cancel = PLACED, StopAsked(why="cancelled")
    winner = store.transition(record, step(record, placed, 1.0), placed)
    with pytest.raises(StaleWrite):
        store.transition(record, step(record, cancel, 1.0), cancel)
    with pytest.raises(StaleWrite):
        store.transition(record, step(record, placed, 1.0), placed)
    assert store.get(record.id) == winner
    assert [event.kind for event in store.events(record.id)] == ["submitted", "placed"]


def test_a_report_in_between_makes_a_view_old(store: JobStore, new_job: NewJob) -> None:
    record = happen(store, store.submit(new_job()), PLACED, Started())
    store.report(record.id, record.epoch, Progress(step=3))
    with pytest.raises(StaleWrite):
        happen(store, record, StopAsked(why="cancelled"))
    assert advance(store, record.id, StopAsked(why="cancelled")).step == 3


def test_advance_takes_the_job_as_it_stands(store: JobStore, new_job: NewJob) -> None:
    job_id = store.submit(new_job()).id
    advance(store, job_id, PLACED, epoch=0)
    with pytest.raises(StaleWrite):
        advance(store, job_id, Started(), epoch=0)
    record = advance(store, job_id, Started(), epoch=1)
    assert record == store.get(job_id)
    with pytest.raises(InvalidTransition):
        advance(store, job_id, Started())


def test_advances_from_many_threads_all_happen(store: JobStore, new_job: NewJob) -> None:
    record = happen(store, store.submit(new_job()), PLACED, Started())
    ask = StopAsked(why="cancelled")
    threads = [
        threading.Thread(target=lambda: advance(store, record.id, ask)),
        threading.Thread(target=lambda: advance(store, record.id, ask)),
        *(
            threading.Thread(target=lambda n=n: store.report(record.id, 1, Progress(metrics={f"m{n}": 1.0})))
            for n in range(6)
        ),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = store.get(record.id)
    assert after.revision == record.revision + 8
    assert after.metrics == {f"m{n}": 1.0 for n in range(6)}
    assert [event.kind for event in store.events(record.id)][-2:] == ["stop_asked", "stop_asked"]


# ---- fencing -----------------------------------------------------------------------------------


def everything(store: JobStore) -> tuple[object, ...]:
    return (
        store.list_jobs(),
        store.list_jobs(active_only=True),
        store.events(limit=10_000),
        store.settings(),
    )


def test_an_old_epoch_can_write_nothing(store: JobStore, new_job: NewJob) -> None:
    old = happen(store, store.submit(new_job(max_attempts=3)), PLACED, Started())
    now = happen(store, old, Lost(), PLACED, Started())
    assert (old.epoch, now.epoch) == (1, 3)
    before = everything(store)
    for epoch in (0, 1, 2, 4):
        with pytest.raises(StaleWrite):
            store.report(old.id, epoch, Progress(step=9, metrics={"loss": 0.0}))
        with pytest.raises(StaleWrite):
            store.set_wait(old.id, epoch, "Resources")
        for event in (Exited(reason="ok"), StopAsked(why="cancelled"), Lost()):
            with pytest.raises(StaleWrite):
                advance(store, old.id, event, epoch=epoch)
    for event in (Exited(reason="ok"), StopAsked(why="cancelled"), Lost()):
        with pytest.raises(StaleWrite):
            happen(store, old, event)
    # The same revision and state do not help: the epoch alone refuses it.
    forged = now.model_copy(update={"epoch": old.epoch})
    with pytest.raises(StaleWrite):
        happen(store, forged, Exited(reason="ok"))
    assert everything(store) == before


def test_a_job_without_a_worker_takes_no_reports(store: JobStore, new_job: NewJob) -> None:
    queued = store.submit(new_job())
    ended = happen(store, store.submit(new_job()), PLACED, Started(), Exited(reason="ok"))
    for record in (queued, ended):
        with pytest.raises(StaleWrite):
            store.report(record.id, record.epoch, Progress(step=1))
        assert store.get(record.id) == record


def test_a_worker_of_this_epoch_reports_in_every_state_that_has_one(store: JobStore, new_job: NewJob) -> None:
    record = happen(store, store.submit(new_job()), PLACED)
    record = store.report(record.id, 1, Progress(held_bytes=5))
    record = happen(store, record, Started())
    record = store.report(record.id, 1, Progress(step=1, steps=4, metrics={"loss": 2.0}, loads=7))
    record = happen(store, record, StopAsked(why="cancelled"))
    record = store.report(record.id, 1, Progress(step=2, metrics={"loss": 1.5}))
    assert store.get(record.id) == record
    assert (record.step, record.steps, record.loads, record.first_loss) == (2, 4, 7, 2.0)
    assert len(store.events(record.id)) == 4, "reports are no events"


def test_a_report_that_says_nothing_new_writes_nothing(store: JobStore, new_job: NewJob) -> None:
    record = happen(store, store.submit(new_job()), PLACED)
    record = store.report(record.id, 1, Progress(step=1))
    assert store.report(record.id, 1, Progress(step=1, running=True)).revision == record.revision


def test_why_a_job_waits(store: JobStore, new_job: NewJob) -> None:
    record = store.submit(new_job())
    waiting = store.set_wait(record.id, 0, "Resources", "needs 3 GiB")
    assert (waiting.reason, waiting.message, waiting.revision) == ("Resources", "needs 3 GiB", 2)
    assert store.set_wait(record.id, 0, "Resources", "needs 3 GiB").revision == 2
    assert store.get(record.id) == waiting
    assert [event.kind for event in store.events(record.id)] == ["submitted"]
    placed = happen(store, waiting, PLACED)
    assert (placed.reason, placed.message) == (None, None)
    with pytest.raises(StaleWrite):
        store.set_wait(record.id, 1, "Resources")


# ---- events ------------------------------------------------------------------------------------


def test_the_events_give_the_record(store: JobStore, new_job: NewJob) -> None:
    record = store.submit(new_job(max_attempts=3))
    retried = (
        PLACED,
        Started(),
        Exited(reason="worker_lost", exit_code=-9),
        PLACED,
        Lost(),
        PLACED,
        Started(),
    )
    record = happen(store, record, *retried)
    record = store.report(record.id, record.epoch, Progress(step=3))
    record = happen(
        store, record, StopAsked(why="time_limit"), Exited(reason="time_limit", exit_code=1), now=3000.5
    )
    replayed = replay(event.happened for event in store.events(record.id))
    assert {name: getattr(replayed, name) for name in REPLAYED_FIELDS} == {
        name: getattr(record, name) for name in REPLAYED_FIELDS
    }
    assert (record.state, record.attempt, record.epoch) == (JobState.FAILED, 3, 4)


def test_news_of_all_jobs_can_be_followed(store: JobStore, new_job: NewJob) -> None:
    first, second = store.submit(new_job()), store.submit(new_job())
    happen(store, first, PLACED, Started())
    happen(store, second, StopAsked(why="cancelled"))
    news = store.events()
    assert [(event.job_id, event.kind) for event in news] == [
        ("1", "submitted"), ("2", "submitted"), ("1", "placed"), ("1", "started"), ("2", "stop_asked"),
    ]  # fmt: skip
    assert store.events("1") == [event for event in news if event.job_id == "1"]
    seen: list[str] = []
    at = "0-0"
    while batch := store.events(after=at, limit=2):
        assert len(batch) <= 2
        seen += [event.seq for event in batch]
        at = batch[-1].seq
    assert seen == [event.seq for event in news]
    assert len(set(seen)) == 5
    assert store.events("99") == []
    assert store.events(limit=0) == []


@pytest.mark.parametrize("after", ["", "x", "1", "1-2-3", "-1-0", "$", "1-99999999999999999999", "0-0\n"])
def test_a_wrong_place_to_start_from_is_refused(store: JobStore, after: str) -> None:
    with pytest.raises(BadInput, match=re.escape(repr(after))):
        store.events(after=after)


# ---- settings and users ------------------------------------------------------------------------


def test_settings_are_put_replaced_and_removed(store: JobStore) -> None:
    assert store.settings() == {}
    store.put_setting("quota:ann", {"limit_bytes": 2**40, "weight": 1.5})
    store.put_setting("window:night", {"days": ["mon", "tue"], "name": "nächtlich"})
    store.put_setting("quota:ann", {"limit_bytes": None, "weight": 1.0})
    assert store.settings() == {
        "quota:ann": {"limit_bytes": None, "weight": 1.0},
        "window:night": {"days": ["mon", "tue"], "name": "nächtlich"},
    }
    store.put_setting("quota:ann", None)
    store.put_setting("quota:bob", None)
    assert set(store.settings()) == {"window:night"}


def test_what_was_read_is_not_the_stores(store: JobStore) -> None:
    store.put_setting("window:night", {"days": ["mon"]})
    store.settings()["window:night"]["days"].append("tue")
    assert store.settings() == {"window:night": {"days": ["mon"]}}


@pytest.mark.parametrize(("name", "value"), [("a", float("nan")), ("a", {1, 2}), ("", 1), ("a", object())])
def test_only_what_json_carries_is_set(store: JobStore, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"setting|JSON"):
        store.put_setting(name, value)
    assert store.settings() == {}


def test_users_are_found_by_the_hash_of_their_token(store: JobStore) -> None:
    bob = store.add_user("bob", "user", hash_token("secret-b"))
    ann = store.add_user("ann", "admin", hash_token("secret-a"))
    assert store.user_by_token(hash_token("secret-a")) == ann
    assert store.user_by_token(hash_token("secret-b")) == bob
    assert store.user_by_token(hash_token("secret")) is None
    assert store.user_by_token("") is None
    assert store.users() == [ann, bob]
    assert ann == User("ann", "admin", ann.created_at)
    assert 0 < ann.created_at <= store.now()


def test_names_and_tokens_belong_to_one_user(store: JobStore) -> None:
    ann = store.add_user("ann", "admin", hash_token("a"))
    with pytest.raises(Conflict, match="user ann"):
        store.add_user("ann", "user", hash_token("b"))
    with pytest.raises(Conflict, match="token"):
        store.add_user("bob", "user", hash_token("a"))
    assert store.users() == [ann]
    assert store.user_by_token(hash_token("b")) is None


def test_a_token_itself_is_not_let_in(store: JobStore) -> None:
    with pytest.raises(ValueError, match="token itself"):
        store.add_user("ann", "admin", "spc-0123456789")
    assert store.users() == []


def test_a_store_that_works_says_so(store: JobStore) -> None:
    store.ping()
    assert store.now() > 1_700_000_000

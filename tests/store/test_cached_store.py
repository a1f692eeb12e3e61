"""The store that remembers must answer like the one below it, whatever happens to writes on their way."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from examples import examples
from superpipe_cluster.errors import NotFound, SpclusterError, StaleWrite, StoreUnavailable
from superpipe_cluster.lifecycle.events import Event, Exited, Held, Lost, Placed, Released, Started, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.store import embedded
from superpipe_cluster.store.cached_store import CachedStore
from superpipe_cluster.store.interface import User, hash_token
from superpipe_cluster.store.memory_store import MemoryStore
from superpipe_cluster.store.redis_store import RedisStore
from superpipe_cluster.store.writes import advance

PLACED = Placed("cpu:0", 1)


class Below(MemoryStore):
    """A store that can be out of order: `fails` before or after the next writes, and dies with its latest ones."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: str | None = None
        self.reads = 0
        self.lives = 1
        self._is_writing = False
        self._saved: Any = None

    @property
    def life(self) -> str:
        return f"life {self.lives}"

    def save(self) -> None:
        kept = self._last_id, self._jobs, self._submissions, self._settings
        self._saved = copy.deepcopy(kept)

    def die(self) -> None:
        """Come back with what was saved, and nothing later."""
        if self._saved is not None:
            self._last_id, self._jobs, self._submissions, self._settings = copy.deepcopy(self._saved)
        self.lives += 1

    def _write(self, action: Callable[[], Any]) -> Any:
        if self.fails == "before":
            raise StoreUnavailable("it never got there")
        self._is_writing = True
        try:
            done = action()
        finally:
            self._is_writing = False
        if self.fails == "after":
            raise StoreUnavailable("its answer got lost")
        return done

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        return self._write(lambda: MemoryStore.submit_all(self, records, idempotency_key=idempotency_key))

    def transition(self, before: JobRecord, after: JobRecord, event: Event) -> JobRecord:
        return self._write(lambda: MemoryStore.transition(self, before, after, event))

    def amend(self, before: JobRecord, after: JobRecord) -> JobRecord:
        return self._write(lambda: MemoryStore.amend(self, before, after))

    def put_setting(self, name: str, value: Any) -> None:
        self._write(lambda: MemoryStore.put_setting(self, name, value))

    def get(self, job_id: str) -> JobRecord:
        self.reads += not self._is_writing
        return super().get(job_id)

    def list_jobs(self, active_only: bool = False, user: str | None = None) -> list[JobRecord]:
        self.reads += not self._is_writing
        return super().list_jobs(active_only, user)


def a_job(store: CachedStore, **fields: Any) -> JobRecord:
    values = {"id": store.next_job_id(), "name": "a", "user": "ann", "kind": "train", "max_attempts": 9}
    return JobRecord.model_validate({**values, **fields})


@pytest.fixture
def below() -> Below:
    return Below()


@pytest.fixture
def store(below: Below) -> CachedStore:
    store = CachedStore(below)
    assert store.list_jobs() == []
    return store


def test_reading_asks_nobody(store: CachedStore, below: Below) -> None:
    jobs = [store.submit(a_job(store)) for _ in range(3)]
    store.list_jobs()
    before = below.reads
    for job in jobs:
        advance(store, job.id, PLACED)
        store.report(job.id, 1, Progress(step=1, metrics={"loss": 2.0}))
        assert store.get(job.id).metrics == {"loss": 2.0}
    advance(store, jobs[0].id, Lost())
    store.set_wait(jobs[0].id, 2, "Resources")
    assert [job.state for job in store.list_jobs(active_only=True)] == ["QUEUED", "STARTING", "STARTING"]
    assert below.reads == before
    assert store.list_jobs() == below.list_jobs()


def test_what_is_remembered_is_what_would_be_read(store: CachedStore, below: Below) -> None:
    mine = {"units": (1, 2)}
    submitted = store.submit(a_job(store, plan=mine))
    mine["units"] = (3,)
    assert store.get(submitted.id).plan == below.get(submitted.id).plan == {"units": [1, 2]}


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_failed_write_is_looked_at_again(store: CachedStore, below: Below, fails: str) -> None:
    job = store.submit(a_job(store))
    store.list_jobs()
    below.fails = fails
    with pytest.raises(StoreUnavailable):
        advance(store, job.id, PLACED)
    with pytest.raises(StoreUnavailable):
        store.submit(a_job(store))
    with pytest.raises(StoreUnavailable):
        store.put_setting("quota:ann", 1)
    below.fails = None
    assert store.list_jobs(active_only=True) == below.list_jobs(active_only=True)
    assert store.get(job.id).state == ("QUEUED" if fails == "before" else "STARTING")
    assert len(store.list_jobs()) == (1 if fails == "before" else 2)
    assert store.settings() == below.settings()
    reads = below.reads
    store.list_jobs()
    assert below.reads == reads, "what was looked at is believed again"


def test_a_refused_write_is_looked_at_again(store: CachedStore, below: Below) -> None:
    old = store.submit(a_job(store))
    behind_its_back = advance(below, old.id, PLACED)
    assert store.get(old.id).state == "QUEUED", "nobody else writes, so nobody looks"
    with pytest.raises(StaleWrite):
        store.transition(old, behind_its_back, PLACED)
    assert store.get(old.id) == behind_its_back
    # With a second try in hand, the job as it stands is what the event happens to.
    advance(below, old.id, Started())
    assert advance(store, old.id, Exited("ok")).state == "SUCCEEDED"


def test_while_nobody_answers_what_is_doubted_is_not_told(store: CachedStore, below: Below) -> None:
    sure, unsure = store.submit(a_job(store)), store.submit(a_job(store))
    store.list_jobs()
    below.fails = "after"
    with pytest.raises(StoreUnavailable):
        advance(store, unsure.id, StopAsked("cancelled"))

    def gone(*_: object) -> JobRecord:
        raise StoreUnavailable("nobody there")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(below, "get", gone)
        assert store.get(sure.id) == sure
        with pytest.raises(StoreUnavailable):
            store.get(unsure.id)
        with pytest.raises(StoreUnavailable):
            store.list_jobs()
    assert store.get(unsure.id).state == "CANCELLED"


def test_another_life_is_read_from_the_start(store: CachedStore, below: Below) -> None:
    first = store.submit(a_job(store))
    store.put_setting("quota:ann", 1)
    below.save()
    advance(store, first.id, PLACED)
    lost = store.submit(a_job(store))
    store.put_setting("quota:ann", 2)
    below.die()
    assert store.list_jobs() == below.list_jobs() == [first]
    assert store.settings() == {"quota:ann": 1}
    with pytest.raises(NotFound):
        store.get(lost.id)
    again = store.submit(a_job(store, name="other"))
    assert again.id == lost.id, "the counter was lost, too"
    assert store.get(again.id).name == "other"


def test_while_all_is_read_again_nobody_sees_half_of_it(store: CachedStore, below: Below) -> None:
    """A listing without a job that runs would have its worker killed."""
    for _ in range(200):
        store.submit(a_job(store))
    over = threading.Event()
    listed: set[int] = set()

    def read() -> None:
        while not over.is_set():
            listed.add(len(store.list_jobs(active_only=True)))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    for _ in range(20):
        below.die()
        store.now()
        store.report(advance(store, store.submit(a_job(store)).id, PLACED).id, 1, Progress(step=1))
    over.set()
    for thread in readers:
        thread.join()
    assert min(listed) >= 200
    assert store.list_jobs() == below.list_jobs()


def test_a_number_given_out_again_is_not_taken_for_the_lost_job(store: CachedStore, below: Below) -> None:
    below.save()
    advance(store, store.submit(a_job(store)).id, PLACED)
    below.die()
    below.lives -= 1  # nobody has noticed yet
    again = store.submit(a_job(store, name="other"))
    assert (again.id, store.get(again.id)) == ("1", below.get("1"))


def test_users_that_others_add_are_found(store: CachedStore, below: Below) -> None:
    assert store.user_by_token(hash_token("t")) is None
    ann = below.add_user("ann", "admin", hash_token("t"))
    assert store.user_by_token(hash_token("t")) == ann
    assert store.users() == [User("ann", "admin", ann.created_at)]


def test_many_hands(store: CachedStore, below: Below) -> None:
    """Writers and readers at once, some of the writes failing; in the end memory is right."""
    jobs = [store.submit(a_job(store)).id for _ in range(4)]
    flaky = threading.Event()
    over = threading.Event()
    listed: list[int] = []

    def write(number: int) -> None:
        for round_number in range(60):
            below.fails = (
                ("after", None, "before", None)[(number + round_number) % 4] if flaky.is_set() else None
            )
            for job_id in jobs:
                try:
                    advance(store, job_id, Held() if store.get(job_id).state == "QUEUED" else Released())
                    store.set_wait(job_id, 0, f"{number}")
                except SpclusterError:
                    pass

    def read() -> None:
        while not over.is_set():
            listed.append(len(store.list_jobs(active_only=True)))

    flaky.set()
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    below.fails = None
    assert store.list_jobs() == below.list_jobs()
    assert set(listed) == {4}, "no job was ever missing from a listing"


EVENTS: st.SearchStrategy[Event] = st.sampled_from(
    [PLACED, PLACED, Started(), Lost(), Held(), Released(), Exited("ok"), StopAsked("cancelled")]
)


@pytest.mark.hypothesis
def test_whatever_happens_below_the_answers_are_its_own() -> None:
    class Flaky(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.below = Below()
            self.store = CachedStore(self.below)
            #: Records as somebody saw them, also of jobs that were lost since then.
            self.seen: list[JobRecord] = []

        def attempt(self, fails: str | None, action: Callable[[], Any]) -> None:
            self.below.fails = fails
            with suppress(SpclusterError):
                action()
            self.below.fails = None

        @rule(fails=st.sampled_from([None, None, "before", "after"]), key=st.sampled_from([None, "k"]))
        def submit(self, fails: str | None, key: str | None) -> None:
            record = a_job(self.store)
            self.attempt(fails, lambda: self.seen.append(self.store.submit(record, idempotency_key=key)))

        @rule(data=st.data(), fails=st.sampled_from([None, None, "before", "after"]), event=EVENTS)
        def happen(self, data: st.DataObject, fails: str | None, event: Event) -> None:
            if self.seen:
                job_id = data.draw(st.sampled_from(self.seen)).id
                self.attempt(fails, lambda: self.seen.append(advance(self.store, job_id, event)))

        @rule(data=st.data(), fails=st.sampled_from([None, "before", "after"]), step=st.integers(0, 2))
        def report(self, data: st.DataObject, fails: str | None, step: int) -> None:
            if self.seen:
                seen = data.draw(st.sampled_from(self.seen))
                self.attempt(fails, lambda: self.store.report(seen.id, seen.epoch, Progress(step=step)))

        @rule(fails=st.sampled_from([None, "before", "after"]), value=st.none() | st.integers(0, 3))
        def put(self, fails: str | None, value: int | None) -> None:
            self.attempt(fails, lambda: self.store.put_setting("quota:ann", value))

        @rule()
        def save(self) -> None:
            self.below.save()

        @rule()
        def die(self) -> None:
            self.below.die()

        @invariant()
        def the_answers_are_those_of_the_store_below(self) -> None:
            assert self.store.list_jobs() == self.below.list_jobs()
            assert self.store.list_jobs(active_only=True) == self.below.list_jobs(active_only=True)
            assert self.store.settings() == self.below.settings()

    run_state_machine_as_test(
        Flaky, settings=settings(max_examples=examples(30), stateful_step_count=30, deadline=None)
    )


def test_a_restarted_redis_is_noticed(short_path: Path) -> None:
    server = embedded.start(short_path / "redis")
    below = RedisStore(server.url)
    store = CachedStore(below)
    try:
        job = store.submit(a_job(store))
        assert store.list_jobs() == [job]
        first = store.life
        assert first
        embedded.stop(server.url, server.pid)
        assert store.get(job.id) == job, "what was read stays known while nobody answers"
        with pytest.raises(StoreUnavailable):
            advance(store, job.id, PLACED)
        server = embedded.start(short_path / "redis")
        store.now()
        assert store.life not in ("", first)
        assert store.list_jobs() == [job]
        assert advance(store, job.id, PLACED).state == "STARTING"
    finally:
        store.close()
        embedded.stop(server.url, server.pid)

"""All stores, driven by the same hands, must answer the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from examples import examples
from superpipe_cluster.errors import SpclusterError
from superpipe_cluster.lifecycle.events import (
    DependencyFailed,
    Event,
    Exited,
    Held,
    Lost,
    Placed,
    Released,
    Started,
    StopAsked,
)
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import REPLAYED_FIELDS, replay, step
from superpipe_cluster.store.cached_store import CachedStore
from superpipe_cluster.store.interface import JobStore, hash_token
from superpipe_cluster.store.memory_store import MemoryStore
from superpipe_cluster.store.redis_store import RedisStore
from superpipe_cluster.store.writes import advance

USERS = st.sampled_from(["ann", "bob"])
EPOCHS = st.integers(0, 4)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from([Held(), Released(), Started(), Started(), Lost(), DependencyFailed(job_id="0")]),
    st.builds(Placed, device=st.just("cpu:0"), budget_bytes=st.integers(1, 9)),
    st.builds(StopAsked, why=st.sampled_from(["cancelled", "time_limit", "preempted"])),
    st.builds(Exited, reason=st.sampled_from(["ok", "error", "worker_lost", "preempted"])),
)
PROGRESS = st.builds(
    Progress,
    step=st.none() | st.integers(0, 3),
    loads=st.none() | st.integers(0, 3),
    metrics=st.dictionaries(st.sampled_from(["loss", "lr"]), st.floats(0, 9) | st.just(float("inf"))),
)


def outcome(action: Callable[[], Any]) -> Any:
    """What an action gave, or how it failed."""
    try:
        return action()
    except SpclusterError as error:
        return type(error), error.message, error.hint


@pytest.mark.hypothesis
@pytest.mark.timeout(300)
def test_all_stores_do_the_same(redis_store: RedisStore, raw: Any) -> None:
    class SideBySide(RuleBasedStateMachine):
        #: Records as some caller once saw them, by now perhaps old.
        views = Bundle("views")

        def __init__(self) -> None:
            super().__init__()
            raw.flushall()
            #: One in memory, and one that is remembered twice.
            self.others: tuple[JobStore, ...] = (MemoryStore(), CachedStore(CachedStore(MemoryStore())))
            self.now = 1000.0

        def each(self, action: Callable[[JobStore], Any]) -> Any:
            stored = outcome(lambda: action(redis_store))
            for other in self.others:
                assert outcome(lambda: action(other)) == stored  # noqa: B023
            return stored

        def view_of(self, found: Any) -> Any:
            return found if isinstance(found, JobRecord) else multiple()

        @rule(target=views, user=USERS, key=st.sampled_from([None, None, "k", "l"]), held=st.booleans())
        def submit(self, user: str, key: str | None, held: bool) -> Any:
            self.now += 1
            record = JobRecord(
                id=self.each(lambda store: store.next_job_id()),
                name="a",
                user=user,
                kind="train",
                state=JobState.HELD if held else JobState.QUEUED,
                max_attempts=2,
                submitted_at=self.now,
            )
            return self.view_of(self.each(lambda store: store.submit(record, idempotency_key=key)))

        @rule(target=views, user=USERS, key=st.sampled_from([None, "k", "l"]), count=st.integers(0, 3))
        def submit_several(self, user: str, key: str | None, count: int) -> Any:
            self.now += 1
            ids = [self.each(lambda store: store.next_job_id()) for _ in range(count)]
            records = [
                JobRecord(id=job_id, name="a", user=user, kind="train", array=ids[0], submitted_at=self.now)
                for job_id in ids
            ]

            def act(store: JobStore) -> Any:
                try:
                    return store.submit_all(records, idempotency_key=key)
                except ValueError as error:
                    return str(error)

            found = self.each(act)
            return multiple(*found) if isinstance(found, list) else multiple()

        @rule(target=views, view=views)
        def read(self, view: JobRecord) -> Any:
            return self.each(lambda store: store.get(view.id))

        @rule(target=views, view=views, event=EVENTS)
        def transition(self, view: JobRecord, event: Event) -> Any:
            self.now += 1

            def act(store: JobStore) -> JobRecord:
                return store.transition(view, step(view, event, self.now), event)

            return self.view_of(self.each(act))

        @rule(target=views, view=views, event=EVENTS, fenced=st.booleans())
        def go_on(self, view: JobRecord, event: Event, fenced: bool) -> Any:
            # `advance` asks the store for the time, and the clocks differ. So only its refusal is compared;
            # the transition itself is made with a time of ours, on what each store has at the moment.
            self.now += 1

            def act(store: JobStore) -> JobRecord:
                current = store.get(view.id)
                if fenced and current.epoch != view.epoch:
                    return advance(store, view.id, event, epoch=view.epoch)
                return store.transition(current, step(current, event, self.now), event)

            return self.view_of(self.each(act))

        @rule(target=views, view=views, epoch=EPOCHS, progress=PROGRESS)
        def report(self, view: JobRecord, epoch: int, progress: Progress) -> Any:
            return self.view_of(self.each(lambda store: store.report(view.id, epoch, progress)))

        @rule(target=views, view=views, progress=PROGRESS)
        def report_as_seen(self, view: JobRecord, progress: Progress) -> Any:
            return self.view_of(self.each(lambda store: store.report(view.id, view.epoch, progress)))

        @rule(target=views, view=views, epoch=EPOCHS, reason=st.sampled_from([None, "Resources", "Priority"]))
        def set_wait(self, view: JobRecord, epoch: int, reason: str | None) -> Any:
            return self.view_of(self.each(lambda store: store.set_wait(view.id, epoch, reason, "so it is")))

        @rule(name=st.sampled_from(["quota:ann", "window:night"]), value=st.none() | st.integers(0, 2**60))
        def put_setting(self, name: str, value: int | None) -> None:
            self.each(lambda store: store.put_setting(name, value))

        @rule(name=USERS, token=st.sampled_from(["s", "t"]))
        def add_user(self, name: str, token: str) -> None:
            def act(store: JobStore) -> tuple[str, str]:
                user = store.add_user(name, "user", hash_token(token))
                return user.name, user.role

            self.each(act)

        @rule(view=views, limit=st.integers(-1, 3), skip=st.integers(0, 5))
        def follow(self, view: JobRecord, limit: int, skip: int) -> None:
            def act(store: JobStore) -> list[Any]:
                seqs = ["0-0", *(event.seq for event in store.events(view.id))]
                found = store.events(view.id, after=seqs[min(skip, len(seqs) - 1)], limit=limit)
                return [(event.at, event.job_id, event.kind, event.data) for event in found]

            self.each(act)

        @invariant()
        def everything_is_the_same(self) -> None:
            self.each(lambda store: store.list_jobs())
            self.each(lambda store: store.list_jobs(active_only=True))
            self.each(lambda store: store.list_jobs(user="ann"))
            self.each(lambda store: store.settings())
            self.each(lambda store: [(user.name, user.role) for user in store.users()])
            self.each(lambda store: [(one.at, one.job_id, one.kind, one.data) for one in store.events()])

        @invariant()
        def every_history_gives_its_record(self) -> None:
            for record in redis_store.list_jobs():
                replayed = replay(event.happened for event in redis_store.events(record.id))
                assert {name: getattr(replayed, name) for name in REPLAYED_FIELDS} == {
                    name: getattr(record, name) for name in REPLAYED_FIELDS
                }

        @invariant()
        def the_index_of_active_jobs_is_right(self) -> None:
            active = {job.id for job in redis_store.list_jobs() if not job.state.is_terminal}
            assert set(raw.zrange("spcluster:jobs:active", 0, -1)) == active

    run_state_machine_as_test(
        SideBySide,
        settings=settings(
            max_examples=examples(20),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

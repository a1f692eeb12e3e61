"""Any sequence of events, legal or not: what must hold afterwards."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from examples import examples
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
    Wanted,
)
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState
from superpipe_cluster.lifecycle.step import (
    REPLAYED_FIELDS,
    Happened,
    InvalidTransition,
    begin,
    replay,
    step,
    stored_data,
)
from superpipe_cluster.lifecycle.table import TABLE

REASONS = st.sampled_from([reason.value for reason in EndReason if reason is not EndReason.DEPENDENCY_FAILED])
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.sampled_from([Held(), Released(), Started(), Paused(), Resumed(), DependencyFailed(job_id="0")]),
    st.builds(Placed, device=st.sampled_from(["cpu:0", "cpu:1"]), budget_bytes=st.integers(1, 100)),
    st.builds(Wanted, budget_bytes=st.none() | st.integers(0, 100)),
    st.builds(StopAsked, why=st.sampled_from(["cancelled", "time_limit", "preempted"])),
    st.builds(Exited, reason=REASONS, exit_code=st.integers(-15, 2)),
    st.builds(Lost, why=st.sampled_from(["worker_lost", "node_lost"])),
)


class AJob(RuleBasedStateMachine):
    record: JobRecord
    ended: ClassVar[frozenset[JobState]] = frozenset(state for state in JobState if state.is_terminal)

    @initialize(held=st.booleans(), max_attempts=st.integers(1, 3))
    def submit(self, held: bool, max_attempts: int) -> None:
        state = JobState.HELD if held else JobState.QUEUED
        wanted = JobRecord(id="1", name="a", user="ann", kind="train", state=state, max_attempts=max_attempts)
        self.now = 1.0
        self.record, event = begin(wanted, self.now)
        self.history = [Happened(self.now, event.kind, stored_data(event, self.record))]
        self.placements = 0

    @rule(event=EVENTS)
    def happen(self, event: Event) -> None:
        before = self.record
        self.now += 1.0
        try:
            self.record = step(before, event, self.now)
        except InvalidTransition:
            assert self.record is before
            return
        self.history.append(Happened(self.now, event.kind, stored_data(event, self.record)))
        self.placements += isinstance(event, Placed)
        assert before.state not in self.ended, "nothing leaves a final state"
        assert self.record.state in TABLE[before.state, event.kind]
        fenced = isinstance(event, Placed | Lost)
        assert self.record.epoch == before.epoch + fenced, (
            "one epoch per placement and per rescue, none otherwise"
        )

    @rule()
    def a_legal_event_exists_until_the_end(self) -> None:
        assert (self.record.state in self.ended) != any(start == self.record.state for start, _ in TABLE)

    @invariant()
    def the_fields_fit_the_state(self) -> None:
        job = self.record
        assert job.attempt == self.placements
        assert job.losses <= job.max_attempts
        assert (job.ended_at is not None) == job.state.is_terminal
        if job.state.holds_device:
            assert job.device is not None
            assert job.budget_bytes is not None
        if job.state.is_waiting:
            assert (job.device, job.budget_bytes, job.started_at, job.stop_asked) == (None, None, None, None)
            assert job.wants_bytes is None
        if job.state.is_terminal:
            assert job.reason in set(EndReason)
            assert EndReason(job.reason).ends_in is job.state
        assert (job.stop_asked is not None) >= (job.state is JobState.STOPPING)
        assert (job.started_at is not None) >= (job.state in (JobState.RUNNING, JobState.PAUSED))

    @invariant()
    def the_history_gives_the_record(self) -> None:
        replayed = replay(self.history)
        assert {name: getattr(replayed, name) for name in REPLAYED_FIELDS} == {
            name: getattr(self.record, name) for name in REPLAYED_FIELDS
        }

    @invariant()
    def the_record_survives_storing(self) -> None:
        assert JobRecord.model_validate_json(self.record.model_dump_json()) == self.record


TestAJob = AJob.TestCase
TestAJob.settings = settings(
    max_examples=examples(60), stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)

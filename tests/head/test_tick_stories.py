"""Any story of submits, ends, deaths, cancels and new heads keeps the promises of the head."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from head.fakes import GIB, Lab
from superpipe_cluster.errors import Conflict
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.lifecycle.events import StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store.writes import advance

CAPACITY_GIB = 10


class Stories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.lab = Lab(Path(self.folder.name), (f"cpu:{CAPACITY_GIB}GiB@1GB/s",))
        self.jobs: list[JobRecord] = []
        self.ended: dict[str, str] = {}
        self.begun: dict[Worker, int] = {}

    def teardown(self) -> None:
        self._finish_everything()
        self.folder.cleanup()

    @rule(gib=st.integers(1, CAPACITY_GIB), priority=st.integers(-1, 1))
    def submit(self, gib: int, priority: int) -> None:
        self.jobs.append(self.lab.submit(gib=gib, priority=priority))

    @rule()
    def tick(self) -> None:
        self.lab.tick.run()

    @rule()
    def new_head(self) -> None:
        self.lab.new_head()

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.lab.executor.workers)
    def program_begins(self, pick) -> None:  # type: ignore[no-untyped-def]
        worker = pick.choice(sorted(self.lab.executor.workers))
        self.begun[worker] = self.lab.executor.started.count(worker)
        self.lab.reports.take(*worker, {"progress": {"running": True}, "end": None})

    @rule(pick=st.randoms(use_true_random=False), reason=st.sampled_from(["ok", "error", "worker_lost"]))
    @precondition(lambda self: self.lab.executor.workers)
    def program_ends(self, pick, reason: str) -> None:  # type: ignore[no-untyped-def]
        worker = pick.choice(sorted(self.lab.executor.workers))
        self.lab.reports.take(*worker, {"progress": {}, "end": {"reason": reason}})

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.lab.executor.workers)
    def actor_dies(self, pick) -> None:  # type: ignore[no-untyped-def]
        self.lab.executor.kill(pick.choice(sorted(self.lab.executor.workers)))

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.jobs)
    def cancel(self, pick) -> None:  # type: ignore[no-untyped-def]
        with contextlib.suppress(Conflict):
            advance(self.lab.store, pick.choice(self.jobs).id, StopAsked("cancelled"))

    @rule(broken=st.booleans())
    def ray_comes_and_goes(self, broken: bool) -> None:
        self.lab.executor.broken = broken
        try:
            self.lab.tick.run()
        except ConnectionError:
            assert broken
        self.lab.executor.broken = False

    @invariant()
    def promises_fit_the_device(self) -> None:
        held = sum(
            record.budget_bytes or 0 for record in self.lab.store.list_jobs() if record.state.holds_device
        )
        assert held <= CAPACITY_GIB * GIB

    @invariant()
    def a_job_that_has_ended_stays_as_it_ended(self) -> None:
        for record in self.lab.store.list_jobs():
            if record.id in self.ended:
                assert record.state == self.ended[record.id]
            elif record.state.is_terminal:
                self.ended[record.id] = str(record.state)

    @invariant()
    def an_attempt_that_was_heard_of_is_not_started_again(self) -> None:
        for worker, starts in self.begun.items():
            assert self.lab.executor.started.count(worker) == starts

    def _finish_everything(self) -> None:
        """Whatever has happened: when programs end, every job does, and no worker is left."""
        for _ in range(4 * len(self.jobs) + 4):
            self.lab.tick.run()
            for worker in list(self.lab.executor.workers):
                self.lab.reports.take(*worker, {"progress": {"running": True}, "end": {"reason": "ok"}})
        self.lab.tick.run()
        assert all(record.state.is_terminal for record in self.lab.store.list_jobs())
        assert self.lab.executor.alive() == frozenset()


Stories.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestStories = Stories.TestCase

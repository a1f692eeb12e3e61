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
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.interface import Orders, Worker
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
        #: What the programs really hold, and what each worker was told last.
        self.held: dict[Worker, int] = {}
        self.orders: dict[Worker, Orders] = {}

    def teardown(self) -> None:
        self._finish_everything()
        self.folder.cleanup()

    @rule(
        gib=st.sampled_from([1, 2, 3, 4, 6, 9]), more=st.sampled_from([9, 4, 0]), priority=st.integers(-1, 1)
    )
    def submit(self, gib: int, more: int, priority: int) -> None:
        most = min(gib + more, CAPACITY_GIB) * GIB
        curve = tuple((size * GIB, 12.0 / size, GIB // size) for size in range(1, CAPACITY_GIB + 1))
        self.jobs.append(
            self.lab.submit(gib=gib, budget_max_bytes=most, priority=priority, curve=curve, steps=1000)
        )

    @rule()
    def tick(self) -> None:
        self.lab.tick.run()

    @rule()
    def new_head(self) -> None:
        self.lab.new_head()

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.lab.executor.workers)
    def program_begins(self, pick) -> None:  # type: ignore[no-untyped-def]
        self._begin(pick.choice(sorted(self.lab.executor.workers)))

    @rule()
    def a_calm_moment(self) -> None:
        self.lab.tick.run()
        for worker in sorted(self.lab.executor.workers):
            self._begin(worker)
        self.lab.tick.run()

    def _begin(self, worker: Worker) -> None:
        self.begun[worker] = self.lab.executor.started.count(worker)
        if worker not in self.held:
            attempt = Attempt.read(self.lab.home.job(worker.job_id).attempt)
            if attempt.epoch == worker.epoch:
                self.held[worker] = attempt.budget_bytes
        self._tell(worker, running=True, k=1, step_s=1.0)

    @rule(refuses=st.booleans(), is_heard=st.booleans())
    @precondition(lambda self: any(record.budget_asked_bytes for record in self.lab.store.list_jobs()))
    def programs_are_at_a_boundary(self, refuses: bool, is_heard: bool) -> None:
        for worker in sorted(self.held):
            self._tell(worker)
            orders = self.orders[worker]
            if orders.budget_bytes is None:
                continue
            if not refuses:
                self.held[worker] = orders.budget_bytes
            if is_heard:
                self._tell(
                    worker,
                    budget_bytes=self.held[worker],
                    budget_revision=orders.budget_revision,
                    budget_refused="not now" if refuses else None,
                )

    @rule(seconds=st.sampled_from([1, 31, 59]))
    def time_passes(self, seconds: int) -> None:
        self.lab.clock.now_s += seconds
        for worker in sorted(self.held):
            self._tell(worker)
        self.lab.tick.run()
        for worker in sorted(self.held):
            self._tell(worker)

    @rule(pick=st.randoms(use_true_random=False), reason=st.sampled_from(["ok", "error", "worker_lost"]))
    @precondition(lambda self: self.lab.executor.workers)
    def program_ends(self, pick, reason: str) -> None:  # type: ignore[no-untyped-def]
        worker = pick.choice(sorted(self.lab.executor.workers))
        self.held.pop(worker, None)
        self.lab.reports.take(*worker, {"progress": {}, "end": {"reason": reason}})

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.lab.executor.workers)
    def actor_dies(self, pick) -> None:  # type: ignore[no-untyped-def]
        self.lab.executor.kill(pick.choice(sorted(self.lab.executor.workers)))
        self._bury()

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
            record.promised_bytes for record in self.lab.store.list_jobs() if record.state.holds_device
        )
        assert held <= CAPACITY_GIB * GIB

    @invariant()
    def what_is_really_held_fits_the_device(self) -> None:
        self._bury()
        assert sum(self.held.values()) <= CAPACITY_GIB * GIB

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

    def _tell(self, worker: Worker, **progress: object) -> None:
        self.orders[worker] = self.lab.reports.take(*worker, {"progress": progress, "end": None})

    def _bury(self) -> None:
        """A program ends with its actor, and one whose epoch is over at its next report."""
        self.held = {
            worker: held_bytes
            for worker, held_bytes in self.held.items()
            if worker in self.lab.executor.workers and not self.orders[worker].stale
        }

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

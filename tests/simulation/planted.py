"""Bugs that are put in on purpose, to see that the simulation finds them, and how soon.

Owns the bugs, none of which is in the product, and the table of which seed catches which. Each is one that such a
scheduler really has had, or nearly had.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

from simulation.head import Head
from simulation.run import Outcome, run
from simulation.world import World
from superpipe_cluster.execution.interface import Orders, Report, Worker
from superpipe_cluster.head import tick
from superpipe_cluster.lifecycle import step as lifecycle_step
from superpipe_cluster.lifecycle.events import Event, Lost
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.decisions import Decision, Start, Wait
from superpipe_cluster.scheduling.snapshot import Snapshot
from superpipe_cluster.store import writes
from superpipe_cluster.store.memory_store import MemoryStore
from superpipe_cluster.store.writes import advance

#: Every bug has to be caught by one of the first so many seeds.
WITHIN_SEEDS = 200
EVENTS = 1000


@dataclass(frozen=True, slots=True)
class Bug:
    """One planted bug.

    Attributes:
        what: in a sentence.
        plant: changes one simulated world.
        patched: changes the code for as long as it is entered.
    """

    what: str
    plant: Callable[[World], None] = lambda world: None
    patched: Callable[[], AbstractContextManager[Any]] = nullcontext


def run_with(
    bug: str | None, seed: int, events: int = EVENTS, listen: Callable[[str], None] | None = None
) -> Outcome:
    """Simulate a seed, with a bug in or without."""
    if bug is None:
        return run(seed, events, listen)
    with BUGS[bug].patched():
        return run(seed, events, listen, BUGS[bug].plant)


def first_to_catch(bug: str) -> Outcome | None:
    """The first seed that finds the bug; None when none of the first `WITHIN_SEEDS` does."""
    for seed in range(WITHIN_SEEDS):
        outcome = run_with(bug, seed)
        if outcome.broken is not None:
            return outcome
    return None


def table(processes: int) -> str:
    """Which seed catches which bug, as Markdown."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        caught = pool.map(first_to_catch, list(BUGS), chunksize=1)
    lines = [
        "# Planted bugs, and the seeds that catch them",
        "",
        f"Written by `python -m simulation --planted`. Seeds count from 0; each has {EVENTS} events and a quiet",
        "end. Named is the first seed that breaks an invariant, and the sentence that it breaks with.",
        "",
        "| bug | what is wrong | seed | event | found by |",
        "|---|---|---|---|---|",
    ]
    for name, outcome in zip(BUGS, caught, strict=True):
        found = (
            f"{outcome.seed} | {outcome.events} | {outcome.broken}" if outcome else "none | | **not caught**"
        )
        lines.append(f"| {name} | {BUGS[name].what} | {found} |")
    return "\n".join(lines) + "\n"


# ---- at the worker -------------------------------------------------------------------------------------------


def _unfenced(world: World) -> None:
    world.is_fenced = False


def _unconfirmed(world: World) -> None:
    world.cluster.clears_at_once = True


# ---- in the records ------------------------------------------------------------------------------------------


def _stepping(wrong: Callable[[JobRecord, Event, float], JobRecord]) -> AbstractContextManager[Any]:
    """Wrong in the head and in a replay alike: the witness has to find it by other means."""
    both = ExitStack()
    both.enter_context(patch.object(writes, "step", wrong))
    both.enter_context(patch.object(lifecycle_step, "step", wrong))
    return both


def _charged_twice() -> AbstractContextManager[Any]:
    honest = lifecycle_step.step

    def greedy(record: JobRecord, event: Event, now: float) -> JobRecord:
        after = honest(record, event, now)
        if event.kind == "exited" and record.started_at is not None:
            again = record.promised_bytes * max(0.0, now - record.started_at)
            after = after.model_copy(update={"used_byte_s": after.used_byte_s + again})
        return after

    return _stepping(greedy)


def _blind_writes(world: World) -> None:
    class Blind(MemoryStore):
        def transition(self, before: JobRecord, after: JobRecord, event: Event) -> JobRecord:
            stored = self.get(before.id)
            stands = {"state": stored.state, "epoch": stored.epoch, "revision": stored.revision}
            return super().transition(before.model_copy(update=stands), after, event)

    world.store = Blind(world.loop.wall)


def _any_epoch_reports() -> AbstractContextManager[Any]:
    honest = writes.report

    def trusting(store: writes.Amendable, job_id: str, epoch: int, progress: Any) -> JobRecord:
        return honest(store, job_id, store.get(job_id).epoch, progress)

    return patch.object(writes, "report", trusting)


def _keys_ignored(world: World) -> None:
    honest = world.store.submit_all
    world.store.submit_all = lambda records, *, idempotency_key=None: honest(records)  # type: ignore[method-assign]


# ---- in the head ---------------------------------------------------------------------------------------------


def _forgetful(world: World) -> None:
    class Forgetful(Head):
        """Tells workers to stop only if it was there when that was asked."""

        def __init__(self, world: World) -> None:
            super().__init__(world)
            born, honest = world.loop.wall(), self.reports.take

            def take(job_id: str, epoch: int, report: Report) -> Orders:
                orders = honest(job_id, epoch, report)
                asked_at = world.witness.books[job_id].record.changed_at
                return replace(orders, stop=None) if asked_at < born else orders

            self.reports.take = take  # type: ignore[method-assign]

    world.make_head = Forgetful


def _impatient(world: World) -> None:
    class Impatient(Head):
        """Takes a start that was not answered for one that did not happen."""

        def __init__(self, world: World) -> None:
            super().__init__(world)
            honest = self.executor.start

            def start(worker: Worker, folder: Any) -> None:
                try:
                    honest(worker, folder)
                except ConnectionError:
                    advance(
                        self.store, worker.job_id, Lost("worker_lost", "did not start"), epoch=worker.epoch
                    )

            self.executor.__dict__["start"] = start

    world.make_head = Impatient


def _any_acknowledgement(world: World) -> None:
    class Trusting(Head):
        """Takes every acknowledgement for one of the newest budget."""

        def __init__(self, world: World) -> None:
            super().__init__(world)
            honest = self.reports.take

            def take(job_id: str, epoch: int, report: Report) -> Orders:
                progress = report["progress"]
                if "budget_revision" in progress:
                    newest = world.witness.books[job_id].record.budget_revision
                    progress = {**progress, "budget_revision": newest}
                return honest(job_id, epoch, {**report, "progress": progress})

            self.reports.take = take  # type: ignore[method-assign]

    world.make_head = Trusting


# ---- in the scheduler ----------------------------------------------------------------------------------------


def _deciding(wrong: Callable[[Callable[[Snapshot], list[Decision]], Snapshot], list[Decision]]) -> Any:
    return patch.object(tick, "decide", partial(wrong, tick.decide))


def _overtaking(honest: Callable[[Snapshot], list[Decision]], snapshot: Snapshot) -> list[Decision]:
    """Whoever waits for bytes alone and fits starts, whatever waits before it."""
    decisions = honest(snapshot)
    free = {device.id: device.capacity_bytes - snapshot.used_bytes(device.id) for device in snapshot.devices}
    for one in decisions:
        if isinstance(one, Start):
            free[one.device] -= one.budget_bytes
        elif not isinstance(one, Wait) and hasattr(one, "budget_bytes"):
            return decisions  # bytes are on their way: not now
    jobs = {job.id: job for job in snapshot.jobs}
    hasty: list[Decision] = []
    for one in decisions:
        job = jobs[one.job_id]
        fits = [device for device, left in free.items() if left >= job.budget_min_bytes]
        is_plain = not (job.host_bytes or job.link_min_bytes_per_s or job.array_limit or snapshot.quotas)
        if isinstance(one, Wait) and one.reason in ("Resources", "Priority") and fits and is_plain:
            free[fits[0]] -= job.budget_min_bytes
            hasty.append(Start(job.id, fits[0], job.budget_min_bytes))
        else:
            hasty.append(one)
    return hasty


def _settled(
    honest: Callable[[Snapshot], list[Decision]], snapshot: Snapshot, *, at_asked: bool
) -> list[Decision]:
    """Takes what is being asked for as done, or as not asked for."""

    def seen(job: JobRecord) -> JobRecord:
        asked, held = job.budget_asked_bytes, job.budget_bytes
        if asked is None or held is None or (asked < held) is not at_asked:
            return job
        counted = asked if at_asked else held
        return job.model_copy(
            update={"budget_bytes": counted, "charged_bytes": counted, "budget_asked_bytes": None}
        )

    return honest(snapshot.with_jobs(map(seen, snapshot.jobs)))


def _unlimited(honest: Callable[[Snapshot], list[Decision]], snapshot: Snapshot) -> list[Decision]:
    return honest(replace(snapshot, quotas={}))


BUGS: dict[str, Bug] = {
    "no-fencing": Bug("checkpoints are committed whatever the epoch", _unfenced),
    "stale-reports": Bug("a report of an old epoch counts as one of the job's", patched=_any_epoch_reports),
    "freed-too-early": Bug(
        "bytes are given away when they are asked back, not when that is acknowledged",
        patched=lambda: _deciding(partial(_settled, at_asked=True)),
    ),
    "growth-not-counted": Bug(
        "bytes that a job was told to grow into count only once it says so",
        patched=lambda: _deciding(partial(_settled, at_asked=False)),
    ),
    "stale-acknowledgement": Bug(
        "an acknowledgement of an older budget counts for the newest", _any_acknowledgement
    ),
    "not-confirmed": Bug("a lost worker's job is rescued before its bytes are free", _unconfirmed),
    "start-taken-for-refused": Bug(
        "a start whose answer was lost counts as one that did not happen: the job is queued again", _impatient
    ),
    "charged-twice": Bug(
        "what was charged at a transition is charged again at the end", patched=_charged_twice
    ),
    "stop-forgotten": Bug("a stop is forgotten when the head is restarted", _forgetful),
    "blind-writes": Bug("a write does not compare what it replaces", _blind_writes),
    "double-submit": Bug("a submit that is repeated under its key makes another job", _keys_ignored),
    "overtaking": Bug("whoever fits starts, whoever waits before it", patched=lambda: _deciding(_overtaking)),
    "quota-ignored": Bug("a user's limit is not looked at", patched=lambda: _deciding(_unlimited)),
}

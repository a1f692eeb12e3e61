"""Replays a lab's week in virtual time under one contender. For `night.py`.

Owns the clockwork: arrivals, ends, rounds of the scheduler, and the two phases of a resize. Records are real and
changed by the real `lifecycle.step`; the contender decides; `lab_week.rates` says how fast jobs get on that share a
device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab_week import DEVICE_BYTES, LINK_BYTES_PER_S, Assumptions, LabJob, rates

from superpipe_cluster.lifecycle.events import Event, Exited, Placed, ResizeAsked, Resized, Started, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import begin, step
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Decision, Preempt, Resize, Start
from superpipe_cluster.scheduling.policy import DEFAULT
from superpipe_cluster.scheduling.snapshot import DeviceView, Snapshot
from superpipe_cluster.scheduling.usage import UsageBook

#: From a placement to the first step, and from "stop" to a saved checkpoint and freed bytes.
STARTS_S, SAVES_S = 10.0, 10.0
#: Rounds of the scheduler come at events, but not more often than this, and a little after `grow_hold_s` once more.
ROUND_S, AGAIN_S = 5.0, DEFAULT.grow_hold_s + 5.0
#: With nothing happening, this often: what a job is due by waiting alone takes longer.
IDLE_S = 3600.0
SPLIT = 4

Decider = Callable[["Replay"], list[Decision]]


@dataclass(slots=True)
class Running:
    """A job on a device, at `done` of 1.0, getting on at `rate` since `since_s`."""

    job: LabJob
    begins_s: float
    done: float = 0.0
    rate: float = 0.0
    since_s: float = 0.0

    def bring_to(self, now_s: float) -> None:
        worked_s = max(0.0, now_s - max(self.since_s, self.begins_s))
        self.done = min(1.0, self.done + worked_s * self.rate / self.job.alone_s)
        self.since_s = now_s

    def ends_s(self) -> float:
        if self.rate <= 0.0:
            return float("inf")
        return max(self.since_s, self.begins_s) + (1.0 - self.done) * self.job.alone_s / self.rate


class Replay:
    """One week under one contender.

    Args:
        jobs: of the week.
        devices: how many.
        decider: says what to do.
        elastic: whether jobs may be resized.
        assumed: what decides the speeds.
    """

    def __init__(
        self, jobs: Sequence[LabJob], devices: int, decider: Decider, *, elastic: bool, assumed: Assumptions
    ) -> None:
        self.now_s = 0.0
        self.devices = [f"gpu:{number}" for number in range(devices)]
        self.records: dict[str, JobRecord] = {}
        self.running: dict[str, Running] = {}
        self.jobs = {str(job.number): job for job in jobs}
        self.book = UsageBook((), 0.0, DEFAULT.half_life_s)
        self.ended_s: dict[str, float] = {}
        self.started_s: dict[str, float] = {}
        self.violations = self.resizes = self.preemptions = 0
        self.useful_byte_s = self.busy_s = 0.0
        self.decide_s: list[float] = []
        self._decider = decider
        self._elastic = elastic
        self._assumed = assumed
        self._saved: dict[str, float] = {}
        #: (when, job, what happens to it): acknowledgements and ends of preempted ones.
        self._coming: list[tuple[float, str, Event]] = []
        self._arrivals = list(jobs)
        self._next_round_s = self._last_busy_s = 0.0

    def run(self) -> None:
        """To the end of the last job."""
        while self._arrivals or self.records:
            soonest = min(
                min((one.ends_s() for one in self.running.values()), default=float("inf")),
                min((when for when, _, _ in self._coming), default=float("inf")),
                self._arrivals[0].submitted_s if self._arrivals else float("inf"),
                self._next_round_s,
            )
            self._go_to(max(soonest, self.now_s))
            if self._happen():
                self._next_round_s = min(self._next_round_s, self.now_s + ROUND_S)
            if self.now_s >= self._next_round_s:
                self._next_round_s = self.now_s + (AGAIN_S if self._round() else IDLE_S)
            self._share()
            if self.running or self._arrivals:
                self._last_busy_s = self.now_s
            elif self.now_s > self._last_busy_s + 100 * IDLE_S:
                raise RuntimeError(f"{len(self.records)} jobs wait for ever: {list(self.records)[:5]}")

    def _go_to(self, now_s: float) -> None:
        seconds = now_s - self.now_s
        for job_id, one in self.running.items():
            self.useful_byte_s += min(self.records[job_id].promised_bytes, one.job.whole_bytes) * seconds
            if now_s > one.begins_s:
                self.busy_s += seconds * one.rate * one.job.busy
            one.bring_to(now_s)
        self.now_s = now_s

    def _happen(self) -> bool:
        """What is due now: ends, acknowledgements, arrivals; whether there was any."""
        due = [job_id for job_id, one in self.running.items() if one.done >= 1.0 - 1e-9]
        for job_id in due:
            self._event(job_id, Exited("ok"))
        coming = [one for one in self._coming if one[0] <= self.now_s]
        self._coming = [one for one in self._coming if one[0] > self.now_s]
        for _, job_id, event in coming:
            if job_id in self.running:
                self._event(job_id, event)
        arrived = [job for job in self._arrivals if job.submitted_s <= self.now_s]
        del self._arrivals[: len(arrived)]
        for job in arrived:
            self._submit(job)
        return bool(due or coming or arrived)

    def _submit(self, job: LabJob) -> None:
        wanted = min(job.whole_bytes, DEVICE_BYTES)
        curve = tuple((size, slowdown, int(link * LINK_BYTES_PER_S)) for size, slowdown, link in job.curve)
        # As `head.admission` does it: the guarantee, and what it needs of the link there.
        slowest = self._assumed.max_slowdown
        floor = job.floor_bytes if slowest is None else job.least_within(slowest)
        link_min = 0 if slowest is None else min(1.0, job.at(floor)[1] / slowest)
        record = JobRecord(
            id=str(job.number),
            name=f"job-{job.number}",
            user=job.user,
            kind="train",
            steps=max(1, round(job.alone_s)),  # a step is a second, alone and whole
            budget_min_bytes=floor,
            budget_max_bytes=wanted,
            link_min_bytes_per_s=int(link_min * LINK_BYTES_PER_S),
            may_shrink=self._elastic,
            may_grow=self._elastic,
            curve=curve,
        )
        self.records[record.id], _ = begin(record, self.now_s)

    # ---- decisions -------------------------------------------------------------------------------------

    def _round(self) -> bool:
        """Ask the contender, and do as it says; whether that was anything."""
        for job_id, one in self.running.items():
            pace_s = 1.0 / one.rate if one.rate > 0.0 else None
            update = {"step": int(one.done * (self.records[job_id].steps or 1)), "step_s": pace_s}
            self.records[job_id] = self.records[job_id].model_copy(update=update)
        began = time.perf_counter()
        decisions = self._decider(self)
        self.decide_s.append(time.perf_counter() - began)
        for one in decisions:
            match one:
                case Start(job_id=job_id, device=device, budget_bytes=budget_bytes):
                    self._event(job_id, Placed(device, budget_bytes))
                    self._start(job_id)
                case Resize(job_id=job_id, budget_bytes=budget_bytes):
                    self._ask(job_id, budget_bytes)
                case Preempt(job_id=job_id):
                    self.preemptions += 1
                    self._event(job_id, StopAsked("preempted"))
                    self._coming.append((self.now_s + SAVES_S, job_id, Exited("preempted")))
                case _:
                    pass
        self._check()
        return any(isinstance(one, Start | Resize | Preempt) for one in decisions)

    def _start(self, job_id: str) -> None:
        self._event(job_id, Started())
        self.started_s.setdefault(job_id, self.now_s)
        begins_s = self.now_s + STARTS_S
        self.running[job_id] = Running(
            self.jobs[job_id], begins_s, done=self._saved.get(job_id, 0.0), since_s=self.now_s
        )

    def _ask(self, job_id: str, budget_bytes: int) -> None:
        record = self.records[job_id]
        revision = record.budget_revision + 1
        self._event(job_id, ResizeAsked(budget_bytes, revision))
        # The next step boundary, and the copies.
        one = self.running[job_id]
        step_s = min(1.0 / one.rate, 60.0) if one.rate > 0.0 else 1.0
        moved_s = abs(budget_bytes - (record.budget_bytes or 0)) / LINK_BYTES_PER_S
        self._coming.append((self.now_s + step_s + moved_s, job_id, Resized(budget_bytes, revision)))
        self.resizes += 1

    def _event(self, job_id: str, event: Event) -> None:
        before = self.records[job_id]
        if isinstance(event, Resized) and before.state is JobState.STOPPING:
            return
        after = step(before, event, self.now_s)
        self.book.changed(before, after, self.now_s)
        self.records[job_id] = after
        if not after.state.holds_device:
            one = self.running.pop(job_id, None)
            if one is not None:
                self._saved[job_id] = one.done
        if after.state.is_terminal:
            self.ended_s[job_id] = self.now_s
            del self.records[job_id]

    # ---- devices ---------------------------------------------------------------------------------------

    def promised(self, device: str) -> int:
        """Bytes promised on a device."""
        holding = (self.records[job_id] for job_id in self.running)
        return sum(one.promised_bytes for one in holding if one.device == device)

    def _check(self) -> None:
        self.violations += sum(self.promised(device) > DEVICE_BYTES for device in self.devices)

    def _share(self) -> None:
        """The speeds from now on."""
        by_device: dict[str, list[Running]] = {}
        for job_id, one in self.running.items():
            by_device.setdefault(self.records[job_id].device or "", []).append(one)
        for group in by_device.values():
            budgets = [(one.job, self.records[str(one.job.number)].budget_bytes or 0) for one in group]
            for one, rate in zip(group, rates(budgets, self._assumed.shared), strict=True):
                one.rate = rate


# ---- contenders ----------------------------------------------------------------------------------------------


def _fifo(replay: Replay) -> list[Decision]:
    """One job per device, in the order of arrival."""
    free = [device for device in replay.devices if not replay.promised(device)]
    waiting = [one.id for one in replay.records.values() if one.state is JobState.QUEUED]
    return [Start(job_id, device, DEVICE_BYTES) for job_id, device in zip(waiting, free, strict=False)]


def _split(replay: Replay) -> list[Decision]:
    """Equal parts, in the order of arrival; nobody overtakes."""
    part = DEVICE_BYTES // SPLIT
    free = {device: SPLIT - replay.promised(device) // part for device in replay.devices}
    starts: list[Decision] = []
    for one in replay.records.values():
        if one.state is not JobState.QUEUED:
            continue
        parts = -(-one.budget_min_bytes // part)
        device = next((device for device, left in free.items() if left >= parts), None)
        if device is None:
            break
        free[device] -= parts
        starts.append(Start(one.id, device, parts * part))
    return starts


def _ours(replay: Replay) -> list[Decision]:
    """The real scheduler."""
    records = tuple(replay.records.values())
    views = [DeviceView(device, DEVICE_BYTES, LINK_BYTES_PER_S) for device in replay.devices]
    holding = [one for one in records if one.state.holds_device]
    usage = replay.book.totals(holding, replay.now_s)
    return decide(Snapshot.of(records, views, host_usable_bytes=1 << 60, now=replay.now_s, usage=usage))


CONTENDERS: dict[str, tuple[Decider, bool]] = {
    "exclusive FIFO": (_fifo, False),
    "static split": (_split, False),
    "ours, rigid": (_ours, False),
    "ours": (_ours, True),
}

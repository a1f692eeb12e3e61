"""Clusters drawn at random, and a world in which decisions come true: at once, late, or in any order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from scheduling.situations import NOW
from superpipe_cluster.lifecycle.events import (
    DependencyFailed,
    Event,
    Exited,
    PauseAsked,
    Placed,
    ResizeAsked,
    Resized,
    ResumeAsked,
    Started,
    StopAsked,
    Wanted,
)
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import (
    Cancel,
    Decision,
    Pause,
    Preempt,
    Resize,
    Resume,
    Start,
    Wait,
)
from superpipe_cluster.scheduling.snapshot import DeviceView, Quota, Snapshot
from superpipe_cluster.scheduling.windows import Window

#: 23:00 in Berlin, on the wall: no bytes are kept for anybody.
NIGHT = NOW + 14 * 3600.0

USERS = ("ann", "bob", "cid")
WINDOWS = {"w": Window("w", "daily", "22:00", "07:00", "Europe/Berlin", interactive_floor_bytes=2)}
QUOTAS = {"ann": Quota("ann", guaranteed_bytes=5, limit_bytes=15), "bob": Quota("bob", weight=2.0)}

DEVICES = st.lists(
    st.builds(lambda size, link: (size, link), st.integers(1, 12), st.sampled_from([0, 0, 10])),
    min_size=1,
    max_size=3,
).map(lambda drawn: tuple(DeviceView(f"cpu:{n}", size, link) for n, (size, link) in enumerate(drawn)))


#: Frozen weights that several jobs stream, and what a copy of them takes.
COPIES = {"llama": 3, "gpt": 5}


def ram_of(jobs: Iterable[JobRecord]) -> int:
    """What their host copies take together: shared ones are there once."""
    jobs = list(jobs)
    shared = {one.shared_copy for one in jobs if one.shared_copy is not None}
    return sum(one.host_bytes - one.shared_bytes for one in jobs) + sum(COPIES[copy] for copy in shared)


def floor_of(job: JobRecord) -> int:
    """The fewest bytes that it may be asked for to let others in."""
    return max(job.budget_min_bytes, job.floor_bytes)


@st.composite
def queued_jobs(draw: st.DrawFn, first_id: int = 1, most: int = 8) -> list[JobRecord]:
    """Jobs of all kinds."""
    jobs: list[JobRecord] = []
    for number in range(first_id, first_id + draw(st.integers(0, most))):
        low = draw(st.integers(1, 8))
        high = low + draw(st.integers(0, 8))
        steps = draw(st.sampled_from([None, 10, 100]))
        own_bytes, copy = draw(st.integers(0, 6)), draw(st.sampled_from([None, None, *COPIES]))
        curve = draw(
            st.sampled_from([(), ((low, 2.0, 0), (high + 1, 1.0, 0)), ((low, 1.01, 0), (high + 1, 1.0, 0))])
        )
        fields: dict[str, Any] = {
            "state": draw(st.sampled_from([JobState.QUEUED] * 7 + [JobState.HELD])),
            "user": draw(st.sampled_from(USERS)),
            "priority": draw(st.integers(-1, 2)),
            "submitted_at": NOW - draw(st.sampled_from([1.0, 2.0, 100.0, 200_000.0])),
            "may_shrink": draw(st.integers(0, 4)) > 0,
            "may_grow": draw(st.integers(0, 4)) > 0,
            "host_bytes": own_bytes + COPIES.get(copy or "", 0),
            "shared_copy": copy,
            "shared_bytes": COPIES.get(copy or "", 0),
            "link_min_bytes_per_s": draw(st.sampled_from([0, 0, 0, 4, 12])),
            "steps": steps,
            "curve": curve,
            "time_limit_s": draw(st.sampled_from([None, None, 50.0, 5000.0])),
            "after": tuple(str(draw(st.integers(1, number))) for _ in range(draw(st.integers(0, 6)) == 0)),
            "window": draw(st.sampled_from([None] * 4 + ["w"])),
            "at_window_end": draw(st.sampled_from(["shrink", "pause", "requeue"])),
        }
        if draw(st.integers(0, 5)) == 0:
            fields |= {"array": "1", "array_index": number, "array_limit": 2}
        jobs.append(
            JobRecord(
                id=str(number),
                name=f"job-{number}",
                kind="train",
                budget_min_bytes=low,
                budget_max_bytes=high,
                **fields,
            )
        )
    return jobs


@dataclass
class World:
    """Records, and what happens to them. Nothing happens by itself."""

    devices: Sequence[DeviceView]
    records: dict[str, JobRecord]
    host_usable_bytes: int = 20
    now: float = NOW
    wall: float = NOW
    #: The moments at which jobs were placed.
    placed: dict[str, float] = field(default_factory=dict[str, float])

    @classmethod
    def of(cls, devices: Sequence[DeviceView], jobs: Iterable[JobRecord], **fields: Any) -> World:
        return cls(devices, {job.id: job for job in jobs}, **fields)

    def snapshot(self) -> Snapshot:
        return Snapshot.of(
            tuple(self.records.values()),
            self.devices,
            host_usable_bytes=self.host_usable_bytes,
            now=self.now,
            quotas=QUOTAS,
            windows=WINDOWS,
            wall=self.wall,
        )

    def decide(self) -> list[Decision]:
        """Decide, and write it down; who was asked for something has not answered yet."""
        decisions = decide(self.snapshot())
        for decision in decisions:
            self.apply(decision)
        return decisions

    def apply(self, decision: Decision) -> None:
        record = self.records[decision.job_id]
        match decision:
            case Start(device=device, budget_bytes=budget_bytes):
                self.placed[record.id] = self.now
                self.happen(record.id, Placed(device, budget_bytes))
            case Resize(budget_bytes=budget_bytes):
                self.happen(record.id, ResizeAsked(budget_bytes, record.budget_revision + 1))
            case Preempt():
                self.happen(record.id, StopAsked("preempted"))
            case Cancel(because_of=because_of):
                self.happen(record.id, DependencyFailed(because_of))
            case Pause():
                self.happen(record.id, PauseAsked("window"))
            case Resume():
                self.happen(record.id, ResumeAsked())
            case Wait():
                pass

    def happen(self, job_id: str, event: Event) -> None:
        self.records[job_id] = step(self.records[job_id], event, self.now)

    def answer(self, job_id: str) -> None:
        """The job's worker does what it was asked to, or goes on to the next thing it would do."""
        record = self.records[job_id]
        if record.state is JobState.STOPPING:
            self.happen(job_id, Exited(reason="preempted"))
        elif record.state is JobState.STARTING:
            self.happen(job_id, Started())
        elif record.budget_asked_bytes is not None:
            self.happen(job_id, Resized(record.budget_asked_bytes, record.budget_revision))

    def holding(self) -> list[JobRecord]:
        return [record for record in self.records.values() if record.state.holds_device]

    def check(self) -> None:
        """No byte is promised twice."""
        for device in self.devices:
            promised = sum(one.promised_bytes for one in self.holding() if one.device == device.id)
            assert promised <= device.capacity_bytes
            link = sum(one.link_min_bytes_per_s for one in self.holding() if one.device == device.id)
            assert not device.link_bytes_per_s or link <= device.link_bytes_per_s
        assert ram_of(self.holding()) <= self.host_usable_bytes
        by_array: dict[str, int] = {}
        for one in self.holding():
            if one.array is not None:
                by_array[one.array] = by_array.get(one.array, 0) + 1
        assert all(tasks <= 2 for tasks in by_array.values())
        anns = sum(one.promised_bytes for one in self.holding() if one.user == "ann")
        assert anns <= (QUOTAS["ann"].limit_bytes or 0)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A cluster in the middle of its life."""
    world = World.of(draw(DEVICES), draw(queued_jobs()), host_usable_bytes=draw(st.integers(0, 20)))
    live(draw, world, draw(st.integers(0, 12)))
    return world


def live(draw: st.DrawFn, world: World, moments: int) -> None:
    """Let things happen in any order."""
    for _ in range(moments):
        what = draw(st.integers(0, 6))
        ids = sorted(world.records)
        if what <= 1:
            world.decide()
        elif what <= 3 and ids:
            world.answer(draw(st.sampled_from(ids)))
        elif what == 4 and world.holding():
            one = draw(st.sampled_from(sorted(record.id for record in world.holding())))
            world.happen(one, Exited(reason=draw(st.sampled_from(["ok", "error", "worker_lost"]))))
        elif what == 5:
            running = sorted(one.id for one in world.holding() if one.state is JobState.RUNNING)
            if running:
                wants = draw(st.sampled_from([None, 0, 2, 5, 9]))
                world.happen(draw(st.sampled_from(running)), Wanted(wants))
        else:
            passed = draw(st.sampled_from([1.0, 40.0, 700.0, 40_000.0]))
            world.now += passed
            world.wall += passed
        world.check()

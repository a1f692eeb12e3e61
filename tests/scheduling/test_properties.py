"""What must hold of the decisions about any cluster."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from scheduling.situations import NOW, job
from scheduling.worlds import DEVICES, NIGHT, World, floor_of, queued_jobs, ram_of, worlds
from superpipe_cluster.lifecycle.events import Exited, Started
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState, WaitReason
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Pause, Preempt, Resize, Resume, Start, Wait
from superpipe_cluster.scheduling.order import in_line
from superpipe_cluster.scheduling.snapshot import DeviceView
from superpipe_cluster.scheduling.usage import decayed

MANY = settings(max_examples=examples(130), deadline=None)
SOME = settings(max_examples=examples(50), deadline=None)


@MANY
@given(worlds(), st.randoms(use_true_random=False))
def test_no_byte_is_promised_twice_whenever_acknowledgements_arrive(
    world: World, luck: random.Random
) -> None:
    """`worlds` checks at every moment of its life; this goes on for a while."""
    for _ in range(6):
        world.decide()
        world.check()
        for record in list(world.records.values()):
            if luck.random() < 0.5:
                world.answer(record.id)
                world.check()
        world.now += luck.choice([1.0, 31.0])


@MANY
@given(worlds())
def test_every_waiting_job_gets_one_decision_and_every_wait_a_reason(world: World) -> None:
    decisions = decide(world.snapshot())
    waiting = [one.id for one in world.records.values() if one.state.is_waiting]
    theirs = [one for one in decisions if not isinstance(one, Resize | Preempt | Pause | Resume)]
    assert sorted(one.job_id for one in theirs) == sorted(waiting)
    assert all(one.message for one in theirs if isinstance(one, Wait))


@MANY
@given(worlds())
def test_running_jobs_are_asked_within_reason(world: World) -> None:
    asked: set[tuple[str, type]] = set()
    for one in decide(world.snapshot()):
        record = world.records[one.job_id]
        if isinstance(one, Resize | Preempt):
            assert (one.job_id, Resize) not in asked
            asked.add((one.job_id, Resize))
            assert one.why
        if isinstance(one, Resize):
            assert record.state in (JobState.RUNNING, JobState.PAUSED)
            assert record.budget_asked_bytes is None, "one ask at a time"
            assert one.budget_bytes != record.budget_bytes
            if one.budget_bytes < record.promised_bytes:
                assert record.may_shrink
                assert one.budget_bytes >= min(floor_of(record), record.promised_bytes)
            else:
                assert record.may_grow or one.budget_bytes <= record.budget_min_bytes
                assert one.budget_bytes <= max(record.most_bytes, record.budget_min_bytes)
        if isinstance(one, Preempt):
            assert record.stop_asked is None
            if one.for_job is not None:
                assert record.started_at is not None
                assert world.now - record.started_at >= 600.0
                assert world.records[one.for_job].priority >= record.priority
        if isinstance(one, Start):
            assert record.budget_min_bytes <= one.budget_bytes <= record.budget_max_bytes


@SOME
@given(worlds(), st.randoms(use_true_random=False))
def test_the_same_cluster_gets_the_same_decisions_in_whatever_order_it_is_listed(
    world: World, shuffler: random.Random
) -> None:
    snapshot = world.snapshot()
    before = copy.deepcopy(snapshot)
    first = decide(snapshot)
    assert decide(snapshot) == first
    assert snapshot == before
    jobs, devices = list(snapshot.jobs), list(snapshot.devices)
    shuffler.shuffle(jobs)
    shuffler.shuffle(devices)
    shuffled = replace(snapshot.with_jobs(jobs), devices=tuple(devices))
    assert sorted(decide(shuffled), key=str) == sorted(first, key=str)


@MANY
@given(worlds())
def test_the_first_in_line_does_not_wait_for_what_is_free(world: World) -> None:
    """Work conservation: with nobody ahead, a job that fits starts."""
    snapshot = world.snapshot()
    decisions = decide(snapshot)
    by_job = {one.job_id: one for one in decisions if isinstance(one, Start | Wait)}
    for one in decisions:
        world.apply(one)
    free = {
        device.id: device.capacity_bytes - world.snapshot().used_bytes(device.id) for device in world.devices
    }
    host = world.snapshot().host_free_bytes
    everybody = np.arange(len(snapshot.queued))
    in_front = [
        one
        for one in (snapshot.queued.jobs[place] for place in in_line(everybody, [], snapshot))
        if isinstance(wait := by_job.get(one.id), Wait)
        and wait.reason in (WaitReason.RESOURCES, WaitReason.PRIORITY, WaitReason.HOST_MEMORY)
    ]
    raised = any(one.budget_min_bytes > one.promised_bytes for one in world.holding())
    if len(in_front) != 1 or raised:
        return
    (first,) = in_front
    kept = 0 if first.priority == 2 else 2  # of an interactive floor
    stay = [one for one in world.holding() if one.stop_asked is None]
    ram = ram_of([*stay, first]) - ram_of(stay)
    if not first.link_min_bytes_per_s:
        assert ram > host or all(size - kept < first.budget_min_bytes for size in free.values())


@SOME
@given(worlds())
def test_decisions_come_to_rest(world: World) -> None:
    """Carried out and answered at once, they soon change nothing any more: nothing grows and shrinks for ever."""
    for record in list(world.records.values()):
        world.records[record.id] = record.model_copy(update={"time_limit_s": None})
    asked: dict[str, list[int]] = {}
    for _ in range(25):
        decisions = world.decide()
        for one in decisions:
            if isinstance(one, Resize):
                asked.setdefault(one.job_id, []).append(one.budget_bytes)
        for record in list(world.records.values()):
            world.answer(record.id)
        world.now += 31.0
    assert all(isinstance(one, Wait) for one in decisions), decisions
    assert all(len(budgets) <= 10 for budgets in asked.values())
    askable = [one for one in world.records.values() if one.state in (JobState.RUNNING, JobState.PAUSED)]
    assert all(one.promised_bytes <= max(one.most_bytes, one.floor_bytes) for one in askable)


# ---- nobody is delayed, nobody starves ----------------------------------------------------------------


def _rigid(number: int, size: int, seconds: int, host: int) -> JobRecord:
    """A job that always takes as many bytes, and as many seconds as it says."""
    return job(
        str(number),
        size,
        steps=seconds,
        curve=((size, 1.0, 0),),
        may_shrink=False,
        host_bytes=host,
        user="cid",
    ).model_copy(update={"submitted_at": NOW + number / 1000})


def _run(devices: list[DeviceView], jobs: list[JobRecord], usable: int) -> dict[str, float]:
    """When each job starts, if each ends exactly when it says."""
    world = World.of(devices, jobs, host_usable_bytes=usable, wall=NIGHT)
    ends: dict[str, float] = {}
    for _ in range(200):
        for job_id in [job_id for job_id, at in ends.items() if at <= world.now]:
            del ends[job_id]
            world.happen(job_id, Exited(reason="ok"))
        for record in world.holding():
            done = int(world.now - world.placed[record.id])
            world.records[record.id] = record.model_copy(update={"step": done, "step_s": 1.0})
        for one in world.decide():
            if isinstance(one, Start):
                world.happen(one.job_id, Started())
                ends[one.job_id] = world.now + (world.records[one.job_id].steps or 0)
        if not any(one.state is JobState.QUEUED for one in world.records.values()):
            break
        world.now = min(ends.values(), default=world.now + 1.0)
    return world.placed


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.integers(4, 10), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 30), st.integers(0, 4)), min_size=2, max_size=12),
)
def test_the_first_in_line_is_not_delayed_by_those_behind_it(
    sizes: list[int], drawn: list[tuple[int, int, int]]
) -> None:
    devices = [DeviceView(f"cpu:{number}", size) for number, size in enumerate(sizes)]
    usable = 8
    jobs = [
        _rigid(number, min(size, max(sizes)), seconds, host)
        for number, (size, seconds, host) in enumerate(drawn, 1)
    ]
    # One user, one class: in line by age.
    world = World.of(devices, jobs, host_usable_bytes=usable, wall=NIGHT)
    at_once = {one.job_id for one in world.decide() if isinstance(one, Start)}
    first = next((number for number, one in enumerate(jobs) if one.id not in at_once), None)
    if first is None:
        return
    with_all = _run(devices, jobs, usable)
    without_those_behind = _run(devices, jobs[: first + 1], usable)
    assert with_all[jobs[first].id] <= without_those_behind[jobs[first].id]
    assert len(with_all) == len(jobs), "everybody starts at last"


@SOME
@given(DEVICES, queued_jobs(), st.data())
def test_a_job_that_fits_an_empty_cluster_is_never_starved_by_later_ones(
    devices: tuple[DeviceView, ...], jobs: list[JobRecord], data: st.DataObject
) -> None:
    """Small jobs of the same priority keep arriving, and each outlives the arrival of the next."""
    largest = max(device.capacity_bytes for device in devices)
    patient = JobRecord(
        id="1000", name="patient", user="cid", kind="train", submitted_at=NOW - 0.5, priority=-1,
        budget_min_bytes=data.draw(st.integers((largest + 1) // 2, largest)), budget_max_bytes=largest,
        host_bytes=data.draw(st.integers(0, 8)),
    )  # fmt: skip
    plain = [one.model_copy(update={"after": (), "window": None, "may_shrink": False}) for one in jobs]
    world = World.of(devices, [*plain, patient], host_usable_bytes=8, wall=NIGHT)
    lifetime = data.draw(st.integers(2, 4), label="lifetime")
    ends_at: dict[str, int] = {}
    for tick in range(120):
        for ended in [job_id for job_id, end in ends_at.items() if end == tick]:
            del ends_at[ended]
            world.happen(ended, Exited(reason="ok"))
        for start in world.decide():
            if isinstance(start, Start):
                ends_at[start.job_id] = tick + lifetime
        if patient.id in ends_at:
            return
        world.now += 1.0
        later = str(2000 + tick)
        world.records[later] = JobRecord(
            id=later, name="later", user="cid", kind="train", submitted_at=world.now, priority=-1,
            budget_min_bytes=1, budget_max_bytes=12,
        )  # fmt: skip
    raise AssertionError("it never started")


@SOME
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0.0, 1e9))
def test_a_flood_of_one_user_does_not_keep_out_another(size: int, lifetime: int, used: float) -> None:
    """With a hundred jobs ahead of them by age, whoever has used less is next."""
    world = World.of(
        [DeviceView("cpu:0", 4)], [job(str(n), size, user="bob") for n in range(1, 101)], wall=NIGHT
    )
    world.records["500"] = job("500", 4, user="cid")
    ends_at: dict[str, int] = {}
    for tick in range(3 * lifetime):
        for ended in [job_id for job_id, end in ends_at.items() if end == tick]:
            del ends_at[ended]
            world.happen(ended, Exited(reason="ok"))
        usage = decayed(world.records.values(), world.now, 7 * 86_400.0)
        snapshot = replace(world.snapshot(), usage={**usage, "bob": usage.get("bob", 0.0) + used})
        for one in decide(snapshot):
            world.apply(one)
            if isinstance(one, Start):
                ends_at[one.job_id] = tick + lifetime
        if "500" in ends_at:
            return
        world.now += 1.0
    raise AssertionError("it never started")

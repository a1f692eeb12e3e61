"""What must hold of the decisions about any cluster."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from superpipe_cluster.lifecycle.events import Exited, Placed
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.scheduling.decide import Start, Wait, decide
from superpipe_cluster.scheduling.order import in_line
from superpipe_cluster.scheduling.snapshot import DeviceView, Snapshot

SIZES = st.integers(1, 12)
DEVICES = st.lists(SIZES, min_size=1, max_size=3).map(
    lambda sizes: [DeviceView(f"cpu:{number}", size) for number, size in enumerate(sizes)]
)


@st.composite
def queued_jobs(draw: st.DrawFn, first_id: int = 1, most: int = 8) -> list[JobRecord]:
    jobs: list[JobRecord] = []
    for number in range(first_id, first_id + draw(st.integers(0, most))):
        low = draw(SIZES)
        jobs.append(
            JobRecord(
                id=str(number),
                name=f"job-{number}",
                user="ann",
                kind="train",
                state=draw(st.sampled_from([JobState.QUEUED] * 5 + [JobState.HELD])),
                priority=draw(st.integers(-1, 1)),
                submitted_at=float(draw(st.integers(1, 3))),
                budget_min_bytes=low,
                budget_max_bytes=low + draw(st.integers(0, 12)),
                host_bytes=draw(st.integers(0, 6)),
                after=tuple(str(draw(st.integers(1, number))) for _ in range(draw(st.integers(0, 6)) == 0)),
            )
        )
    return jobs


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """A queue in front of devices on which some jobs run already, and some have ended."""
    devices = draw(DEVICES)
    free = {device.id: device.capacity_bytes for device in devices}
    jobs: list[JobRecord] = []
    for one in draw(queued_jobs()):
        fate = draw(st.sampled_from(["queued", "queued", "running", "ended"]))
        device = draw(st.sampled_from(sorted(free)))
        if fate == "running" and free[device] >= one.budget_min_bytes:
            budget = draw(st.integers(one.budget_min_bytes, min(free[device], one.budget_max_bytes)))
            free[device] -= budget
            held = {"state": JobState.RUNNING, "device": device, "budget_bytes": budget}
            jobs.append(one.model_copy(update=held))
        elif fate == "ended":
            end = draw(st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]))
            jobs.append(one.model_copy(update={"state": end}))
        else:
            jobs.append(one)
    promised = sum(job.host_bytes for job in jobs if job.state.holds_device)
    return Snapshot.of(jobs, devices, host_usable_bytes=promised + draw(st.integers(0, 12)), now=9.0)


@given(clusters())
def test_no_byte_is_promised_twice(snapshot: Snapshot) -> None:
    starts = [one for one in decide(snapshot) if isinstance(one, Start)]
    wanted = {job.id: job for job in snapshot.jobs}
    for device in snapshot.devices:
        given_now = sum(start.budget_bytes for start in starts if start.device == device.id)
        assert snapshot.used_bytes(device.id) + given_now <= device.capacity_bytes
    assert sum(wanted[start.job_id].host_bytes for start in starts) <= snapshot.host_free_bytes
    for start in starts:
        job = wanted[start.job_id]
        assert job.budget_min_bytes <= start.budget_bytes <= job.budget_max_bytes


@given(clusters())
def test_every_waiting_job_gets_one_decision_and_every_wait_a_reason(snapshot: Snapshot) -> None:
    decisions = decide(snapshot)
    waiting = [job.id for job in snapshot.jobs if job.state.is_waiting]
    assert sorted(one.job_id for one in decisions) == sorted(waiting)
    assert all(one.message for one in decisions if isinstance(one, Wait))


@given(clusters(), st.randoms(use_true_random=False))
def test_the_same_cluster_gets_the_same_decisions_in_whatever_order_it_is_listed(
    snapshot: Snapshot, shuffler: random.Random
) -> None:
    jobs, devices = list(snapshot.jobs), list(snapshot.devices)
    shuffler.shuffle(jobs)
    shuffler.shuffle(devices)
    shuffled = Snapshot(snapshot.now, tuple(jobs), tuple(devices), snapshot.host_free_bytes)
    assert sorted(decide(snapshot), key=str) == sorted(decide(shuffled), key=str)


@given(clusters())
def test_nobody_takes_bytes_that_somebody_ahead_of_them_waits_for(snapshot: Snapshot) -> None:
    decisions = {one.job_id: one for one in decide(snapshot)}
    usable = snapshot.host_usable_bytes()
    largest = max(device.capacity_bytes for device in snapshot.devices)
    capacity = {device.id: device.capacity_bytes for device in snapshot.devices}
    waiting: list[JobRecord] = []
    for job in in_line(snapshot.jobs):
        decision = decisions[job.id]
        if isinstance(decision, Start):
            assert all(ahead.budget_min_bytes > capacity[decision.device] for ahead in waiting)
        elif (
            isinstance(decision, Wait)
            and decision.reason in ("Resources", "Priority", "HostMemory")
            and job.budget_min_bytes <= largest
            and job.host_bytes <= usable
        ):
            waiting.append(job)


@settings(max_examples=60, deadline=None)
@given(DEVICES, queued_jobs(), st.data())
def test_a_job_that_fits_an_empty_cluster_is_never_starved_by_later_ones(
    devices: list[DeviceView], jobs: list[JobRecord], data: st.DataObject
) -> None:
    """Small jobs of the same priority keep arriving, and each outlives the arrival of the next."""
    usable = 8
    largest = max(device.capacity_bytes for device in devices)
    patient = JobRecord(
        id="1000", name="patient", user="ann", kind="train", submitted_at=4.0, priority=-1,
        budget_min_bytes=data.draw(st.integers((largest + 1) // 2, largest)), budget_max_bytes=largest,
        host_bytes=data.draw(st.integers(0, usable)),
    )  # fmt: skip
    records = {job.id: job.model_copy(update={"after": ()}) for job in [*jobs, patient]}
    lifetime = data.draw(st.integers(2, 4), label="lifetime")
    ends_at: dict[str, int] = {}
    for tick in range(100):
        for ended in [job_id for job_id, end in ends_at.items() if end == tick]:
            records[ended] = step(records[ended], Exited(reason="ok"), float(tick))
        snapshot = Snapshot.of(list(records.values()), devices, host_usable_bytes=usable, now=float(tick))
        for start in decide(snapshot):
            if isinstance(start, Start):
                placed = Placed(device=start.device, budget_bytes=start.budget_bytes)
                records[start.job_id] = step(records[start.job_id], placed, float(tick))
                ends_at[start.job_id] = tick + lifetime
        if patient.id in ends_at:
            return
        later = str(2000 + tick)
        records[later] = JobRecord(
            id=later, name="later", user="bob", kind="train", submitted_at=5.0 + tick, priority=-1,
            budget_min_bytes=1, budget_max_bytes=12,
        )  # fmt: skip
    raise AssertionError("it never started")

"""Jobs and clusters in a few words, and what was decided about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Decision, Preempt, Resize, Start, Wait
from superpipe_cluster.scheduling.snapshot import DeviceView, Snapshot

#: Every situation is at this moment, unless it says otherwise.
NOW = 1_800_000_000.0


def job(job_id: str, low: int = 1, high: int | None = None, **fields: object) -> JobRecord:
    """A queued job of `low..high` bytes, submitted in the order of the ids, a moment ago."""
    return JobRecord.model_validate(
        {
            "id": job_id,
            "name": f"job-{job_id}",
            "user": "ann",
            "kind": "train",
            "submitted_at": NOW - 99.0 + float(job_id) / 1000,
            "budget_min_bytes": low,
            "budget_max_bytes": low if high is None else high,
            **fields,
        }
    )


def running(job_id: str, device: str, held: int, *, low: int | None = None, **fields: object) -> JobRecord:
    """A job that has run for an hour with `held` bytes, of which `low` are its guarantee."""
    since = {"placed_at": NOW - 3600, "started_at": NOW - 3600, "budget_since": NOW - 3600}
    given = {"state": "RUNNING", "device": device, "budget_bytes": held, "charged_bytes": held}
    return job(job_id, held if low is None else low, held, **{**since, **given, **fields})


def ending(job_id: str, device: str, held: int, in_s: float, **fields: object) -> JobRecord:
    """A running job of which one can tell when it ends."""
    steps = {"steps": 1000, "step": 900, "step_s": in_s / 100}
    return running(job_id, device, held, **{**steps, **fields})


def taking(job_id: str, low: int, seconds: float, **fields: object) -> JobRecord:
    """A queued job of which one can tell how long it will run."""
    return job(job_id, low, **{"steps": 100, "curve": ((low, seconds / 100, 0),), **fields})


def snapshot(
    *jobs: JobRecord,
    devices: Mapping[str, int] | None = None,
    host: int = 1000,
    now: float = NOW,
    **fields: Any,
) -> Snapshot:
    views = [DeviceView(name, size) for name, size in (devices or {"cpu:0": 10}).items()]
    return Snapshot.of(jobs, views, host_usable_bytes=host, now=now, **fields)


def decided(*jobs: JobRecord, **fields: Any) -> list[Decision]:
    return decide(snapshot(*jobs, **fields))


def starts(*jobs: JobRecord, **fields: Any) -> dict[str, tuple[str, int]]:
    """Who starts: where, with how many bytes."""
    return {
        one.job_id: (one.device, one.budget_bytes)
        for one in decided(*jobs, **fields)
        if isinstance(one, Start)
    }


def all_waits(*jobs: JobRecord, **fields: Any) -> dict[str, Wait]:
    return {one.job_id: one for one in decided(*jobs, **fields) if isinstance(one, Wait)}


def waits(*jobs: JobRecord, **fields: Any) -> dict[str, WaitReason]:
    """Who waits, and why."""
    return {job_id: wait.reason for job_id, wait in all_waits(*jobs, **fields).items()}


def resizes(*jobs: JobRecord, **fields: Any) -> dict[str, int]:
    """Who is asked for another budget, and which."""
    return {one.job_id: one.budget_bytes for one in decided(*jobs, **fields) if isinstance(one, Resize)}


def preempted(*jobs: JobRecord, **fields: Any) -> set[str]:
    """Who is asked to make room altogether."""
    return {one.job_id for one in decided(*jobs, **fields) if isinstance(one, Preempt)}

"""Who has used how much, and what the devices do right now: sums over the records.

Owns the arithmetic of both answers. What was used is in the records, see [Note: usage] in `lifecycle/step.py`; how it
fades is `scheduling.usage`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from superpipe_cluster.api.views import (
    HostView,
    JobUsageView,
    TopDeviceView,
    TopJobView,
    TopView,
    UsageView,
    UserUsageView,
)
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.machine import Device
from superpipe_cluster.scheduling.curve import step_s
from superpipe_cluster.scheduling.usage import decayed

#: Seconds between two looks at a job's link counter that its speed is taken from.
_LINK_OVER_S = 2.0


def usage(
    records: Sequence[JobRecord],
    now: float,
    half_life_s: float,
    *,
    of_user: str | None = None,
    since: float | None = None,
) -> UsageView:
    """What was used, by user and by job.

    Args:
        records: every job there is or was.
        now: unix seconds by the store's clock.
        half_life_s: after this long, what was used counts half.
        of_user: only this user's.
        since: only jobs that had not ended by then, unix seconds.
    """
    fading = decayed(records, now, half_life_s)
    together = sum(fading.values())
    jobs: list[JobUsageView] = []
    by_user: dict[str, list[JobUsageView]] = {}
    for record in records:
        ended_early = since is not None and record.ended_at is not None and record.ended_at < since
        if ended_early or of_user not in (None, record.user):
            continue
        job = _job_usage(record, now)
        jobs.append(job)
        by_user.setdefault(record.user, []).append(job)
    users = [
        UserUsageView(
            user=user,
            jobs=len(own),
            byte_s=sum(job.byte_s for job in own),
            link_bytes=sum(job.link_bytes for job in own),
            waited_s=sum(job.waited_s for job in own),
            ran_s=sum(job.ran_s for job in own),
            slowdown=_mean([job.slowdown for job in own if job.slowdown is not None]),
            decayed_byte_s=fading.get(user, 0.0),
            share=fading.get(user, 0.0) / together if together else 0.0,
        )
        for user, own in by_user.items()
    ]
    users.sort(key=lambda user: (-user.decayed_byte_s, user.user))
    return UsageView(users=tuple(users), jobs=tuple(jobs))


def _job_usage(record: JobRecord, now: float) -> JobUsageView:
    """What a job was charged, and what has come together since then."""
    byte_s, link_bytes, ran_s, waited_s = (
        record.used_byte_s, record.used_link_bytes, record.ran_s, record.waited_s,
    )  # fmt: skip
    if record.state.holds_device:
        byte_s += record.promised_bytes * _since(record.used_until, now)
        link_bytes += record.link_bytes
        ran_s += _since(record.started_at, now)
    elif record.state is JobState.QUEUED:
        waited_s += _since(record.queued_at, now)
    return JobUsageView(
        id=record.id,
        name=record.name,
        user=record.user,
        state=record.state,
        byte_s=byte_s,
        link_bytes=link_bytes,
        waited_s=waited_s,
        ran_s=ran_s,
        slowdown=_slowdown(record),
    )


def _slowdown(record: JobRecord) -> float | None:
    forecast: Any = (record.plan or {}).get("forecast") or {}
    whole_s = forecast.get("whole_step_s")
    return record.step_s / whole_s if record.step_s is not None and whole_s else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _since(start: float | None, now: float) -> float:
    return 0.0 if start is None else max(0.0, now - start)


class Links:
    """How fast jobs move bytes, from looks at their counters. Safe to use from several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        #: By job: epoch, when it was looked at, its counter then, its speed up to then.
        self._seen: dict[str, tuple[int, float, int, float]] = {}

    def speeds(self, records: Sequence[JobRecord], now: float) -> dict[str, float]:
        """Bytes per second of each job, over some seconds; at the first look since it was started."""
        with self._mutex:
            self._seen = {record.id: self._looked(record, now) for record in records}
            return {job_id: speed for job_id, (_, _, _, speed) in self._seen.items()}

    def _looked(self, record: JobRecord, now: float) -> tuple[int, float, int, float]:
        start = (record.epoch, record.started_at or now, 0, 0.0)
        known = self._seen.get(record.id, start)
        if known[0] != record.epoch or record.link_bytes < known[2]:
            known = start
        _, at, counter, _ = known
        if record.state is not JobState.RUNNING:
            return (record.epoch, now, record.link_bytes, 0.0)
        if now - at < _LINK_OVER_S:
            return known
        return (record.epoch, now, record.link_bytes, (record.link_bytes - counter) / (now - at))


def top(
    devices: Sequence[Device],
    holders: Sequence[JobRecord],
    *,
    foreign: Mapping[str, int],
    speeds: Mapping[str, float],
    queued: int,
    host: HostView,
    now: float,
) -> TopView:
    """The devices right now.

    Args:
        devices: of this cluster.
        holders: the jobs that hold one.
        foreign: by device, bytes of processes that are not ours.
        speeds: by job, bytes per second over the link.
        queued: jobs that wait.
        host: its RAM.
        now: unix seconds.
    """
    views: list[TopDeviceView] = []
    for device in devices:
        here = [record for record in holders if record.device == device.id]
        views.append(
            TopDeviceView(
                id=device.id,
                name=device.name,
                capacity_bytes=device.capacity_bytes,
                foreign_bytes=foreign.get(device.id, 0),
                used_bytes=sum(record.promised_bytes for record in here),
                link_bytes_per_s=device.link_bytes_per_s,
                link_used_bytes_per_s=sum(speeds.get(record.id, 0.0) for record in here),
                jobs=tuple(_top_job(record, speeds.get(record.id, 0.0)) for record in here),
            )
        )
    return TopView(at=now, devices=tuple(views), queued=queued, host=host)


def _top_job(record: JobRecord, speed: float) -> TopJobView:
    budget_bytes = record.budget_bytes or 0
    return TopJobView(
        id=record.id,
        name=record.name,
        user=record.user,
        state=record.state,
        budget_bytes=budget_bytes,
        asked_bytes=record.budget_asked_bytes,
        held_bytes=record.held_bytes,
        k=record.k,
        units=record.units,
        step=record.step,
        steps=record.steps,
        step_s=record.step_s,
        forecast_step_s=step_s(record.curve, budget_bytes) if record.curve else None,
        link_bytes_per_s=speed,
    )

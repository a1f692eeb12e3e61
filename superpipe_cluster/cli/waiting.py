"""Why a job waits and when it is likely to start, in sentences.

Owns what each `WaitReason` means for its owner and what they can do about it. The reason itself, its message and the
expected start are the scheduler's.
"""

from __future__ import annotations

from collections.abc import Iterator

from superpipe_cluster.api.views import JobView
from superpipe_cluster.cli.times import ahead, day_and_clock

#: What ends the waiting, and what its owner can do, by `WaitReason`.
MEANINGS = {
    "Resources": "starts when enough device bytes are free; a smaller guarantee fits sooner: "
    "`spcluster set {id} gpu_memory=LOW..HIGH`",
    "Priority": "its turn comes after theirs; `spcluster set {id} priority=high` goes before the classes below",
    "Dependency": "starts when the jobs it waits for have ended as it needs",
    "Quota": "its owner holds all that they may; starts when one of their jobs ends, or when an admin raises the "
    "quota: `spcluster quota list`",
    "BeginTime": "starts by itself then; `spcluster set {id} not_before=null` lets it start at once",
    "Window": "starts when its window opens (`spcluster windows list`); `spcluster set {id} window=null` takes it out",
    "HostMemory": "starts when there is RAM for the host copy of its model",
    "Link": "starts when those who run move less over the link to the device, or end; more bytes need less of it, "
    "`spcluster set {id} gpu_memory=LOW..HIGH`, and so does a larger `max_slowdown`",
    "Held": "`spcluster release {id}` puts it back in line",
    "ForeignProcess": "a process that is not the cluster's has the bytes; `spcluster top` shows how many",
    "ArrayLimit": "as many tasks of its array run as may at once; starts when one of them ends",
}


def explained(job: JobView, now: float) -> Iterator[tuple[str, str]]:
    """Label and text of every line about a waiting job; nothing for one that does not wait."""
    if job.state not in ("QUEUED", "HELD"):
        return
    reason = job.reason or ""
    if reason or job.message:
        yield "waits for", ": ".join(part for part in (reason, job.message or "") if part)
    if reason in MEANINGS:
        yield "", MEANINGS[reason].format(id=job.id)
    yield "start", _start(job, now)


def _start(job: JobView, now: float) -> str:
    if job.expected_start_at is not None:
        likely, when = ahead(job.expected_start_at, now), day_and_clock(job.expected_start_at, now)
        return (
            "at the next look" if likely == "now" else f"likely {likely}, at {when}, if nothing ends sooner"
        )
    if not job.reason:
        return "known once the head has looked at it"
    if job.reason == "BeginTime" and job.begin_at is not None:
        return f"not before {day_and_clock(job.begin_at, now)}, {ahead(job.begin_at, now)}"
    if job.reason in ("Held", "Dependency", "Quota", "ArrayLimit", "ForeignProcess"):
        return "nobody can tell: it depends on what the line above says"
    return (
        "nobody can tell: a job ahead of it, or beside it, has no known end; a `time_limit` would give it one"
    )

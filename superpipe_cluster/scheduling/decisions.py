"""What the scheduler can say about a job: one small frozen class per decision.

Owns the words only. Who says them when is `decide`; writing them down is the head's work.
"""

from __future__ import annotations

from dataclasses import dataclass

from superpipe_cluster.lifecycle.states import EndReason, WaitReason


@dataclass(frozen=True, slots=True)
class Start:
    """Place the job on `device` with `budget_bytes`."""

    job_id: str
    device: str
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Leave the job where it is.

    Attributes:
        job_id: the job.
        reason: why it waits.
        message: that in a sentence; changes only when something it names does.
        expected_start_at: when it is likely to start, unix seconds; None when nobody can tell. Not to be stored:
            it is another one at every decision.
    """

    job_id: str
    reason: WaitReason
    message: str
    expected_start_at: float | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """The job can never start: the job `because_of`, which it waits for, ended in another way than it needs."""

    job_id: str
    reason: EndReason
    because_of: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Ask the running job's worker to hold `budget_bytes`: fewer, to let `for_job` in, or more, of what is left over.

    `for_job` is None for growth, and for a shrink that a foreign process or the end of a window is the reason of;
    `why` is the sentence for people.
    """

    job_id: str
    budget_bytes: int
    why: str
    for_job: str | None = None


@dataclass(frozen=True, slots=True)
class Preempt:
    """Have the running job save, stop and queue again: its bytes are needed, or its hours are over."""

    job_id: str
    why: str
    for_job: str | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Have the running job stand still: its window has closed and it asked for that."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Have the job that a window's end has paused go on: the window is open again."""

    job_id: str


Decision = Start | Wait | Cancel | Resize | Preempt | Pause | Resume


def behind(job_id: str) -> Wait:
    """The wait of everybody who is not first in line: always the same, see [Note: messages that stay] in `line.py`."""
    return Wait(job_id, WaitReason.PRIORITY, "waits for the jobs ahead of it in the line")

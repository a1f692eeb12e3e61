"""What can happen to a job: one small frozen class per event.

Owns the events and their stored form (`kind` plus plain JSON data). What an event does to a record is
`step.py`; where it may happen is `table.py`. Events carry facts, not consequences: the same events over the
same first record always give the same last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from superpipe_cluster.lifecycle.states import EndReason, JobState


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    #: Stable name in the store, in the table and in the diagram.
    kind: ClassVar[str] = ""

    def data(self) -> dict[str, Any]:
        """The event's facts as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Submitted(Event):
    """The job was accepted. Carries what later steps depend on, so that a replay needs no other source.

    `state` is QUEUED, or HELD for a job that is to wait for its owner.
    """

    kind: ClassVar[str] = "submitted"
    id: str
    name: str
    user: str
    job_kind: str
    state: str = JobState.QUEUED
    max_attempts: int = 1


@dataclass(frozen=True, slots=True)
class Held(Event):
    """Its owner took a queued job out of the queue for a while."""

    kind: ClassVar[str] = "held"


@dataclass(frozen=True, slots=True)
class Released(Event):
    """Its owner put a held job into the queue."""

    kind: ClassVar[str] = "released"


@dataclass(frozen=True, slots=True)
class Placed(Event):
    """The scheduler promised `budget_bytes` on `device`. A new attempt and epoch; the worker comes next."""

    kind: ClassVar[str] = "placed"
    device: str
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The worker's program has begun: its first message arrived."""

    kind: ClassVar[str] = "started"


@dataclass(frozen=True, slots=True)
class ResizeAsked(Event):
    """The head wants the worker to hold `budget_bytes`, of which `revision` is the number.

    The first phase of two: nothing is given away before `Resized`. See [Note: two phases] in `record.py`. `why` is the
    scheduler's sentence for people.
    """

    kind: ClassVar[str] = "resize_asked"
    budget_bytes: int
    revision: int
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Resized(Event):
    """The worker acknowledged: since a step boundary it holds at most `budget_bytes`, as asked in `revision`.

    `refused` is its reason when it could not do as asked, and `budget_bytes` then what it had before.
    """

    kind: ClassVar[str] = "resized"
    budget_bytes: int
    revision: int
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted(Event):
    """Its program told how many bytes it has use for now; None: as many as its job file says."""

    kind: ClassVar[str] = "wanted"
    budget_bytes: int | None


@dataclass(frozen=True, slots=True)
class PauseAsked(Event):
    """The worker is to stand still at its next step boundary. `why`: its owner, or a window that closed."""

    kind: ClassVar[str] = "pause_asked"
    why: str = "owner"


@dataclass(frozen=True, slots=True)
class ResumeAsked(Event):
    """The worker is to go on."""

    kind: ClassVar[str] = "resume_asked"


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The worker acknowledged that it stands still at a step boundary."""

    kind: ClassVar[str] = "paused"


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The worker acknowledged that it goes on."""

    kind: ClassVar[str] = "resumed"


@dataclass(frozen=True, slots=True)
class Changed(Event):
    """Somebody changed what the job asks for. `fields` are of `record.CHANGEABLE`, with their new values."""

    kind: ClassVar[str] = "changed"
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StopAsked(Event):
    """Somebody wants the job to stop. `why` is an `EndReason`: cancelled, time_limit or preempted."""

    kind: ClassVar[str] = "stop_asked"
    why: str


@dataclass(frozen=True, slots=True)
class Exited(Event):
    """The worker's process has ended and is known to be gone.

    `reason` is the `EndReason` that the worker gave, or worker_lost when it died without a word; `exit_code`
    is the process's (negative: the signal that killed it).
    """

    kind: ClassVar[str] = "exited"
    reason: str
    message: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Lost(Event):
    """The worker cannot be reached any more, and its device bytes are confirmed free. Raises the epoch.

    To be written only after that confirmation: a silent worker is not a free device. `why` is worker_lost or
    node_lost.
    """

    kind: ClassVar[str] = "lost"
    why: str = EndReason.WORKER_LOST
    message: str | None = None


@dataclass(frozen=True, slots=True)
class DependencyFailed(Event):
    """A job that this one waits for ended without success. `job_id` is that job."""

    kind: ClassVar[str] = "dependency_failed"
    job_id: str


#: Every event by its stored name.
EVENTS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        Submitted, Held, Released, Placed, Started, ResizeAsked, Resized, Wanted, PauseAsked, ResumeAsked,
        Paused, Resumed, Changed, StopAsked, Exited, Lost, DependencyFailed,
    )
}  # fmt: skip


def from_stored(kind: str, data: Mapping[str, Any]) -> Event | None:
    """The event that was stored as `kind` and `data`; None for a kind that only a newer version knows.

    Fields that this version does not know are dropped.
    """
    event = EVENTS.get(kind)
    if event is None:
        return None
    return event(**{field.name: data[field.name] for field in fields(event) if field.name in data})

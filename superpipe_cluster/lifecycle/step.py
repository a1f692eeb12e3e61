"""What an event does to a record: `step`, and `replay`, which runs it over a job's whole history.

Owns the choice among the outcomes that `table.py` allows, and the fields that go with a state. Pure: the time
is an argument, and nothing is written anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from superpipe_cluster.errors import Conflict
from superpipe_cluster.lifecycle.events import (
    Changed,
    DependencyFailed,
    Event,
    Exited,
    Held,
    Lost,
    PauseAsked,
    Paused,
    Placed,
    Released,
    ResizeAsked,
    Resized,
    ResumeAsked,
    Resumed,
    Started,
    StopAsked,
    Submitted,
    Wanted,
    from_stored,
)
from superpipe_cluster.lifecycle.record import CHANGEABLE, FRESH_COUNTERS, JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.lifecycle.table import TABLE, events_from

#: What a job can be asked to stop for.
STOP_REASONS = frozenset({EndReason.CANCELLED, EndReason.TIME_LIMIT, EndReason.PREEMPTED})

#: A reason outside of these comes from a worker of another version; its end counts as an error.
_KNOWN_REASONS = frozenset(EndReason)

#: A message is a sentence for people; a program's whole output belongs into its log.
MESSAGE_LIMIT = 2000


class InvalidTransition(Conflict):
    """An event that cannot happen to a job where it is. The message tells the job's story so far."""


def step(record: JobRecord, event: Event, now: float) -> JobRecord:
    """The record after `event` happened to it at `now` (unix seconds). `revision` is left to the store.

    Raises:
        InvalidTransition: the table has no row for this event in the record's state, or none with this
        outcome.
    """
    allowed = TABLE.get((record.state, event.kind))
    if allowed is None:
        raise InvalidTransition(_story(record, event), hint=_hint(record))
    update = _outcome(record, event, now)
    if update["state"] not in allowed:
        raise InvalidTransition(_story(record, event), hint=_hint(record))
    return record.model_copy(update={**_used(record, now), **update, "changed_at": now})


def begin(record: JobRecord, now: float) -> tuple[JobRecord, Submitted]:
    """The first record of a job, from one that holds what its owner asked, and the event it begins with.

    Why it waits may be known already; a held job waits for its release.

    Raises:
        ValueError: the record has a history already, or is in a state in which no job begins.
    """
    if record.state not in TABLE[None, Submitted.kind] or record.attempt or record.epoch or record.revision:
        raise ValueError(
            f"job {record.id} is not new: {record.state}, attempt {record.attempt}, epoch {record.epoch}"
        )
    event = Submitted(
        id=record.id,
        name=record.name,
        user=record.user,
        job_kind=record.kind,
        state=record.state.value,
        max_attempts=record.max_attempts,
    )
    return record.model_copy(update=_beginning(record.state, now)), event


class Happened(NamedTuple):
    """One line of a job's history, as the store keeps it: what happened when, and where that left the job."""

    at: float
    kind: str
    data: Mapping[str, Any]


#: What the store adds to the data of every event: the record's own words for where the event left the job.
OUTCOME_FIELDS = ("state", "attempt", "epoch")

#: What a replay gives exactly as the record has it. Not among them: what the owner wrote, the plan, the
#: progress, and the reason a waiting job waits for (it changes with every tick, and is no event).
REPLAYED_FIELDS = (
    "id", "name", "user", "kind", "max_attempts", "state", "attempt", "losses", "epoch", "stop_asked",
    "exit_code", "device", "budget_bytes", "budget_asked_bytes", "budget_asked_at", "budget_revision",
    "charged_bytes", "budget_since", "wants_bytes", "wants_since", "pause_asked", "submitted_at", "queued_at",
    "placed_at", "started_at", "ended_at", "changed_at", "waited_s", "ran_s", "used_byte_s", "used_until",
)  # fmt: skip


def stored_data(event: Event, after: JobRecord) -> dict[str, Any]:
    """The data to store with `event`, which led to `after`: its facts, and the outcome."""
    return {**event.data(), **{f"to_{name}": getattr(after, name) for name in OUTCOME_FIELDS}}


def replay(history: Iterable[Happened]) -> JobRecord:
    """The record that a job's events lead to, equal to the stored one in all `REPLAYED_FIELDS`.

    An event of a kind that only a newer version knows takes the job to the outcome that is stored beside it.

    Raises:
        ValueError: the history does not begin with the job's submission.
        InvalidTransition: it holds an event that cannot follow the ones before.
    """
    record: JobRecord | None = None
    for at, kind, data in history:
        event = from_stored(kind, data)
        if record is None:
            if not isinstance(event, Submitted):
                raise ValueError(f"a history begins with {Submitted.kind!r}, not with {kind!r}")
            record = _first(event, at)
        elif event is None:
            outcome = {name: data[f"to_{name}"] for name in OUTCOME_FIELDS}
            record = record.model_copy(
                update={**outcome, "state": JobState(outcome["state"]), "changed_at": at}
            )
        else:
            record = step(record, event, at)
    if record is None:
        raise ValueError("a history holds at least the job's submission")
    return record


def _first(event: Submitted, at: float) -> JobRecord:
    state = JobState(event.state)
    record = JobRecord(
        id=event.id,
        name=event.name,
        user=event.user,
        kind=event.job_kind,
        max_attempts=event.max_attempts,
        state=state,
    )
    return record.model_copy(update=_beginning(state, at))


def _beginning(state: JobState, now: float) -> dict[str, Any]:
    held = state is JobState.HELD
    beginning = {"submitted_at": now, "queued_at": None if held else now, "changed_at": now}
    return {**beginning, "reason": WaitReason.HELD, "message": None} if held else beginning


def _outcome(record: JobRecord, event: Event, now: float) -> dict[str, Any]:
    """The fields that `event` changes, `state` always among them."""
    match event:
        case Held():
            return {
                "state": JobState.HELD,
                "reason": WaitReason.HELD,
                "message": None,
                "queued_at": None,
                "waited_s": record.waited_s + _since(record.queued_at, now),
            }
        case Released():
            return {"state": JobState.QUEUED, "reason": None, "message": None, "queued_at": now}
        case Placed(device=device, budget_bytes=budget_bytes):
            return {
                **FRESH_COUNTERS,
                **_settled(budget_bytes),
                "budget_since": now,
                "placed_at": now,
                "used_until": now,
                "waited_s": record.waited_s + _since(record.queued_at, now),
                "state": JobState.STARTING,
                "reason": None,
                "message": None,
                "device": device,
                "attempt": record.attempt + 1,
                "epoch": record.epoch + 1,
                "started_at": None,
                "exit_code": None,
            }
        case Started():
            return {"state": JobState.RUNNING, "started_at": now}
        case ResizeAsked(budget_bytes=budget_bytes, revision=revision):
            if revision != record.budget_revision + 1:
                raise InvalidTransition(_story(record, event), hint="another budget was asked for just now")
            return _resize_asked(record, budget_bytes, revision, now)
        case Resized(budget_bytes=budget_bytes, revision=revision):
            if record.budget_asked_bytes is None or revision > record.budget_revision:
                raise InvalidTransition(_story(record, event), hint="nobody asked for this budget")
            return _resized(record, budget_bytes, revision, now)
        case Wanted(budget_bytes=budget_bytes):
            return {"state": record.state, "wants_bytes": budget_bytes, "wants_since": now}
        case PauseAsked(why=why):
            return {"state": record.state, "pause_asked": why}
        case ResumeAsked():
            return {"state": record.state, "pause_asked": None}
        case Paused():
            return {"state": JobState.PAUSED}
        case Resumed():
            return {"state": JobState.RUNNING}
        case Changed(fields=fields):
            unknown = fields.keys() - CHANGEABLE
            if unknown:
                raise ValueError(f"{', '.join(sorted(unknown))} of a job cannot be changed")
            return {**fields, "state": record.state}
        case StopAsked(why=why):
            return _stop_asked(record, why, now)
        case Exited(reason=reason, message=message, exit_code=exit_code):
            return {**_ended(record, reason, message, now), "exit_code": exit_code}
        case Lost(why=why, message=message):
            # The worker may still live somewhere, unreachable: from here on its epoch is an old one.
            return {**_ended(record, why, message, now), "epoch": record.epoch + 1}
        case DependencyFailed(job_id=job_id):
            return _final(
                EndReason.DEPENDENCY_FAILED, f"job {job_id}, which it waits for, did not succeed", now
            )
        case _:
            raise AssertionError(f"{event.kind!r} is in the table but not in step")


def _settled(budget_bytes: int | None) -> dict[str, Any]:
    """A budget that nothing is under way about, and nobody has said anything about yet."""
    return {
        "budget_bytes": budget_bytes,
        "budget_asked_bytes": None,
        "budget_asked_at": None,
        "charged_bytes": budget_bytes or 0,
        "wants_bytes": None,
        "wants_since": None,
        "pause_asked": None,
    }


def _resize_asked(record: JobRecord, budget_bytes: int, revision: int, now: float) -> dict[str, Any]:
    return {
        "state": record.state,
        "budget_asked_bytes": budget_bytes,
        "budget_asked_at": now,
        "budget_revision": revision,
        "charged_bytes": max(record.promised_bytes, budget_bytes),
    }


def _resized(record: JobRecord, budget_bytes: int, revision: int, now: float) -> dict[str, Any]:
    """The acknowledged budget. One of an older revision frees nothing, see [Note: two phases]."""
    if revision < record.budget_revision:
        return {"state": record.state, "budget_bytes": budget_bytes}
    return {
        "state": record.state,
        "budget_bytes": budget_bytes,
        "budget_asked_bytes": None,
        "budget_asked_at": None,
        "charged_bytes": budget_bytes,
        "budget_since": now,
    }


def _used(record: JobRecord, now: float) -> dict[str, Any]:
    """What it was promised, times the seconds since that was last added up.

    [Note: usage] Usage is part of the record, and so of every transition's one atomic write: no crash charges
    anything twice, or forgets it, and the totals of a user are sums over their records.
    """
    if not record.state.holds_device or record.used_until is None:
        return {}
    held_s = _since(record.used_until, now)
    return {
        "used_byte_s": record.used_byte_s + record.promised_bytes * held_s,
        "used_until": max(now, record.used_until),
    }


def _since(start: float | None, now: float) -> float:
    return 0.0 if start is None else max(0.0, now - start)


def _stop_asked(record: JobRecord, why: str, now: float) -> dict[str, Any]:
    if why not in STOP_REASONS:
        raise ValueError(f"a job cannot be asked to stop because of {why!r}")
    if record.state.is_waiting:
        waited_s = record.waited_s + _since(record.queued_at, now)
        return {**_final(EndReason(why), None, now), "stop_asked": why, "waited_s": waited_s}
    # A preempted job is to come back, a cancelled one is not: the first final word stands.
    standing = record.stop_asked
    if standing is None or standing == EndReason.PREEMPTED:
        standing = why
    return {"state": JobState.STOPPING, "stop_asked": standing}


def _ended(record: JobRecord, reason: str, message: str | None, now: float) -> dict[str, Any]:
    """The end of a worker: final, or back to the queue."""
    cause = _cause(record, EndReason(reason) if reason in _KNOWN_REASONS else EndReason.ERROR)
    losses = record.losses + 1 if cause.is_retried else record.losses
    if cause is EndReason.PREEMPTED or (cause.is_retried and losses < record.max_attempts):
        return {
            "state": JobState.QUEUED,
            "reason": None,
            "message": _readable(message),
            "losses": losses,
            "queued_at": now,
            "device": None,
            **_settled(None),
            "used_until": None,
            "used_link_bytes": record.used_link_bytes + record.link_bytes,
            "ran_s": record.ran_s + _since(record.started_at, now),
            "started_at": None,
            "stop_asked": None,
            "held_bytes": 0,
        }
    return {
        **_final(cause, message, now),
        **_settled(record.budget_bytes),
        "used_until": None,
        "used_link_bytes": record.used_link_bytes + record.link_bytes,
        "ran_s": record.ran_s + _since(record.started_at, now),
        "losses": losses,
        "held_bytes": 0,
    }


def _cause(record: JobRecord, reason: EndReason) -> EndReason:
    """Why the job really ended: a worker that was told to stop and then fell over was stopped.

    Success stays success, whatever was asked: the work is done. A preempted worker that raised an error of
    its own has failed: it would fail again.
    """
    if record.stop_asked is None or reason is EndReason.OK:
        return reason
    if record.stop_asked == EndReason.PREEMPTED:
        return EndReason.PREEMPTED if reason.is_retried else reason
    return EndReason(record.stop_asked)


def _final(reason: EndReason, message: str | None, now: float) -> dict[str, Any]:
    return {"state": reason.ends_in, "reason": reason, "message": _readable(message), "ended_at": now}


def _readable(message: str | None) -> str | None:
    """Cut to a sentence's length, and storable: a program's last words may hold undecodable bytes."""
    if message is None:
        return None
    return message.encode("utf-8", "replace").decode("utf-8")[:MESSAGE_LIMIT]


def _story(record: JobRecord, event: Event) -> str:
    so_far = [f"submitted at {record.submitted_at:.3f}"]
    if record.attempt:
        so_far.append(
            f"attempt {record.attempt} (epoch {record.epoch}) placed on {record.device or 'no device now'}"
        )
    if record.started_at is not None:
        so_far.append(f"running since {record.started_at:.3f}")
    if record.stop_asked is not None:
        so_far.append(f"asked to stop: {record.stop_asked}")
    if record.ended_at is not None:
        so_far.append(f"ended at {record.ended_at:.3f}: {record.reason}")
    return (
        f"job {record.id} ({record.name}) is {record.state} since {record.changed_at:.3f}; "
        f"{event.kind!r} cannot happen to it there. Story: {', '.join(so_far)}."
    )


def _hint(record: JobRecord) -> str:
    if record.state.is_terminal:
        return f"the job has ended; `spcluster show {record.id}` says how"
    possible = events_from(record.state)
    return (
        f"possible now: {', '.join(possible)}"
        if possible
        else "a newer version of spcluster wrote this state"
    )

"""What owners do to jobs that are there: cancel, hold, release, pause, resume, requeue, change.

Owns what makes sense where, and what to say where it does not. Asking twice is fine: an answer may have got lost. The
events are `lifecycle`'s; their effects on workers are the tick's and the reports'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from superpipe_cluster import spec
from superpipe_cluster.api.service import Verb
from superpipe_cluster.api.views import ChangeRequest
from superpipe_cluster.errors import BadInput, BudgetTooSmall, Conflict
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.head.admission import needs_of, require_quota
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.rules import Rules
from superpipe_cluster.head.submission import PRIORITIES
from superpipe_cluster.lifecycle.events import (
    Changed,
    Event,
    Held,
    PauseAsked,
    Released,
    ResumeAsked,
    StopAsked,
)
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason, JobState
from superpipe_cluster.lifecycle.step import InvalidTransition
from superpipe_cluster.machine import Device
from superpipe_cluster.planning import Plan
from superpipe_cluster.spec.units import format_bytes
from superpipe_cluster.store.interface import JobStore
from superpipe_cluster.store.writes import advance

#: Whose wish a pause is, as `PauseAsked` says it.
_OWNER = "owner"


class Changes:
    """Safe to use from several threads.

    Args:
        store: where jobs are.
        presence: told whose child is to be killed without grace.
        devices: of this cluster.
        host_total_bytes: RAM of the machine.
        rules: the windows and quotas.
    """

    def __init__(
        self,
        store: JobStore,
        presence: Presence,
        devices: Sequence[Device],
        host_total_bytes: int,
        rules: Rules,
    ) -> None:
        self._store = store
        self._presence = presence
        self._devices = devices
        self._host_total_bytes = host_total_bytes
        self._rules = rules

    def cancel(self, job_id: str, *, force: bool) -> JobRecord:
        """See `Service.cancel`."""
        record = self._store.get(job_id)
        if force:
            self._presence.force(Worker(record.id, record.epoch))
        if record.stop_asked == EndReason.CANCELLED and not record.state.is_terminal:
            return record
        return self._happen(record, StopAsked(EndReason.CANCELLED))

    def act(self, job_id: str, verb: Verb) -> JobRecord:
        """See `Service.act`."""
        record = self._store.get(job_id)
        _require_alive(record)
        event = _EVENTS[verb](record)
        return record if event is None else self._happen(record, event)

    def change(self, job_id: str, wishes: ChangeRequest) -> JobRecord:
        """See `Service.change`."""
        record = self._store.get(job_id)
        _require_alive(record)
        fields = self._fields(record, wishes)
        news = {name: value for name, value in fields.items() if getattr(record, name) != value}
        return self._happen(record, Changed(news)) if news else record

    def _fields(self, record: JobRecord, wishes: ChangeRequest) -> dict[str, Any]:
        asked = wishes.model_fields_set
        fields: dict[str, Any] = {}
        if "priority" in asked:
            fields["priority"] = PRIORITIES[wishes.priority]
        if "gpu_memory" in asked:
            fields |= self._memory(record, wishes.gpu_memory)
        if "time_limit" in asked:
            fields["time_limit_s"] = wishes.time_limit
        if "not_before" in asked:
            fields["begin_at"] = None if wishes.not_before is None else wishes.not_before.timestamp()
        if "window" in asked:
            self._rules.require_window(wishes.window)
            fields["window"] = wishes.window
        if "at_window_end" in asked:
            fields["at_window_end"] = wishes.at_window_end
        if not fields:
            raise BadInput(
                "nothing to change was named",
                hint=f"what can be changed: {', '.join(ChangeRequest.model_fields)}",
            )
        return fields

    def _memory(self, record: JobRecord, memory: spec.Memory) -> dict[str, Any]:
        """The bytes that follow from another `gpu_memory`, found as at submission."""
        job = spec.parse_stored(record.spec)
        job = job.model_copy(update={"resources": job.resources.model_copy(update={"gpu_memory": memory})})
        plan = Plan.from_dict(record.plan) if record.plan is not None else None
        needs = needs_of(job, plan, self._devices, self._host_total_bytes)
        require_quota(job, needs, self._rules.quotas().get(record.user))
        if needs.budget_max_bytes < record.floor_bytes:
            raise BudgetTooSmall(
                f"job {record.id} runs, and says that its models cannot run in less than "
                f"{format_bytes(record.floor_bytes)} ({record.floor_bytes} bytes)",
                needed_bytes=record.floor_bytes,
                hint=f"`spcluster show {record.id}` shows what it holds",
            )
        return {
            "budget_min_bytes": needs.budget_min_bytes,
            "budget_max_bytes": needs.budget_max_bytes,
            "link_min_bytes_per_s": needs.link_min_bytes_per_s,
        }

    def _happen(self, record: JobRecord, event: Event) -> JobRecord:
        """Let `event` happen to the job as it stands; it may have moved on since it was looked at."""
        try:
            return advance(self._store, record.id, event)
        except InvalidTransition:
            now = self._store.get(record.id)
            _require_alive(now)
            raise Conflict(
                f"job {record.id} was {record.state} and has just become {now.state}",
                hint="look, and ask again",
            ) from None


def _require_alive(record: JobRecord) -> None:
    if record.state.is_terminal:
        raise Conflict(
            f"job {record.id} has ended already ({record.state})",
            hint=f"`spcluster show {record.id}` says how",
        )


def _hold(record: JobRecord) -> Event | None:
    if record.state is JobState.HELD:
        return None
    if record.state is JobState.QUEUED:
        return Held()
    hint = "`spcluster pause {id}` has it stand still, `spcluster requeue {id}` has it save and wait again"
    raise _refusal(record, "held: it does not wait", hint)


def _release(record: JobRecord) -> Event | None:
    if record.state is JobState.HELD:
        return Released()
    if record.state is JobState.QUEUED:
        return None
    raise _refusal(record, "released: nobody holds it", "`spcluster resume {id}` lets a paused job go on")


def _pause(record: JobRecord) -> Event | None:
    if record.state in (JobState.RUNNING, JobState.PAUSED):
        return None if record.pause_asked == _OWNER else PauseAsked(_OWNER)
    if record.state.is_waiting:
        raise _refusal(record, "paused: it does not run yet", "`spcluster hold {id}` keeps it from starting")
    raise _refusal(record, "paused", "a job that runs can be")


def _resume(record: JobRecord) -> Event | None:
    if record.state in (JobState.RUNNING, JobState.PAUSED):
        if record.pause_asked is None:
            return None
        if record.pause_asked == _OWNER:
            return ResumeAsked()
        hint = "it goes on when the window opens; `spcluster set {id} window=null` takes it out of the window"
        raise _refusal(record, f"resumed: its window {record.window} has closed", hint)
    if record.state is JobState.HELD:
        raise _refusal(record, "resumed", "`spcluster release {id}` puts it back in line")
    raise _refusal(record, "resumed: it is not paused", "`spcluster show {id}` says where it is")


def _requeue(record: JobRecord) -> Event | None:
    if record.state is JobState.QUEUED:
        return None
    if record.state is JobState.HELD:
        raise _refusal(record, "requeued", "`spcluster release {id}` puts it back in line")
    if record.stop_asked is not None:
        if record.stop_asked == EndReason.PREEMPTED:
            return None
        raise _refusal(
            record, f"requeued: it is stopping ({record.stop_asked})", "submit it again once it has ended"
        )
    return StopAsked(EndReason.PREEMPTED)


#: The event that does it; None where the job is there already. Raises `Conflict` where it makes no sense.
_EVENTS: dict[Verb, Callable[[JobRecord], Event | None]] = {
    "hold": _hold,
    "release": _release,
    "pause": _pause,
    "resume": _resume,
    "requeue": _requeue,
}


def _refusal(record: JobRecord, what: str, hint: str) -> Conflict:
    return Conflict(f"job {record.id} is {record.state} and cannot be {what}", hint=hint.format(id=record.id))

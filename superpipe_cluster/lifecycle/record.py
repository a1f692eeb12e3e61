"""The record of a job: everything the cluster knows about it, and how a progress report changes it.

Owns the fields and their meaning. States change in `step.py` only; writing records is the store's work.
Records are frozen: a change is a new record.

[Note: lenient records] Job files are parsed strictly, stored records leniently: a field that only a newer
version knows is kept untouched and written back, a missing one takes its default, an unknown state loads
under its own name (see `states.py`). So heads of different versions can read each other's records, whichever
is the older one.

[Note: two phases] A budget changes in two steps. The head asks (`ResizeAsked`, a new revision); from that moment the
larger of the old and the new budget counts against the device (`charged_bytes`). The worker applies it at its next
step boundary and acknowledges the revision; `Resized` makes it the budget, and only then are the bytes of a smaller
one free. An acknowledgement of an older revision lowers nothing: the worker may already be on its way to a newer,
larger budget.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from superpipe_cluster.lifecycle.states import JobState

#: Written into every record. To be raised when the meaning of a field changes; new fields do not need it.
SCHEMA_VERSION = 1


class JobRecord(BaseModel):
    """One job. Sizes are bytes, durations seconds, points in time unix seconds by the store's clock."""

    # A diverged loss is NaN: as a string it stays valid JSON and comes back as the same float.
    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="strings")

    schema_version: int = SCHEMA_VERSION

    # - who and what
    id: str
    name: str
    user: str
    #: The job file's `kind`: train, generate, ...
    kind: str
    #: The job as its owner wrote it, as `spec.dump` gives it.
    spec: dict[str, Any] = Field(default_factory=dict)
    #: The forecast made before it was accepted; None for a program that cannot be planned.
    plan: dict[str, Any] | None = None
    #: The program: the name of a bundled worker, or the path of the owner's own file.
    worker: str = ""
    #: Where the results go.
    output: str | None = None
    #: -1 low, 0 normal, 1 high, 2 interactive.
    priority: int = 0
    #: Ids of the jobs that must have succeeded first, of those that must have ended, and that must have failed.
    after: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()
    after_fail: tuple[str, ...] = ()
    #: The array it is a task of (the id of the first task), its number there, and how many of the array's tasks
    #: may hold a device at once (None: all).
    array: str | None = None
    array_index: int | None = None
    array_limit: int | None = None
    #: The window it may start and grow in, and what becomes of it at the window's end: shrink, pause or requeue.
    window: str | None = None
    at_window_end: str = "shrink"
    #: Not to be started before, unix seconds.
    begin_at: float | None = None
    max_attempts: int = 1
    time_limit_s: float | None = None
    cpus: int = 1

    # - where it is
    state: JobState = JobState.QUEUED
    #: A `WaitReason` while the job waits, an `EndReason` when it has ended, else None.
    reason: str | None = None
    #: `reason` in a sentence for people.
    message: str | None = None
    #: The `EndReason` that a stop was asked for, while the job is STOPPING and once it has ended by it.
    stop_asked: str | None = None
    exit_code: int | None = None

    # - fencing
    #: Starts made so far.
    attempt: int = 0
    #: Attempts that were lost and tried again, or could not be; preempted ones do not count. Ends at
    #: `max_attempts`.
    losses: int = 0
    #: The fencing number of the attempt: one more at every placement and at every rescue, and never reused.
    epoch: int = 0
    #: One more at every write to the store. Set by the store.
    revision: int = 0

    # - what it was promised
    #: The device it is on, or was on when it ended; None while it waits.
    device: str | None = None
    #: The guaranteed and the wanted end of the job's range of device bytes: it is not started with less than the
    #: former, nor shrunk below it, and that is what its `max_slowdown` needs if it has one.
    budget_min_bytes: int = 0
    budget_max_bytes: int = 0
    #: Device bytes it holds at most, as its worker acknowledged, see [Note: two phases].
    budget_bytes: int | None = None
    #: What it was asked to hold instead, and when; None when nothing is under way.
    budget_asked_bytes: int | None = None
    budget_asked_at: float | None = None
    #: One more at every budget that is asked for, never reused. The acknowledgement names it.
    budget_revision: int = 0
    #: The most it may hold until it has acknowledged the newest budget: what counts against its device.
    charged_bytes: int = 0
    #: Since when it has had its budget.
    budget_since: float | None = None
    #: How many bytes its program has use for now, and since when it says so; None: as many as it can have. See
    #: `most_bytes`.
    wants_bytes: int | None = None
    wants_since: float | None = None
    #: Whether its budget may be made smaller, and larger, while it runs.
    may_shrink: bool = True
    may_grow: bool = True
    #: Its worker's word for the smallest budget it can run in; more than planned when the plan was wrong.
    floor_bytes: int = 0
    #: The forecast in short, smallest budget first: (budget bytes, seconds of a step, link bytes of a step).
    curve: tuple[tuple[int, float, int], ...] = ()
    #: Bytes per second of the link that it needs to stay within its `max_slowdown`; 0 when it promised none.
    link_min_bytes_per_s: int = 0
    #: RAM for the host copy of its model. Of this, `shared_bytes` are frozen weights in one copy for all jobs that name
    #: the same `shared_copy` (None: nothing is shared).
    host_bytes: int = 0
    shared_bytes: int = 0
    shared_copy: str | None = None
    #: Weights of the whole model.
    model_bytes: int = 0

    # - when
    submitted_at: float = 0.0
    #: Since when it has been in the queue (again).
    queued_at: float | None = None
    #: When this attempt was placed, and when its program began.
    placed_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    #: It is to stand still at its next step boundary: "owner" or "window" asked for it; None while it is not.
    pause_asked: str | None = None
    #: When the last event happened to it.
    changed_at: float = 0.0

    # - what it has used, over all attempts
    #: Device bytes times seconds charged so far, the link's bytes, and up to when that was charged.
    used_byte_s: float = 0.0
    used_link_bytes: int = 0
    used_until: float | None = None
    #: Seconds spent in the queue, and running.
    waited_s: float = 0.0
    ran_s: float = 0.0

    # - how far it is
    step: int = 0
    steps: int | None = None
    #: The latest of everything the program reports.
    metrics: dict[str, float] = Field(default_factory=dict)
    #: The first loss of the first attempt that reported one.
    first_loss: float | None = None
    #: The step of the last committed checkpoint.
    checkpoint_step: int | None = None

    # - how it streams: counters of this attempt
    #: Units it may hold on the device at once, units moved per transfer batch, units in all.
    k: int | None = None
    k_prime: int | None = None
    units: int | None = None
    #: Units copied to the device, the bytes of all copies, and the time the program stood waiting for one.
    loads: int = 0
    link_bytes: int = 0
    stall_s: float = 0.0
    #: The most it ever held, in bytes and in units, and what it holds now.
    peak_bytes: int = 0
    peak_units: int = 0
    held_bytes: int = 0
    #: Seconds of a step, the median of its latest; None before there were enough.
    step_s: float | None = None

    @property
    def promised_bytes(self) -> int:
        """What counts against its device while it holds one. See [Note: two phases]."""
        return max(self.charged_bytes, self.budget_bytes or 0, self.budget_asked_bytes or 0)

    @property
    def most_bytes(self) -> int:
        """The upper end of its range as it is now: what its program has use for, and never less than its guarantee.

        Who may not be moved both ways keeps what it has: given back, it would not return.
        """
        if self.wants_bytes is None or not (self.may_shrink and self.may_grow):
            return self.budget_max_bytes
        return min(self.budget_max_bytes, max(self.budget_min_bytes, self.wants_bytes))


#: What `Changed` may change, in a job that has not ended.
CHANGEABLE = frozenset(
    {"priority", "budget_min_bytes", "budget_max_bytes", "link_min_bytes_per_s", "time_limit_s",
     "begin_at", "window", "at_window_end"}
)  # fmt: skip


class Progress(BaseModel):
    """What a worker reports about itself, about once a second. Every field may be left out.

    The fields have the meaning they have in `JobRecord`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    #: True from the moment the program's `main` was entered. For the head, which turns the first one into
    #: `Started`.
    running: bool | None = None
    #: The newest budget that is in force (`Resized`), with its number, and why it is not the one asked for.
    budget_bytes: int | None = None
    budget_revision: int | None = None
    budget_refused: str | None = None
    #: How many bytes it has use for now; None, said in so many words: as many as it can have (`Wanted`).
    wants_bytes: int | None = None
    #: Whether it stands still, as it was asked to (`Paused`, `Resumed`).
    paused: bool | None = None
    #: The smallest budget that its models can run in.
    floor_bytes: int | None = None
    step: int | None = None
    steps: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    checkpoint_step: int | None = None
    k: int | None = None
    k_prime: int | None = None
    units: int | None = None
    loads: int | None = None
    link_bytes: int | None = None
    stall_s: float | None = None
    peak_bytes: int | None = None
    peak_units: int | None = None
    held_bytes: int | None = None
    step_s: float | None = None
    model_bytes: int | None = None


#: What a new attempt begins with. `step`, `metrics` and the checkpoint stay: the attempt goes on from there.
FRESH_COUNTERS: dict[str, Any] = {
    "k": None, "k_prime": None, "units": None, "loads": 0, "link_bytes": 0, "stall_s": 0.0,
    "peak_bytes": 0, "peak_units": 0, "held_bytes": 0, "step_s": None,
}  # fmt: skip


#: Of a report, what is turned into events by the head, and `metrics`, which are merged.
_EVENTS_OF_WORKERS = {
    "running", "budget_bytes", "budget_revision", "budget_refused", "wants_bytes", "paused", "metrics"
}  # fmt: skip


def with_progress(record: JobRecord, progress: Progress) -> JobRecord:
    """`record` with what the worker reported. Changes no state and no fencing number."""
    update = progress.model_dump(exclude_none=True, exclude=_EVENTS_OF_WORKERS)
    if progress.metrics:
        update["metrics"] = {**record.metrics, **progress.metrics}
        if record.first_loss is None and "loss" in progress.metrics:
            update["first_loss"] = progress.metrics["loss"]
    return record.model_copy(update=update)

"""Jobs on the wire: in a listing, in full, on their way in; and their logs.

Owns how a job record becomes a view of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Base64Bytes, ConfigDict, Field, field_validator

from superpipe_cluster.api.views.base import JsonObject, Metric, Request, View
from superpipe_cluster.scheduling.curve import step_s

if TYPE_CHECKING:
    from superpipe_cluster.lifecycle.record import JobRecord
    from superpipe_cluster.store.interface import StoredEvent

#: A program is stored under its own name: no folder, no hidden file, and at most 240 bytes whatever the
#: script.
PROGRAM_NAME_PATTERN = r"^[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,59}$"


class JobView(View):
    """One job in a listing.

    Everybody sees the listing of everybody's jobs; in other people's, `message`, `metrics`, `first_loss` and
    `output` are empty (they tell about the work, not about the device).
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "7",
                    "name": "llama-notes",
                    "user": "alice",
                    "kind": "train",
                    "state": "RUNNING",
                    "device": "cpu:0",
                    "budget_bytes": 1610612736,
                    "k": 5,
                    "units": 14,
                    "step": 40,
                    "steps": 200,
                    "priority": 0,
                    "attempt": 1,
                    "max_attempts": 3,
                    "submitted_at": 1763733600.0,
                }
            ]
        }
    )

    id: str
    name: str
    user: str
    kind: str
    worker: str = ""
    state: str = Field(
        description="HELD, QUEUED, STARTING, RUNNING, PAUSED, STOPPING, SUCCEEDED, FAILED, CANCELLED"
    )
    reason: str | None = Field(
        None, description="Why it waits, while it waits; how it ended, once it has ended."
    )
    message: str | None = Field(None, description="One sentence more about `reason`.")
    priority: int = Field(0, description="-1 low, 0 normal, 1 high, 2 interactive")
    after: tuple[str, ...] = Field(default=(), description="Ids of the jobs that must succeed first.")
    array: str | None = Field(None, description="Id of the first task of the array it is a task of.")
    array_index: int | None = Field(None, description="Its number in that array.")
    window: str | None = Field(None, description="The window it may start and grow in.")
    begin_at: float | None = Field(None, description="Not to be started before.")
    expected_start_at: float | None = Field(
        None, description="When it is likely to start; null when nobody can tell, and once it has."
    )

    device: str | None = None
    budget_bytes: int | None = Field(None, description="Device bytes it was given; null while it has none.")
    budget_asked_bytes: int | None = Field(
        None, description="What it was asked to hold instead, and has not acknowledged yet."
    )
    promised_bytes: int = Field(0, description="What counts against its device while it holds one.")
    budget_min_bytes: int = 0
    budget_max_bytes: int = 0
    most_bytes: int | None = Field(
        None, description="Of `budget_max_bytes`, what it has use for now; it is given no more."
    )
    host_bytes: int = Field(0, description="RAM for the host copy of its model.")
    shared_bytes: int = Field(0, description="Of this, frozen weights in one copy with all jobs on the same.")
    model_bytes: int = 0
    k: int | None = Field(None, description="Units it may hold on the device at once.")
    units: int | None = Field(None, description="Units of its model.")
    loads: int = Field(0, description="Units copied to the device so far.")
    link_bytes: int = 0
    stall_s: float = 0.0
    peak_bytes: int = 0
    peak_units: int = 0
    held_bytes: int = 0
    step_s: Metric = Field(None, description="Seconds of a step, the median of the latest ones.")
    forecast_step_s: Metric = Field(None, description="The same as forecast, for the budget it has or wants.")

    step: int = 0
    steps: int | None = None
    metrics: dict[str, Metric] = Field(default={})
    first_loss: Metric = None
    checkpoint_step: int | None = None
    output: str | None = None

    submitted_at: float = Field(description="Unix seconds, as the other times.")
    queued_at: float | None = None
    pause_asked: str | None = Field(
        None, description="`owner` or `window`: whose wish it is that it stands still."
    )
    started_at: float | None = Field(None, description="When this attempt began to run.")
    ended_at: float | None = None
    attempt: int = Field(0, description="Starts made so far.")
    max_attempts: int = 1
    time_limit_s: float | None = None
    used_byte_s: float = Field(0.0, description="Device bytes times seconds, as charged so far.")
    waited_s: float = Field(0.0, description="Seconds in the queue so far, the present wait not included.")
    ran_s: float = Field(0.0, description="Seconds of earlier attempts; once it has ended, of all.")
    stop_asked: str | None = None
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether the job has reached one of the three states it never leaves."""
        return self.state in ("SUCCEEDED", "FAILED", "CANCELLED")


class EventView(View):
    """One thing that happened to a job."""

    seq: str = Field(description="Grows from event to event.")
    at: float
    kind: str
    data: JsonObject = Field(default={})


class JobDetail(JobView):
    """All about one job; only for its owner and for admins."""

    spec: JsonObject = Field(default={})
    plan: JsonObject | None = None
    events: tuple[EventView, ...] = ()
    tasks: tuple[str, ...] = Field(default=(), description="Ids of all tasks of its array.")


class JobList(View):
    """The listing, oldest job first."""

    jobs: tuple[JobView, ...]


#: What only the owner and admins read in a listing.
_PRIVATE: dict[str, Any] = {"message": None, "metrics": {}, "first_loss": None, "output": None}


def job_view(record: JobRecord, *, private: bool = False, expected_start_at: float | None = None) -> JobView:
    """The listing's view of a record; with `private`, as other people see it."""
    view = JobView.model_validate(
        {**_fields(record, {"spec", "plan"}), "expected_start_at": expected_start_at}
    )
    return view.model_copy(update=_PRIVATE) if private else view


def job_detail(
    record: JobRecord,
    events: Sequence[StoredEvent] = (),
    *,
    tasks: Sequence[str] = (),
    expected_start_at: float | None = None,
) -> JobDetail:
    """All of a record, what happened to it, and the other tasks of its array."""
    story = [{"seq": e.seq, "at": e.at, "kind": e.kind, "data": dict(e.data)} for e in events]
    more = {"events": story, "tasks": tuple(tasks), "expected_start_at": expected_start_at}
    return JobDetail.model_validate({**_fields(record, set()), **more})


def _fields(record: JobRecord, without: set[str]) -> dict[str, Any]:
    """The record's fields as JSON values, and those that follow from them."""
    budget_bytes = record.budget_bytes or record.budget_max_bytes
    return {
        **record.model_dump(mode="json", exclude=without),
        "most_bytes": record.most_bytes,
        "promised_bytes": record.promised_bytes if record.state.holds_device else 0,
        "forecast_step_s": step_s(record.curve, budget_bytes) if record.curve else None,
    }


class CodeUpload(Request):
    """A user's own worker program: the file's bare name and its text."""

    name: str = Field(pattern=PROGRAM_NAME_PATTERN)
    text: str


class FileUpload(Request):
    """A file that travels with a script: its path in the script's folder, its bytes in base64, if it can be run."""

    path: str = Field(pattern=r"^[^\x00]+$", max_length=1000)
    content: Base64Bytes
    executable: bool = False

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        """A path of plain names cannot lead out of a folder."""
        if any(name in ("", ".", "..") or len(name.encode()) > 240 for name in path.split("/")):
            raise ValueError("expected a path inside the script's folder")
        return path


class SubmitRequest(Request):
    """A job to put in the queue: the fields of a job file, with absolute paths."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "spec": {
                        "name": "llama-notes",
                        "kind": "train",
                        "model": {
                            "config": {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 12}
                        },
                        "data": {"files": ["python-stdlib:"]},
                        "train": {"steps": 200},
                        "resources": {"gpu_memory": "1GiB..2GiB"},
                    },
                    "code": None,
                }
            ]
        }
    )

    spec: dict[str, Any]
    code: CodeUpload | None = None
    files: list[FileUpload] = Field(default=[], max_length=10_000)


class LogView(View):
    """A piece of a job's log. Ask again from `next_offset`: nothing is missed and nothing comes twice."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"text": "step 40 loss 2.31\n", "next_offset": 1822, "size": 1822, "ended": False}]
        }
    )

    text: str = Field(description="UTF-8 of these bytes; never cut inside a character.")
    next_offset: int = Field(description="Bytes, from the start of the log.")
    size: int = Field(description="Bytes of the whole log when it was read.")
    ended: bool = Field(description="The job is over and this is the end of its log.")

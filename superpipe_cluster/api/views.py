"""The wire format: what the API says about jobs, devices, users and the cluster, and what it takes.

Owns the models and how a job record becomes one of them. The client parses answers with these same models, so what is
read is lenient (a newer head may say more); what is taken from the network is strict. Nothing here knows of HTTP.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from superpipe_cluster.spec.fields import NAME_PATTERN

if TYPE_CHECKING:
    from superpipe_cluster.lifecycle.record import JobRecord
    from superpipe_cluster.store.interface import StoredEvent

#: The largest request body that is read: a job file and a program are text written by a person.
MAX_BODY_BYTES = 4 * 2**20

#: A program is stored under its own name: no folder, no hidden file, and at most 240 bytes whatever the
#: script.
PROGRAM_NAME_PATTERN = r"^[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,59}$"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity, a diverged run has both: they travel as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_finite)]
#: A measured number; null when it is not finite (a loss that became NaN).
Metric = Annotated[float | None, AfterValidator(_finite)]


class View(BaseModel):
    """Base of what is answered: fields that this version does not know are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Request(BaseModel):
    """Base of what is taken: a field that this version does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---- jobs -----------------------------------------------------------------------------------------


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
    priority: int = Field(0, description="-1 low, 0 normal, 1 high")
    after: tuple[str, ...] = Field(default=(), description="Ids of the jobs that must succeed first.")

    device: str | None = None
    budget_bytes: int | None = Field(None, description="Device bytes it was given; null while it has none.")
    budget_min_bytes: int = 0
    budget_max_bytes: int = 0
    host_bytes: int = 0
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

    step: int = 0
    steps: int | None = None
    metrics: dict[str, Metric] = {}
    first_loss: Metric = None
    checkpoint_step: int | None = None
    output: str | None = None

    submitted_at: float = Field(description="Unix seconds, as the other times.")
    queued_at: float | None = None
    started_at: float | None = Field(None, description="When this attempt began to run.")
    ended_at: float | None = None
    attempt: int = Field(0, description="Starts made so far.")
    max_attempts: int = 1
    time_limit_s: float | None = None
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
    data: JsonObject = {}


class JobDetail(JobView):
    """All about one job; only for its owner and for admins."""

    spec: JsonObject = {}
    plan: JsonObject | None = None
    events: tuple[EventView, ...] = ()


class JobList(View):
    """The listing, oldest job first."""

    jobs: tuple[JobView, ...]


#: What only the owner and admins read in a listing.
_PRIVATE: dict[str, Any] = {"message": None, "metrics": {}, "first_loss": None, "output": None}


def job_view(record: JobRecord, *, private: bool = False) -> JobView:
    """The listing's view of a record; with `private`, as other people see it."""
    view = JobView.model_validate(record.model_dump(mode="json", exclude={"spec", "plan"}))
    return view.model_copy(update=_PRIVATE) if private else view


def job_detail(record: JobRecord, events: tuple[StoredEvent, ...] = ()) -> JobDetail:
    """All of a record, and what happened to it."""
    story = [{"seq": e.seq, "at": e.at, "kind": e.kind, "data": dict(e.data)} for e in events]
    return JobDetail.model_validate({**record.model_dump(mode="json"), "events": story})


class CodeUpload(Request):
    """A user's own worker program: the file's bare name and its text."""

    name: str = Field(pattern=PROGRAM_NAME_PATTERN)
    text: str


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


class CancelRequest(Request):
    """How to stop a job."""

    force: bool = Field(False, description="Kill it now instead of letting it save first.")


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


# ---- devices --------------------------------------------------------------------------------------


class DeviceJobView(View):
    """A job that holds bytes of a device."""

    id: str
    name: str
    user: str
    budget_bytes: int
    held_bytes: int = 0


class DeviceView(View):
    """One device and its ledger: `used_bytes` is the sum of the budgets given away."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "cpu:0",
                    "name": "virtual device",
                    "kind": "virtual",
                    "capacity_bytes": 3221225472,
                    "used_bytes": 1610612736,
                    "free_bytes": 1610612736,
                    "link_bytes_per_s": 2000000000,
                    "jobs": [{"id": "7", "name": "llama-notes", "user": "alice", "budget_bytes": 1610612736}],
                }
            ]
        }
    )

    id: str = Field(description="`cpu:N` for a virtual device, the NVML UUID for a GPU.")
    name: str
    kind: str = Field(description="virtual or cuda")
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    link_bytes_per_s: int
    jobs: tuple[DeviceJobView, ...] = ()


class HostView(View):
    """The RAM of the machine, within the limits of its cgroup."""

    total_bytes: int
    available_bytes: int
    used_by_jobs_bytes: int = Field(0, description="What the jobs that hold a device have booked.")


class DevicesView(View):
    """All devices, and the host they hang on."""

    devices: tuple[DeviceView, ...]
    host: HostView


# ---- users and the cluster ------------------------------------------------------------------------


class UserRequest(Request):
    """A person to let in."""

    name: str = Field(pattern=NAME_PATTERN, examples=["alice"])
    role: Literal["user", "admin"] = "user"


class UserView(View):
    """Somebody with a token."""

    name: str
    role: str


class NewUserView(UserView):
    """A new user, with the token that is shown this once."""

    token: str


class UserList(View):
    """Everybody with a token."""

    users: tuple[UserView, ...]


class HealthView(View):
    """Whether the head works; for health checks, no token needed."""

    status: Literal["ok", "degraded"]
    version: str
    trouble: str | None = Field(None, description="What is wrong when degraded.")


class ClusterView(View):
    """The parts of the cluster, for `spcluster doctor`."""

    version: str
    url: str
    pid: int = Field(description="Process of the head.")
    started_at: float = Field(description="Unix seconds at which this head started.")
    ticked_at: float | None = Field(None, description="Unix seconds of the last finished tick of its loop.")
    store: str = Field(description="Where Redis is; never with a password.")
    store_embedded: bool = False
    ray: str = Field(description="Address of the Ray cluster.")
    jobs: dict[str, int] = Field({}, description="Number of jobs by state.")

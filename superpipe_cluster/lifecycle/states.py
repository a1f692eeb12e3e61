"""The words for where a job is, why it waits and why it ended.

Owns three enums and what follows from a single member of them. Which state follows which is `table.py`; the
fields that come with a state are `record.py`.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is. Each member says who moves the job out of it, and what happens if that process dies.

    "The head" is always the same answer to the second question: everything it needs is in the store, so the
    next head (Ray restarts the actor, or somebody types `spcluster up`) reads the record and goes on from
    there.
    """

    HELD = "HELD"
    """Submitted but not to be started. Its owner moves it out, by releasing or cancelling it through the
    head; it has no process, so nothing can die under it, and it stays here for as long as nobody does."""

    QUEUED = "QUEUED"
    """Waiting for a device; `reason` says for what. The head's tick moves it out (`Placed`), or a cancel, or
    the failure of a job it depends on. If the head dies, the queue stands still and the next head goes on
    with it."""

    STARTING = "STARTING"
    """Bytes are promised on a device and a worker is being created. The worker's first message moves it out.
    If the worker dies or never comes to life, the head finds no actor of that name and rescues the job
    (`Lost`). If the head dies between writing this state and creating the worker, the next head finds the
    same and does the same."""

    RUNNING = "RUNNING"
    """The worker's program runs. The worker's end moves it out. If the worker dies, the head rescues the job
    (`Lost`): a new epoch, back to the queue, on from the last checkpoint. If the head dies, the worker goes
    on, keeps its last news and its end, and hands them to the next head, which adopts it."""

    PAUSED = "PAUSED"
    """The worker stands still at a step boundary and keeps its budget. The head moves it out (`Resumed`); the
    worker may also end here. Deaths are handled as in RUNNING."""

    STOPPING = "STOPPING"
    """The worker was told to stop; `stop_asked` says why. The worker's end moves it out; when it does not
    come, the head kills the process group after the grace period and takes that for the end. If the head
    dies, the next one reads `stop_asked` and tells the worker again. The device bytes are not free before the
    process is gone."""

    SUCCEEDED = "SUCCEEDED"
    """The program returned without an error. Final."""

    FAILED = "FAILED"
    """The program, or every attempt at running it, went wrong; `reason` says how. Final."""

    CANCELLED = "CANCELLED"
    """Ended because somebody asked, or because a job it depends on did not succeed. Final."""

    @property
    def is_terminal(self) -> bool:
        """True in the three states that nothing leaves."""
        return self in _TERMINAL

    @property
    def holds_device(self) -> bool:
        """True while the job's budget counts against its device's capacity.

        Also true of a state that this version does not know: bytes that may be in use are not given away.
        """
        return self not in _TERMINAL and self not in _WAITING

    @property
    def is_waiting(self) -> bool:
        """True while the job has no worker and is yet to be started."""
        return self in _WAITING

    @classmethod
    def _missing_(cls, value: object) -> JobState | None:
        # [Note: states of a newer version] A record may carry a state that a newer version wrote. It must
        # load and show under its own name, so it becomes a member that is not listed. No row of the table
        # starts from it and no report is taken in it: an older head shows such a job, counts its bytes, and
        # leaves it alone.
        if not isinstance(value, str):
            return None
        newer = str.__new__(cls, value)
        newer._name_ = value
        newer._value_ = value
        return newer


_TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
_WAITING = frozenset({JobState.HELD, JobState.QUEUED})

#: States in which a living worker may report progress. Spelled out, so that an unknown state is not among
#: them.
REPORTING = frozenset({JobState.STARTING, JobState.RUNNING, JobState.PAUSED, JobState.STOPPING})


class EndReason(StrEnum):
    """Why a worker ended, or why a job did without ever having one; `ends_in` is the state that follows."""

    OK = "ok"
    """The program returned. Said by the worker."""

    ERROR = "error"
    """The program raised; the traceback is in the log. Said by the worker; not tried again, it would raise
    again."""

    OOM = "oom"
    """An operator needed more device bytes than the budget, with everything evictable evicted. Said by the
    worker; not tried again with the same budget."""

    NEVER_FITS = "never_fits"
    """The model cannot be streamed within any budget the job allows. Said by the worker, when the plan was
    wrong or the program had none."""

    TIME_LIMIT = "time_limit"
    """The job ran longer than its `time_limit`. Asked by the head, confirmed by the worker's end."""

    CANCELLED = "cancelled"
    """Somebody cancelled the job. Asked through the head, confirmed by the worker's end where there is
    one."""

    PREEMPTED = "preempted"
    """The bytes were needed by a job of higher priority. Asked by the head; the job saves, goes back to the
    queue and loses no attempt."""

    WORKER_LOST = "worker_lost"
    """The worker's process died without a word (killed, crashed, host memory). Found out by the head or by
    the actor around the process; tried again while attempts are left."""

    NODE_LOST = "node_lost"
    """The machine with the device went away. Found out by the head; tried again while attempts are left."""

    BAD_INPUT = "bad_input"
    """The program refused what the job gave it (no such file, an unreadable model). Said by the worker."""

    DEPENDENCY_FAILED = "dependency_failed"
    """A job named in `after` ended without success. Decided by the scheduler; this job never had a worker."""

    @property
    def is_retried(self) -> bool:
        """True when the job goes back to the queue, as long as it has attempts left."""
        return self in _LOSSES

    @property
    def ends_in(self) -> JobState:
        """The final state of a job that ends for this reason."""
        if self is EndReason.OK:
            return JobState.SUCCEEDED
        if self in (EndReason.CANCELLED, EndReason.DEPENDENCY_FAILED):
            return JobState.CANCELLED
        return JobState.FAILED


_LOSSES = frozenset({EndReason.WORKER_LOST, EndReason.NODE_LOST})


class WaitReason(StrEnum):
    """Why a waiting job does not start now, in Slurm's words. Set by every tick, read by people."""

    RESOURCES = "Resources"
    """No device has the bytes free. Goes when a job ends."""

    PRIORITY = "Priority"
    """Jobs ahead of it in the line come first, and it cannot start without delaying them. Goes when they start."""

    DEPENDENCY = "Dependency"
    """A job named in `after` has not ended yet. Goes when it does."""

    QUOTA = "Quota"
    """Its owner already holds all the bytes they may. Goes when one of their jobs ends, or an admin raises
    it."""

    BEGIN_TIME = "BeginTime"
    """It asked not to start before a point in time. Goes by itself."""

    WINDOW = "Window"
    """It may run only at certain hours. Goes by itself."""

    HOST_MEMORY = "HostMemory"
    """The host copy of its model does not fit into free RAM. Goes when a job ends."""

    LINK = "Link"
    """The link to the device is fully promised to other streaming jobs. Goes when one of them ends."""

    ARRAY_LIMIT = "ArrayLimit"
    """As many tasks of its array as may run at once do. Goes when one of them ends."""

    HELD = "Held"
    """Its owner holds it back. Goes when they release it."""

    FOREIGN_PROCESS = "ForeignProcess"
    """A process that is not ours uses the bytes. Goes when that process does."""

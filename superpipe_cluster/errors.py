"""Every error a person can meet: one tree, each with a message, a hint and an exit code.

Owns the classes, and how others' errors are quoted in them; printing them is the CLI's work, turning them into HTTP
answers the API's.
`ValueError`-like misuse inside the package is an `assert`; what a user can cause is one of these.
"""

from __future__ import annotations

from typing import ClassVar


class SpclusterError(Exception):
    """Base of all errors shown to people.

    Args:
        message: what is wrong and where, one sentence, the offending value in it.
        hint: what to do about it, usually the next command to type.
    """

    #: Process exit code of the CLI when this error ends a command.
    exit_code: ClassVar[int] = 1
    #: Stable name used on the wire; clients switch on it, never on the message.
    code: ClassVar[str] = "error"
    #: HTTP status the API answers with.
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive pickling (Ray, multiprocessing) by default.
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(kind: type[SpclusterError], state: dict[str, object]) -> SpclusterError:
    error = kind.__new__(kind)
    Exception.__init__(error, state.get("message"))
    error.__dict__.update(state)
    return error


# ---- what the user wrote --------------------------------------------------------------------------


class BadInput(SpclusterError):
    """A value the user gave (flag, argument, request field) cannot be used."""

    exit_code = 2
    code = "bad_input"
    http_status = 422


class JobFileError(BadInput):
    """A job file with one or more located mistakes; `problems` lists every one of them."""

    code = "bad_job_file"

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems


class FileMissing(BadInput):
    """A file or folder that the job names does not exist or cannot be read."""

    code = "file_missing"


class Unplannable(BadInput):
    """A program whose step asks for values, and a plan has none: its job says itself how much memory it takes."""

    code = "unplannable"


# ---- what the machine cannot do -------------------------------------------------------------------


class NeverFits(SpclusterError):
    """No device of this cluster, even empty, could ever run the job as asked."""

    exit_code = 4
    code = "never_fits"
    http_status = 422


class BudgetTooSmall(NeverFits):
    """The budget is below the smallest one the model can be streamed in; the message names the bytes needed."""

    code = "budget_too_small"

    def __init__(self, message: str, *, needed_bytes: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes


class HostMemoryTooSmall(NeverFits):
    """The host copy of the model is larger than the RAM of the machine."""

    code = "host_memory_too_small"


class DeviceOutOfMemory(SpclusterError):
    """An operator needed more device bytes than the budget holds, even with everything evictable evicted."""

    code = "device_out_of_memory"


class Unstreamable(SpclusterError):
    """Something the streaming runtime cannot do exactly, and therefore does not do."""

    exit_code = 2
    code = "unstreamable"
    http_status = 422


# ---- the cluster and the way to it -------------------------------------------------------------------


class NotRunning(SpclusterError):
    """There is no cluster to talk to."""

    exit_code = 5
    code = "not_running"
    http_status = 503


class AlreadyRunning(SpclusterError):
    """`up` while a cluster of this home directory already runs."""

    exit_code = 5
    code = "already_running"
    http_status = 409


class StartFailed(SpclusterError):
    """A part of the cluster (Redis, Ray, head) did not start."""

    exit_code = 5
    code = "start_failed"


class StoreUnavailable(SpclusterError):
    """Redis does not answer. Nothing was changed."""

    exit_code = 5
    code = "store_unavailable"
    http_status = 503


class Unauthorized(SpclusterError):
    """No token, or one that the cluster does not know."""

    exit_code = 6
    code = "unauthorized"
    http_status = 401


class Forbidden(SpclusterError):
    """A known user asked for something that is not theirs."""

    exit_code = 6
    code = "forbidden"
    http_status = 403


class NotFound(SpclusterError):
    """No such job, user, example or device."""

    exit_code = 3
    code = "not_found"
    http_status = 404


class Conflict(SpclusterError):
    """The request does not fit the present state (cancel of an ended job, a name already taken)."""

    exit_code = 3
    code = "conflict"
    http_status = 409


class StaleWrite(Conflict):
    """A write with an old epoch or an old view of the record was refused; the writer drops its effects."""

    code = "stale_write"


def first_line(error: BaseException) -> str:
    """What an error says, in one line: other libraries' errors, as a part of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

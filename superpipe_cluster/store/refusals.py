"""What every store refuses, in the same words: bad arguments, and writes that do not fit what is stored."""

from __future__ import annotations

import re

from superpipe_cluster.errors import BadInput, Conflict, NotFound, StaleWrite
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store.interface import FIRST_EVENT


def check_job_id(job_id: str) -> None:
    """Raise ValueError unless this is an id that `next_job_id` gives out."""
    if not re.fullmatch(r"[1-9][0-9]{0,14}", job_id):
        raise ValueError(f"{job_id!r} is not an id from next_job_id")


def check_token_hash(token_hash: str) -> None:
    """Raise ValueError unless this is a result of `hash_token`."""
    if not re.fullmatch(r"[0-9a-f]{64}", token_hash):
        raise ValueError("a token hash is 64 hexadecimal digits; is this the token itself?")


def check_seq(after: str) -> tuple[int, int]:
    """The two numbers of an event's `seq`.

    Raises:
        BadInput: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", after)
    if found is None:
        raise BadInput(f"{after!r} is not the number of an event", hint=f"start from {FIRST_EVENT}")
    return int(found[1]), int(found[2])


def check_byte_seconds(byte_seconds: float) -> None:
    """Raise ValueError unless this can be charged: finite, and not less than nothing."""
    if not 0 <= byte_seconds < float("inf"):
        raise ValueError(f"{byte_seconds} byte-seconds cannot be charged")


def no_such_job(job_id: str) -> NotFound:
    """The error for a job id that nothing is stored under."""
    return NotFound(f"there is no job {job_id}", hint="`spcluster queue -a` lists all jobs")


def job_exists(job_id: str) -> Conflict:
    """The error for a new job under an id in use."""
    return Conflict(f"there is a job {job_id} already")


def stale_write(before: JobRecord, state: str, epoch: str | int, revision: str | int) -> StaleWrite:
    """The error for a write computed from `before`, where the stored record has moved on to these."""
    return StaleWrite(
        f"job {before.id} is {state} in epoch {epoch}, revision {revision}; a write that took it for "
        f"{before.state} in epoch {before.epoch}, revision {before.revision}, was refused"
    )


def user_taken(name: str, what: str) -> Conflict:
    """The error for a new user whose name or token (`what` says which) is another's."""
    if what == "name taken":
        return Conflict(f"there is a user {name} already", hint="choose another name")
    return Conflict(f"the token meant for {name} is another user's", hint="make a new one")

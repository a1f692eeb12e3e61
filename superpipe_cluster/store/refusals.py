"""What every store refuses, in the same words: bad arguments, and writes that do not fit what is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from superpipe_cluster.errors import BadInput, Conflict, NotFound, StaleWrite
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store.interface import FIRST_EVENT


def check_new(records: Sequence[JobRecord]) -> str:
    """The user of these new jobs; raise ValueError unless it is one, and their ids are from `next_job_id`."""
    for record in records:
        if not re.fullmatch(r"[1-9][0-9]{0,14}", record.id):
            raise ValueError(f"{record.id!r} is not an id from next_job_id")
    users = {record.user for record in records}
    if len(users) != 1 or len({record.id for record in records}) != len(records):
        raise ValueError("jobs are submitted together by one user, each under an id of its own")
    return users.pop()


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


def setting_text(name: str, value: Any) -> str:
    """The value of a setting as it is stored; raise ValueError for what JSON cannot carry, or an empty name."""
    if not name:
        raise ValueError("a setting has a name")
    try:
        return json.dumps(value, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"the setting {name} cannot be stored: {error}") from None


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

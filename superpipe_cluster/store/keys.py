"""Every key that the cluster keeps in Redis: its name, type, owner and lifetime.

Owns the names; the scripts get them as KEYS and make up none of their own. `DOCUMENTED` is the whole list,
and the tests fail when a key exists that is not on it. One Redis database holds one cluster.

The owner of a key is the only code that writes it; "the head" because the head is the only process with a
store.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

#: How long a repeated submit with the same idempotency key finds the first one's job.
IDEMPOTENCY_TTL_S = 7 * 24 * 3600

#: The events of all jobs together are a news ticker, and cut to this length. A job's own events are never
#: cut.
ALL_EVENTS_LIMIT = 100_000


@dataclass(frozen=True, slots=True)
class KeyDoc:
    """What one kind of key is. `type` is what Redis's TYPE answers; `ttl_s` None means that it stays."""

    name: str
    type: str
    owner: str
    ttl_s: int | None
    holds: str

    def matches(self, key: str) -> bool:
        """True when `key` is of this kind."""
        pattern = re.sub(r"<\w+>", ".+", re.escape(self.name))
        return re.fullmatch(pattern, key) is not None


DOCUMENTED: tuple[KeyDoc, ...] = (
    KeyDoc(
        "spcluster:next-job-id", "string", "next_job_id", None,
        "the last job id given out; ids are never reused",
    ),
    KeyDoc(
        "spcluster:job:<id>", "hash", "submit, transition, amend", None,
        "record: the JobRecord as JSON; state, epoch, revision: copies for the scripts to compare",
    ),
    KeyDoc("spcluster:jobs", "zset", "submit", None, "ids of all jobs, scored by themselves: oldest first"),
    KeyDoc("spcluster:jobs:active", "zset", "submit, transition", None, "ids of jobs that have not ended"),
    KeyDoc("spcluster:jobs:of:<user>", "zset", "submit", None, "ids of all jobs of one user"),
    KeyDoc(
        "spcluster:submit:<digest>", "string", "submit", IDEMPOTENCY_TTL_S,
        "the ids of the jobs that were submitted with this idempotency key by this user",
    ),
    KeyDoc(
        "spcluster:events:<id>", "stream", "submit, transition", None,
        "the history of one job: kind, at (unix seconds), data (JSON)",
    ),
    KeyDoc(
        "spcluster:events", "stream", "submit, transition", None,
        "the events of all jobs under the same sequence numbers: job, kind, at, data; the oldest are dropped",
    ),
    KeyDoc(
        "spcluster:settings", "hash", "put_setting", None,
        "quota:<user>, window:<name> -> JSON, as an admin set it",
    ),
    KeyDoc("spcluster:users", "hash", "add_user", None, "name -> JSON {name, role, created_at}"),
    KeyDoc("spcluster:tokens", "hash", "add_user", None, "SHA-256 of a bearer token -> name; never a token"),
)  # fmt: skip

NEXT_JOB_ID = "spcluster:next-job-id"
JOBS = "spcluster:jobs"
ACTIVE_JOBS = "spcluster:jobs:active"
EVENTS = "spcluster:events"
SETTINGS = "spcluster:settings"
USERS = "spcluster:users"
TOKENS = "spcluster:tokens"


def job(job_id: str) -> str:
    """The record of one job."""
    return f"spcluster:job:{job_id}"


def jobs_of(user: str) -> str:
    """The jobs of one user."""
    return f"spcluster:jobs:of:{user}"


def events_of(job_id: str) -> str:
    """The history of one job."""
    return f"spcluster:events:{job_id}"


def submission(user: str, idempotency_key: str) -> str:
    """What a user submitted under an idempotency key.

    A digest, because the key is the client's: of any length, with any characters.
    """
    digest = hashlib.sha256(
        f"{len(user)}:{user}:{idempotency_key}".encode("utf-8", "surrogatepass")
    ).hexdigest()
    return f"spcluster:submit:{digest}"

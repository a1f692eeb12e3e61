"""What a store does: the `JobStore` protocol and the small types it speaks in.

Owns no storage. The conformance suite in `tests/store` runs every sentence of this file against every store.

[Note: all or nothing] Each write is one atomic step inside the store: record, indexes and event change
together or not at all. `StoreUnavailable` means that the store did not answer. When it was cut off in the
middle of answering, the write may have happened (completely); whoever goes on reads first, or repeats: a
repeated transition or report is refused as stale, a repeated submit finds its first job by the idempotency
key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from superpipe_cluster.lifecycle.events import Event
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.step import Happened

#: The `after` of `events` that lets everything through.
FIRST_EVENT = "0-0"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a token. `role` is admin or user; tokens themselves are nowhere in the store."""

    name: str
    role: str
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event as stored. `seq` grows over all jobs and is what `events(after=...)` takes.

    `data` holds the event's own fields, and `to_state`, `to_attempt`, `to_epoch`: where it left the job.
    """

    seq: str
    at: float
    job_id: str
    kind: str
    data: Mapping[str, Any]

    @property
    def happened(self) -> Happened:
        """The event as `lifecycle.step.replay` takes it."""
        return Happened(self.at, self.kind, self.data)


class JobStore(Protocol):
    """Jobs, events, settings and users. Safe to use from several threads. See [Note: all or nothing].

    Every method may raise `StoreUnavailable`, within a few seconds.
    """

    @property
    def life(self) -> str:
        """Names the life of the server that was last connected to; empty before the first.

        Another one means that the server was started again, and may have lost its last second of writes.
        """
        ...

    def now(self) -> float:
        """Unix seconds by the store's clock: the one that all deadlines and events are in."""
        ...

    def next_job_id(self) -> str:
        """A job id that was never given out before: "1", "2", ... ."""
        ...

    def submit(self, record: JobRecord, *, idempotency_key: str | None = None) -> JobRecord:
        """`submit_all` of one job."""
        ...

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        """Store new jobs of one user, all or none; as submitted at `submitted_at` or, where that is 0, now.

        The same key from the same user again gives the jobs it was first used for, as they are by now, and stores
        nothing.

        Raises:
            Conflict: a job of one of the ids exists.
            ValueError: a record is not that of a new job, its id is not from `next_job_id`, there is none at all, or
                they are of several users.
        """
        ...

    def get(self, job_id: str) -> JobRecord:
        """The record of a job.

        Raises:
            NotFound: no such job.
        """
        ...

    def list_jobs(self, active_only: bool = False, user: str | None = None) -> list[JobRecord]:
        """The jobs, or only those that have not ended, or only one user's, in the order of their ids."""
        ...

    def transition(self, before: JobRecord, after: JobRecord, event: Event) -> JobRecord:
        """Write `after`, which `step(before, event, now)` gave, and append the event, at `after.changed_at`.

        Returns `after` with its revision.

        Raises:
            StaleWrite: the stored record is not `before` any more (another state, epoch or revision). Nothing
                was written; drop the effects, or read and compute again.
            NotFound: no such job.
        """
        ...

    def report(self, job_id: str, epoch: int, progress: Progress) -> JobRecord:
        """Write a worker's news into the record. No transition, no event.

        Raises:
            StaleWrite: `epoch` is not the job's epoch, or it has no worker in its state. Nothing was written;
                that worker must stop.
            NotFound: no such job.
        """
        ...

    def set_wait(self, job_id: str, epoch: int, reason: str | None, message: str | None = None) -> JobRecord:
        """Write why a waiting job waits. No transition, no event; nothing at all if it says so already.

        Raises:
            StaleWrite: the job does not wait any more, or has another epoch.
            NotFound: no such job.
        """
        ...

    def events(
        self, job_id: str | None = None, after: str = FIRST_EVENT, limit: int = 500
    ) -> list[StoredEvent]:
        """The history of a job, whole, or the news of all jobs, the newest hundred thousand; oldest first.

        At most `limit`, all later than the `seq` given as `after`. An unknown job has no events.

        Raises:
            BadInput: `after` is no `seq`.
        """
        ...

    def latest_events(self, count: int) -> list[StoredEvent]:
        """The last `count` events of all jobs, oldest first."""
        ...

    def settings(self) -> dict[str, Any]:
        """What admins have set, by name (`quota:ann`, `window:night`): plain JSON values."""
        ...

    def put_setting(self, name: str, value: Any) -> None:
        """Set one of them, or remove it with None; in one write.

        Raises:
            ValueError: `value` is nothing that JSON can carry, or the name is empty.
        """
        ...

    def add_user(self, name: str, role: str, token_hash: str) -> User:
        """Create a user whose token has this hash (see `hash_token`).

        Raises:
            Conflict: the name is taken, or the token somebody's.
            ValueError: `token_hash` is not a hash: a token must not get into the store.
        """
        ...

    def user_by_token(self, token_hash: str) -> User | None:
        """The user whose token has this hash; None when nobody's does."""
        ...

    def users(self) -> list[User]:
        """All users, by name."""
        ...

    def ping(self) -> None:
        """Return if the store answers and can be trusted with jobs; raise `StoreUnavailable` if not."""
        ...

    def close(self) -> None:
        """Let go of the connections. The store is not used afterwards."""
        ...


def hash_token(token: str) -> str:
    """What the store keeps of a bearer token. Tokens are random, so a plain digest cannot be guessed back."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()

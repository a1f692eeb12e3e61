"""What the HTTP API asks of the head: one Protocol, all of it synchronous.

Owns the shape of the questions and of their answers. Who may ask is decided in `access.py` before any of
these is called; HTTP, JSON and tokens in headers belong to `app.py`; the answers come from the head.

[Note: calls come from threads] The API calls these methods from a pool of threads, several at once. An
implementation guards its own state, answers in well under a second (only `submit` may take longer: it plans),
and never waits for news: waiting for more log or events is done by the API, which asks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from superpipe_cluster.api.views import (
    ChangeRequest,
    ClusterView,
    DevicesView,
    QuotaRequest,
    QuotaView,
    TopView,
    UsageView,
    WindowRequest,
    WindowView,
)
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.store.interface import StoredEvent, User

#: What owners may do to their jobs, beside cancelling and changing them.
Verb = Literal["hold", "release", "pause", "resume", "requeue"]


@dataclass(frozen=True, slots=True)
class Code:
    """A user's own worker program, as it was when the job was submitted.

    `name` is a bare file name (no folder in it, checked by the API); `text` its source.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A file that travels with a script, as it was when the job was submitted.

    `path` is relative and leads nowhere else (checked by the API); `executable` says that it can be run by itself.
    """

    path: str
    data: bytes
    executable: bool = False


#: What a submitter sends of their own: a worker program, or the files of a script.
OwnCode = Code | tuple[CodeFile, ...]


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a job's log file.

    `data` is what the file holds from the asked offset on, at most `limit` bytes, empty at the end of the
    file and before the job has written anything; `size_bytes` is the size of the whole file when it was read.
    """

    data: bytes
    size_bytes: int


class Service(Protocol):
    """The head, as the API sees it.

    `user` is who asks, already authenticated; `job_id` is the id of a job that `user` may touch. Every method
    may raise `StoreUnavailable`; further errors are listed per method. All other errors become an answer of
    status 500.
    """

    def trouble(self) -> str | None:
        """What keeps the head from working (one sentence), or None when all is well. Must not raise."""
        ...

    def authenticate(self, token: str) -> User | None:
        """The user whose bearer token this is; None when nobody's (the store holds hashes of tokens only)."""
        ...

    # ---- jobs ------------------------------------------------------------------------------------------

    def submit(
        self, user: User, spec: JobSpec, code: OwnCode | None, idempotency_key: str | None
    ) -> JobRecord:
        """Plan the job, refuse what can never run, and put it, or all tasks of its array, in the queue in one write.

        Answers the first task of an array. The same user and `idempotency_key` again give the first record and
        change nothing.

        Raises:
            BadInput: the spec names something that cannot be used (an unknown worker, window or job, a job that
                has ended in another way than it is waited for).
            FileMissing: a file that the job names is not on the head's machine.
            NeverFits: no device of this cluster could ever hold the job (and its subclasses).
        """
        ...

    def jobs(self, user: User, *, ended: bool, of_user: str | None) -> Sequence[JobRecord]:
        """The jobs of everybody, oldest first: those still to do and, with `ended`, those that are over.

        `of_user` restricts the list to one person's. Listings are for all eyes, see `access.py`.
        """
        ...

    def expected_start_at(self, job_id: str) -> float | None:
        """When the job is likely to start, unix seconds, as of the latest decision; None when nobody can tell."""
        ...

    def job(self, user: User, ref: str) -> JobRecord:
        """The job with this id; else the newest of `user`'s own with this name; else the newest of anybody's.

        `12_3` is the task number 3 of the array 12.

        Raises:
            NotFound: no such job.
        """
        ...

    def tasks(self, user: User, record: JobRecord) -> Sequence[str]:
        """The ids of all tasks of the array that the job is a task of, in order; none if it is in none."""
        ...

    def events(self, user: User, job_id: str) -> Sequence[StoredEvent]:
        """What happened to the job, oldest first."""
        ...

    def news(self, user: User, *, after: str, limit: int) -> Sequence[StoredEvent]:
        """What happened to anybody's job later than `after`, oldest first.

        Raises:
            BadInput: `after` is not the number of an event.
        """
        ...

    def latest(self, user: User, *, count: int) -> Sequence[StoredEvent]:
        """The last `count` things that happened to anybody's job, oldest first."""
        ...

    def logs(self, user: User, job_id: str, *, offset: int, limit: int) -> LogChunk:
        """The bytes of the job's log from `offset` on, at most `limit`.

        A job whose record is in a terminal state writes no more log.
        """
        ...

    def door(self, job_id: str) -> Path:
        """The unix socket at which the job's program answers requests, if it serves any; it need not be there."""
        ...

    def cancel(self, user: User, job_id: str, *, force: bool) -> JobRecord:
        """Ask the job to stop (a waiting one is over at once); with `force`, kill it without a grace period.

        Asking again for a job that is already stopping is fine.

        Raises:
            Conflict: the job has ended.
        """
        ...

    def act(self, user: User, job_id: str, verb: Verb) -> JobRecord:
        """Hold, release, pause, resume or requeue the job. Fine, and nothing, if that is where it is already.

        Raises:
            Conflict: it makes no sense where the job is; the hint says what would.
        """
        ...

    def change(self, user: User, job_id: str, wishes: ChangeRequest) -> JobRecord:
        """Give the job new values of what `wishes` holds; in force at once, also while it runs.

        Raises:
            BadInput: nothing to change, an unknown window.
            NeverFits: with the new memory it could never run (and its subclasses).
            Conflict: the job has ended.
        """
        ...

    # ---- the cluster -----------------------------------------------------------------------------------

    def devices(self, user: User) -> DevicesView:
        """The devices, who holds how much of each, and the memory of the host."""
        ...

    def top(self, user: User) -> TopView:
        """The devices right now: bytes, links, and how fast the jobs on them are."""
        ...

    def usage(self, user: User, *, of_user: str | None, since: float | None) -> UsageView:
        """What jobs have used: everybody's or one user's, all or those that had not ended by `since` (unix seconds)."""
        ...

    def quotas(self, user: User) -> Sequence[QuotaView]:
        """Everybody who has a quota, by name."""
        ...

    def put_quota(self, user: User, name: str, quota: QuotaRequest | None) -> None:
        """Set the quota of the user `name`, or take it away. Asked by admins only.

        Raises:
            NotFound: no such user, or, to take away, no such quota.
            BadInput: the limit is below the guarantee, or all guarantees together are more than the devices have.
        """
        ...

    def windows(self, user: User) -> Sequence[WindowView]:
        """All windows, by name."""
        ...

    def put_window(self, user: User, name: str, window: WindowRequest | None) -> None:
        """Set the window `name`, or take it away. Asked by admins only.

        Raises:
            NotFound: to take away, no such window.
            BadInput: days, times or a time zone that do not exist.
            Conflict: to take away, jobs that have not ended are to run in it.
        """
        ...

    def cluster(self, user: User) -> ClusterView:
        """The health of the parts, for `spcluster doctor`. Asked by admins only."""
        ...

    def add_user(self, user: User, name: str, role: str) -> str:
        """Create the user `name` and return their bearer token: the only time it is ever shown.

        Raises:
            Conflict: the name is taken.
        """
        ...

    def users(self, user: User) -> Sequence[User]:
        """Everybody who has a token, by name. Asked by admins only."""
        ...

"""What the HTTP API asks of the head: one Protocol, all of it synchronous.

Owns the shape of the questions and of their answers. Who may ask is decided in `access.py` before any of
these is called; HTTP, JSON and tokens in headers belong to `app.py`; the answers come from the head.

[Note: calls come from threads] The API calls these methods from a pool of threads, several at once. An
implementation guards its own state, answers in well under a second (only `submit` may take longer: it plans),
and never waits for news: waiting for more log is done by the API, which asks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from superpipe_cluster.api.views import ClusterView, DevicesView
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.store.interface import StoredEvent, User


@dataclass(frozen=True, slots=True)
class Code:
    """A user's own worker program, as it was when the job was submitted.

    `name` is a bare file name (no folder in it, checked by the API); `text` its source.
    """

    name: str
    text: str


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

    def submit(self, user: User, spec: JobSpec, code: Code | None, idempotency_key: str | None) -> JobRecord:
        """Plan the job, refuse what can never run, and put it in the queue in one write.

        The same user and `idempotency_key` again give the first record and change nothing.

        Raises:
            BadInput: the spec names something that cannot be used (an unknown worker, an `after` nobody
                knows).
            FileMissing: a file that the job names is not on the head's machine.
            NeverFits: no device of this cluster could ever hold the job (and its subclasses).
        """
        ...

    def jobs(self, user: User, *, ended: bool, of_user: str | None) -> Sequence[JobRecord]:
        """The jobs of everybody, oldest first: those still to do and, with `ended`, those that are over.

        `of_user` restricts the list to one person's. Listings are for all eyes, see `access.py`.
        """
        ...

    def job(self, user: User, ref: str) -> JobRecord:
        """The job with this id; else the newest of `user`'s own with this name; else the newest of anybody's.

        Raises:
            NotFound: no such job.
        """
        ...

    def events(self, user: User, job_id: str) -> Sequence[StoredEvent]:
        """What happened to the job, oldest first."""
        ...

    def logs(self, user: User, job_id: str, *, offset: int, limit: int) -> LogChunk:
        """The bytes of the job's log from `offset` on, at most `limit`.

        A job whose record is in a terminal state writes no more log.
        """
        ...

    def cancel(self, user: User, job_id: str, *, force: bool) -> JobRecord:
        """Ask the job to stop (a waiting one is over at once); with `force`, kill it without a grace period.

        Asking again for a job that is already stopping is fine.

        Raises:
            Conflict: the job has ended.
        """
        ...

    def devices(self, user: User) -> DevicesView:
        """The devices, who holds how much of each, and the memory of the host."""
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

"""The store in this process's memory: a real one, for tests and simulations. Nothing outlives the object.

Owns the same promises as the Redis store, under one lock. Records and events are kept as the same JSON, so
nothing that a caller holds is shared with the store, and what cannot be stored in Redis cannot be stored here
either.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from superpipe_cluster.lifecycle.events import Event
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.step import begin, stored_data
from superpipe_cluster.store import keys, writes
from superpipe_cluster.store.interface import FIRST_EVENT, StoredEvent, User
from superpipe_cluster.store.refusals import (
    check_new,
    check_seq,
    check_token_hash,
    job_exists,
    no_such_job,
    setting_text,
    stale_write,
    user_taken,
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An event as kept. `number` is what its `seq` says, as two numbers that compare."""

    number: tuple[int, int]
    at: float
    job_id: str
    kind: str
    data: str


@dataclass(slots=True)
class _Job:
    """A job as kept: its record as JSON, and its history."""

    text: str
    history: list[_Entry] = field(default_factory=list[_Entry])

    @property
    def record(self) -> JobRecord:
        return JobRecord.model_validate_json(self.text)


class MemoryStore:
    """A `JobStore` in memory.

    Args:
        clock: unix seconds; the store's clock.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # Reentrant: the read-and-write loops of `writes` run inside it, so that here nobody is ever faster.
        self._lock = threading.RLock()
        self._last_id = 0
        self._jobs: dict[str, _Job] = {}
        #: (user, idempotency key) -> (job ids, when it is forgotten)
        self._submissions: dict[tuple[str, str], tuple[tuple[str, ...], float]] = {}
        self._news: deque[_Entry] = deque(maxlen=keys.ALL_EVENTS_LIMIT)
        self._last_number = (0, 0)
        self._settings: dict[str, str] = {}
        self._users: dict[str, User] = {}
        self._tokens: dict[str, str] = {}

    @property
    def life(self) -> str:
        """See `JobStore.life`. There is only this one."""
        return "memory"

    # ---- jobs ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """See `JobStore.now`."""
        return self._clock()

    def next_job_id(self) -> str:
        """See `JobStore.next_job_id`."""
        with self._lock:
            self._last_id += 1
            return str(self._last_id)

    def submit(self, record: JobRecord, *, idempotency_key: str | None = None) -> JobRecord:
        """See `JobStore.submit`."""
        return self.submit_all([record], idempotency_key=idempotency_key)[0]

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        """See `JobStore.submit_all`."""
        user = check_new(records)
        with self._lock:
            begun = [begin(record, record.submitted_at or self.now()) for record in records]
            if idempotency_key is not None:
                known = self._submissions.get((user, idempotency_key))
                if known is not None and self.now() < known[1]:
                    return [self.get(job_id) for job_id in known[0]]
            for record in records:
                if record.id in self._jobs:
                    raise job_exists(record.id)
            firsts = [first.model_copy(update={"revision": 1}) for first, _ in begun]
            for first, (_, event) in zip(firsts, begun, strict=True):
                self._jobs[first.id] = _Job(first.model_dump_json())
                self._append(event, first)
            if idempotency_key is not None:
                forgotten_at = self.now() + keys.IDEMPOTENCY_TTL_S
                ids = tuple(first.id for first in firsts)
                self._submissions[user, idempotency_key] = (ids, forgotten_at)
            return firsts

    def get(self, job_id: str) -> JobRecord:
        """See `JobStore.get`."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                raise no_such_job(job_id)
            return job.record

    def list_jobs(self, active_only: bool = False, user: str | None = None) -> list[JobRecord]:
        """See `JobStore.list_jobs`."""
        with self._lock:
            found = [self._jobs[job_id].record for job_id in sorted(self._jobs, key=int)]
        return [
            record
            for record in found
            if (user is None or record.user == user) and not (active_only and record.state.is_terminal)
        ]

    def transition(self, before: JobRecord, after: JobRecord, event: Event) -> JobRecord:
        """See `JobStore.transition`."""
        with self._lock:
            after = self._replace(before, after)
            self._append(event, after)
            return after

    def amend(self, before: JobRecord, after: JobRecord) -> JobRecord:
        """See `writes.Amendable`."""
        assert (before.state, before.epoch) == (after.state, after.epoch), "states change by transition only"
        with self._lock:
            return self._replace(before, after)

    def report(self, job_id: str, epoch: int, progress: Progress) -> JobRecord:
        """See `JobStore.report`."""
        with self._lock:
            return writes.report(self, job_id, epoch, progress)

    def set_wait(self, job_id: str, epoch: int, reason: str | None, message: str | None = None) -> JobRecord:
        """See `JobStore.set_wait`."""
        with self._lock:
            return writes.set_wait(self, job_id, epoch, reason, message)

    def events(
        self, job_id: str | None = None, after: str = FIRST_EVENT, limit: int = 500
    ) -> list[StoredEvent]:
        """See `JobStore.events`."""
        first = check_seq(after)
        with self._lock:
            if job_id is None:
                entries = list(self._news)
            else:
                entries = list(self._jobs[job_id].history) if job_id in self._jobs else []
        return [_stored(entry) for entry in entries if entry.number > first][: max(limit, 0)]

    def latest_events(self, count: int) -> list[StoredEvent]:
        """See `JobStore.latest_events`."""
        with self._lock:
            entries = list(self._news)
        return [_stored(entry) for entry in entries[-count:]] if count > 0 else []

    # ---- settings -----------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """See `JobStore.settings`."""
        with self._lock:
            return {name: json.loads(text) for name, text in self._settings.items()}

    def put_setting(self, name: str, value: Any) -> None:
        """See `JobStore.put_setting`."""
        text = setting_text(name, value)
        with self._lock:
            if value is None:
                self._settings.pop(name, None)
            else:
                self._settings[name] = text

    # ---- users ---------------------------------------------------------------------------------------------

    def add_user(self, name: str, role: str, token_hash: str) -> User:
        """See `JobStore.add_user`."""
        check_token_hash(token_hash)
        with self._lock:
            if name in self._users:
                raise user_taken(name, "name taken")
            if token_hash in self._tokens:
                raise user_taken(name, "token taken")
            self._tokens[token_hash] = name
            self._users[name] = User(name, role, self.now())
            return self._users[name]

    def user_by_token(self, token_hash: str) -> User | None:
        """See `JobStore.user_by_token`."""
        with self._lock:
            name = self._tokens.get(token_hash)
            return None if name is None else self._users[name]

    def users(self) -> list[User]:
        """See `JobStore.users`."""
        with self._lock:
            return [self._users[name] for name in sorted(self._users)]

    # ---- the connection ------------------------------------------------------------------------------------

    def ping(self) -> None:
        """See `JobStore.ping`. Memory always answers."""

    def close(self) -> None:
        """See `JobStore.close`. There is nothing to let go of."""

    def _replace(self, before: JobRecord, after: JobRecord) -> JobRecord:
        stored = self.get(before.id)
        if (stored.state, stored.epoch, stored.revision) != (before.state, before.epoch, before.revision):
            raise stale_write(before, stored.state, stored.epoch, stored.revision)
        after = after.model_copy(update={"revision": before.revision + 1})
        self._jobs[before.id].text = after.model_dump_json()
        return after

    def _append(self, event: Event, after: JobRecord) -> None:
        number = max((int(self.now() * 1000), 0), (self._last_number[0], self._last_number[1] + 1))
        data = json.dumps(stored_data(event, after))
        entry = _Entry(number, after.changed_at, after.id, event.kind, data)
        self._last_number = number
        self._news.append(entry)
        self._jobs[after.id].history.append(entry)


def _stored(entry: _Entry) -> StoredEvent:
    seq = "{}-{}".format(*entry.number)
    return StoredEvent(seq, entry.at, entry.job_id, entry.kind, json.loads(entry.data))

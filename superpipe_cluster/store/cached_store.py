"""A store that remembers: reads answer from this process's memory, writes go through to the store below.

Owns what is remembered, and when that is not to be trusted. For the one process that writes: the writes of others would
only be noticed when they get in its way. Events are not kept, and neither is that a token is nobody's, for `up` adds
users beside a running head.

[Note: doubts] After a write that failed, memory may be wrong: the store below refused it because it knows better, or
the answer got lost on the way and the write has happened. Such a record is doubted, and read again before anything is
answered from it. A server in another life (`JobStore.life`) may have lost its last second of writes: then everything is
read again.

[Note: two questions] A write whose answer got lost may still lie in a socket of the server, unread. A server takes what
lies in its sockets before it takes a question that comes after its own answer. So what is doubted is read by a second
question.
"""

from __future__ import annotations

import copy
import threading
from bisect import bisect_left
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from superpipe_cluster.errors import NotFound
from superpipe_cluster.lifecycle.events import Event
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.store import writes
from superpipe_cluster.store.interface import FIRST_EVENT, JobStore, StoredEvent, User


class StoreBelow(JobStore, writes.Amendable, Protocol):
    """What can be remembered: a store that also compares and sets."""


class _Memory:
    """What is known of one life of the server. Guarded by the store's mutex."""

    def __init__(self, life: str) -> None:
        self.life = life
        self.records: dict[str, JobRecord] = {}
        #: What is doubted is not in `records`. Each doubt is an object of its own: whoever reads the record again can
        #: tell whether it was doubted once more in the meantime.
        self.doubts: dict[str, object] = {}
        #: Ids in the order of their numbers, of all jobs and of those that have not ended.
        self.all: list[str] = []
        self.active: list[str] = []
        self.by_token: dict[str, User] = {}
        self.settings: dict[str, Any] | None = None

    def put(self, record: JobRecord) -> None:
        """Know a record."""
        self.records[record.id] = record
        _take_in(self.all, record.id)
        if record.state.is_terminal:
            _take_out(self.active, record.id)
        else:
            _take_in(self.active, record.id)

    def doubt(self, job_id: str) -> None:
        """Know no more what the record of a job is."""
        self.records.pop(job_id, None)
        self.doubts[job_id] = object()

    def forget(self, job_id: str) -> None:
        """Know that there is no such job."""
        self.doubts.pop(job_id, None)
        _take_out(self.all, job_id)
        _take_out(self.active, job_id)


class CachedStore:
    """A `JobStore` over another one.

    Args:
        store: where everything really is.
    """

    def __init__(self, store: StoreBelow) -> None:
        self._store = store
        self._loading = threading.Lock()
        #: Guards all that follows; never held while the store below is asked.
        self._mutex = threading.Lock()
        self._memory: _Memory | None = None
        #: While a new memory is being made: the jobs that were written to, which it may have missed.
        self._touched: set[str] | None = None

    @property
    def life(self) -> str:
        """See `JobStore.life`."""
        return self._store.life

    # ---- jobs ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """See `JobStore.now`. By this question a restart of the server is noticed, too."""
        return self._store.now()

    def next_job_id(self) -> str:
        """See `JobStore.next_job_id`."""
        return self._store.next_job_id()

    def submit(self, record: JobRecord, *, idempotency_key: str | None = None) -> JobRecord:
        """See `JobStore.submit`."""
        return self.submit_all([record], idempotency_key=idempotency_key)[0]

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        """See `JobStore.submit_all`."""
        with self._writing(*(record.id for record in records)):
            stored = self._store.submit_all(records, idempotency_key=idempotency_key)
        # As they will be read: nothing of them is shared with whoever made them, and tuples have become lists.
        stored = [JobRecord.model_validate_json(record.model_dump_json()) for record in stored]
        for record in stored:
            self._keep(record)
        return stored

    def get(self, job_id: str) -> JobRecord:
        """See `JobStore.get`."""
        memory = self._load()
        with self._mutex:
            record = memory.records.get(job_id)
        return self._read(memory, job_id) if record is None else record

    def list_jobs(self, active_only: bool = False, user: str | None = None) -> list[JobRecord]:
        """See `JobStore.list_jobs`."""
        memory = self._load()
        with self._mutex:
            ids = memory.active if active_only else memory.all
            found = [memory.records[job_id] for job_id in ids if job_id in memory.records]
            doubted = tuple(memory.doubts)
        for job_id in doubted:
            with suppress(NotFound):
                record = self._read(memory, job_id)
                if not (active_only and record.state.is_terminal):
                    found.append(record)
        if doubted:
            found.sort(key=lambda record: int(record.id))
        return found if user is None else [record for record in found if record.user == user]

    def transition(self, before: JobRecord, after: JobRecord, event: Event) -> JobRecord:
        """See `JobStore.transition`."""
        with self._writing(before.id):
            stored = self._store.transition(before, after, event)
        self._keep(stored)
        return stored

    def amend(self, before: JobRecord, after: JobRecord) -> JobRecord:
        """See `writes.Amendable`."""
        with self._writing(before.id):
            stored = self._store.amend(before, after)
        self._keep(stored)
        return stored

    def report(self, job_id: str, epoch: int, progress: Progress) -> JobRecord:
        """See `JobStore.report`."""
        return writes.report(self, job_id, epoch, progress)

    def set_wait(self, job_id: str, epoch: int, reason: str | None, message: str | None = None) -> JobRecord:
        """See `JobStore.set_wait`."""
        return writes.set_wait(self, job_id, epoch, reason, message)

    def events(
        self, job_id: str | None = None, after: str = FIRST_EVENT, limit: int = 500
    ) -> list[StoredEvent]:
        """See `JobStore.events`."""
        return self._store.events(job_id, after, limit)

    def latest_events(self, count: int) -> list[StoredEvent]:
        """See `JobStore.latest_events`."""
        return self._store.latest_events(count)

    # ---- settings and users --------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """See `JobStore.settings`."""
        memory = self._load()
        known = memory.settings
        if known is None:
            with self._loading:  # beside no `put_setting`
                known = memory.settings = self._store.settings()
        return copy.deepcopy(known)

    def put_setting(self, name: str, value: Any) -> None:
        """See `JobStore.put_setting`."""
        with self._loading:
            try:
                self._store.put_setting(name, value)
            finally:
                if self._memory is not None:
                    self._memory.settings = None

    def add_user(self, name: str, role: str, token_hash: str) -> User:
        """See `JobStore.add_user`."""
        return self._store.add_user(name, role, token_hash)

    def user_by_token(self, token_hash: str) -> User | None:
        """See `JobStore.user_by_token`."""
        memory = self._load()
        known = memory.by_token.get(token_hash)
        if known is None:
            known = self._store.user_by_token(token_hash)
            if known is not None:
                memory.by_token[token_hash] = known
        return known

    def users(self) -> list[User]:
        """See `JobStore.users`."""
        return self._store.users()

    # ---- the connection ------------------------------------------------------------------------------------

    def ping(self) -> None:
        """See `JobStore.ping`."""
        self._store.ping()

    def close(self) -> None:
        """See `JobStore.close`."""
        self._store.close()

    # ---- memory --------------------------------------------------------------------------------------------

    def _load(self) -> _Memory:
        """All jobs of this life of the server. A new memory takes the place of the old one when it is complete."""
        memory = self._memory
        if memory is not None and memory.life == self._store.life:
            return memory
        with self._loading:
            memory = self._memory
            if memory is not None and memory.life == self._store.life:
                return memory
            with self._mutex:
                self._touched = touched = set[str]()
            try:
                self._store.now()  # connects: from here on `life` is the one that is read
                memory = _Memory(self._store.life)
                for record in self._store.list_jobs():
                    memory.put(record)
                with self._mutex:
                    for job_id in touched:
                        memory.doubt(job_id)
                    self._memory = memory
            finally:
                with self._mutex:
                    self._touched = None
        return memory

    def _read(self, memory: _Memory, job_id: str) -> JobRecord:
        """The record from the store below; remembered, unless it was doubted (again) in the meantime."""
        with self._mutex:
            doubt = memory.doubts.get(job_id)
        if doubt is not None:
            self._store.now()  # see [Note: two questions]
        try:
            record = self._store.get(job_id)
        except NotFound:
            with self._mutex:
                if doubt is not None and memory.doubts.get(job_id) is doubt:
                    memory.forget(job_id)
            raise
        with self._mutex:
            if memory.doubts.get(job_id) is doubt:
                memory.doubts.pop(job_id, None)
                known = memory.records.get(job_id)
                if known is None or known.revision < record.revision:
                    memory.put(record)
        return record

    @contextmanager
    def _writing(self, *job_ids: str) -> Generator[None]:
        """Doubt the records if the write inside fails, however it does."""
        try:
            yield
        except BaseException:
            with self._mutex:
                for job_id in job_ids:
                    self._doubt(job_id)
            raise

    def _keep(self, record: JobRecord) -> None:
        """Remember what was just written."""
        with self._mutex:
            memory = self._memory
            known = memory.records.get(record.id) if memory is not None else None
            if (
                memory is None
                or record.id in memory.doubts
                or (known is not None and known.revision >= record.revision)
            ):
                # Nothing is known yet, or somebody's write failed beside this one, or was faster, or the number of a
                # lost job was given out again. The store below knows.
                self._doubt(record.id)
                return
            memory.put(record)
            if self._touched is not None:
                self._touched.add(record.id)

    def _doubt(self, job_id: str) -> None:
        if self._memory is not None:
            self._memory.doubt(job_id)
        if self._touched is not None:
            self._touched.add(job_id)


def _take_in(ids: list[str], job_id: str) -> None:
    at = bisect_left(ids, int(job_id), key=int)
    if at == len(ids) or ids[at] != job_id:
        ids.insert(at, job_id)


def _take_out(ids: list[str], job_id: str) -> None:
    if not job_id.isdecimal():  # a job that never was may be doubted by any name
        return
    at = bisect_left(ids, int(job_id), key=int)
    if at < len(ids) and ids[at] == job_id:
        del ids[at]

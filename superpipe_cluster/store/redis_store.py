"""The store in Redis.

Owns the way between records and what the scripts in `lua/` write. Every write is one script; reads are plain
commands. What Redis refuses or fails to answer becomes an error in `faults.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.retry import Retry

from superpipe_cluster.errors import BadInput
from superpipe_cluster.lifecycle.events import Event
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.step import begin, stored_data
from superpipe_cluster.store import keys, writes
from superpipe_cluster.store.faults import Faults, check_server
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
from superpipe_cluster.store.scripts import Answer, EventFields, RecordFields, Scripts

#: The longest that one answer of Redis may take. All our commands take milliseconds; more means that it
#: hangs.
ANSWER_TIMEOUT_S = 3.0

#: Records read in one round trip. Bounds the time for which one listing keeps Redis from answering others.
BATCH = 500


class RedisStore:
    """A `JobStore` in the Redis database at `url` (`redis://`, `rediss://` or `unix://`).

    Connects at the first use, and again by itself after Redis was away.

    Raises:
        BadInput: `url` is none that Redis clients know.
    """

    def __init__(self, url: str, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._life = ""
        try:
            self._faults = Faults(url, answer_timeout_s)
            self._client = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
                url,
                decode_responses=True,
                socket_timeout=answer_timeout_s,
                socket_connect_timeout=answer_timeout_s,
                # A write whose answer got lost may have happened. Repeating it is for those who can tell.
                retry=Retry(NoBackoff(), 0),
                redis_connect_func=self._connected,
            )
        except ValueError:
            # What is wrong with it is not repeated: it may be a piece of the password.
            raise BadInput(
                "this is not a Redis URL",
                hint="redis://[:PASSWORD@]HOST:PORT/DATABASE or unix:///PATH; odd characters as %XX",
            ) from None
        self._scripts = Scripts(self._client)

    @property
    def life(self) -> str:
        """See `JobStore.life`."""
        return self._life

    # ---- jobs ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """See `JobStore.now`."""
        seconds, microseconds = self._ask("TIME")
        return int(seconds) + int(microseconds) / 1e6

    def next_job_id(self) -> str:
        """See `JobStore.next_job_id`."""
        return str(self._ask("INCR", keys.NEXT_JOB_ID))

    def submit(self, record: JobRecord, *, idempotency_key: str | None = None) -> JobRecord:
        """See `JobStore.submit`."""
        return self.submit_all([record], idempotency_key=idempotency_key)[0]

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        """See `JobStore.submit_all`."""
        user = check_new(records)
        now = 0.0 if all(record.submitted_at for record in records) else self.now()
        begun = [begin(record, record.submitted_at or now) for record in records]
        firsts = [_revised(first, 1) for first, _ in begun]
        jobs = [
            (first.id, _fields(first), _event_fields(event, first))
            for first, (_, event) in zip(firsts, begun, strict=True)
        ]
        with self._faults:
            answer = self._scripts.submit(user, jobs, idempotency_key)
        match answer:
            case Answer("ok"):
                return firsts
            case Answer("known", (ids,)):
                return [self.get(job_id) for job_id in ids.split()]
            case Answer(_, values):
                raise job_exists(values[0])

    def get(self, job_id: str) -> JobRecord:
        """See `JobStore.get`."""
        text = self._ask("HGET", keys.job(job_id), "record")
        if text is None:
            raise no_such_job(job_id)
        return JobRecord.model_validate_json(text)

    def list_jobs(self, active_only: bool = False, user: str | None = None) -> list[JobRecord]:
        """See `JobStore.list_jobs`."""
        everybodys = keys.ACTIVE_JOBS if active_only else keys.JOBS
        index = everybodys if active_only or user is None else keys.jobs_of(user)
        ids = cast("list[str]", self._ask("ZRANGE", index, 0, -1))
        found: list[JobRecord] = []
        for start in range(0, len(ids), BATCH):
            found += self._records(ids[start : start + BATCH])
        # A job may have ended between the reading of the index and that of its record.
        return [
            record
            for record in found
            if (user is None or record.user == user) and not (active_only and record.state.is_terminal)
        ]

    def transition(self, before: JobRecord, after: JobRecord, event: Event) -> JobRecord:
        """See `JobStore.transition`."""
        after = _revised(after, before.revision + 1)
        with self._faults:
            answer = self._scripts.transition(
                before.id,
                _fields(before),
                _fields(after),
                after.state.is_terminal,
                _event_fields(event, after),
            )
        self._check_written(before, answer)
        return after

    def amend(self, before: JobRecord, after: JobRecord) -> JobRecord:
        """See `writes.Amendable`."""
        assert (before.state, before.epoch) == (after.state, after.epoch), "states change by transition only"
        after = _revised(after, before.revision + 1)
        with self._faults:
            answer = self._scripts.amend(before.id, _fields(before), after.revision, _fields(after).text)
        self._check_written(before, answer)
        return after

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
        check_seq(after)
        if limit <= 0:
            return []
        stream = keys.EVENTS if job_id is None else keys.events_of(job_id)
        with self._faults:
            entries = cast(
                "list[tuple[str, dict[str, str]]]", self._client.xrange(stream, f"({after}", count=limit)
            )
        return [_stored(seq, entry, job_id) for seq, entry in entries]

    def latest_events(self, count: int) -> list[StoredEvent]:
        """See `JobStore.latest_events`."""
        if count <= 0:
            return []
        with self._faults:
            entries = cast(
                "list[tuple[str, dict[str, str]]]", self._client.xrevrange(keys.EVENTS, count=count)
            )
        return [_stored(seq, entry) for seq, entry in reversed(entries)]

    # ---- settings -----------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """See `JobStore.settings`."""
        with self._faults:
            stored = cast("dict[str, str]", self._client.hgetall(keys.SETTINGS))
        return {name: json.loads(text) for name, text in stored.items()}

    def put_setting(self, name: str, value: Any) -> None:
        """See `JobStore.put_setting`."""
        text = setting_text(name, value)
        if value is None:
            self._ask("HDEL", keys.SETTINGS, name)
        else:
            self._ask("HSET", keys.SETTINGS, name, text)

    # ---- users ---------------------------------------------------------------------------------------------

    def add_user(self, name: str, role: str, token_hash: str) -> User:
        """See `JobStore.add_user`."""
        check_token_hash(token_hash)
        user = User(name, role, self.now())
        with self._faults:
            answer = self._scripts.add_user(name, json.dumps(asdict(user)), token_hash)
        if answer.word != "ok":
            raise user_taken(name, answer.word)
        return user

    def user_by_token(self, token_hash: str) -> User | None:
        """See `JobStore.user_by_token`."""
        name = self._ask("HGET", keys.TOKENS, token_hash)
        return None if name is None else _user(self._ask("HGET", keys.USERS, name))

    def users(self) -> list[User]:
        """See `JobStore.users`."""
        found = cast("list[str]", self._ask("HVALS", keys.USERS))
        return sorted((_user(text) for text in found), key=lambda user: user.name)

    # ---- the connection ------------------------------------------------------------------------------------

    def ping(self) -> None:
        """See `JobStore.ping`."""
        check_server(self._ask("INFO"), self._faults.place)

    def close(self) -> None:
        """See `JobStore.close`."""
        self._client.close()

    def _connected(self, connection: Any) -> None:
        """Learn which life of the server a new connection is to; the old ones have ended with theirs."""
        connection.on_connect()
        connection.send_command("INFO", "server")
        found = re.search(r"run_id:(\w+)", str(connection.read_response()))
        self._life = found[1] if found else ""

    def _ask(self, *command: str | int) -> Any:
        with self._faults:
            return cast(Any, self._client.execute_command(*command))  # pyright: ignore[reportUnknownMemberType]

    def _pipeline(self) -> Pipeline:
        return self._client.pipeline(transaction=False)  # pyright: ignore[reportUnknownMemberType]

    def _records(self, ids: Iterable[str]) -> Iterable[JobRecord]:
        with self._faults, self._pipeline() as batch:
            for job_id in ids:
                batch.hget(keys.job(job_id), "record")
            texts = cast("list[str | None]", batch.execute())
        return [JobRecord.model_validate_json(text) for text in texts if text is not None]

    def _check_written(self, before: JobRecord, answer: Answer) -> None:
        if answer.word == "missing":
            raise no_such_job(before.id)
        if answer.word == "stale":
            state, epoch, revision = answer.values
            raise stale_write(before, state, epoch, revision)


def _revised(record: JobRecord, revision: int) -> JobRecord:
    return record.model_copy(update={"revision": revision})


def _fields(record: JobRecord) -> RecordFields:
    return RecordFields(record.state.value, record.epoch, record.revision, record.model_dump_json())


def _event_fields(event: Event, after: JobRecord) -> EventFields:
    return EventFields(event.kind, after.changed_at, json.dumps(stored_data(event, after)))


def _user(text: str) -> User:
    stored = json.loads(text)
    return User(stored["name"], stored["role"], stored["created_at"])


def _stored(seq: str, entry: dict[str, str], job_id: str | None = None) -> StoredEvent:
    return StoredEvent(
        seq, float(entry["at"]), job_id or entry["job"], entry["kind"], json.loads(entry["data"])
    )

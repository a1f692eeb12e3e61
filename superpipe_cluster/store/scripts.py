"""The Lua scripts as typed functions: which keys and arguments each one takes, and what it answers.

Owns the order of KEYS and ARGV, which the header of each file in `lua/` repeats. What the answers mean is
`redis_store.py`. A script is sent by its digest, and in full again when the server does not know it (any
more).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import NamedTuple, cast

import redis

from superpipe_cluster.store import keys


class Answer(NamedTuple):
    """What a script said: a word, and the values that belong to it."""

    word: str
    values: tuple[str, ...]


class RecordFields(NamedTuple):
    """A record as the scripts see it: the fields they compare, and the whole of it as JSON."""

    state: str
    epoch: int
    revision: int
    text: str


class EventFields(NamedTuple):
    """An event as the scripts see it. `data` is JSON."""

    kind: str
    at: float
    data: str


class Scripts:
    """The scripts of one connection pool."""

    def __init__(self, client: redis.Redis) -> None:
        self._submit = _load(client, "submit")
        self._transition = _load(client, "transition")
        self._amend = _load(client, "amend")
        self._add_user = _load(client, "add_user")

    def submit(
        self, user: str, jobs: Sequence[tuple[str, RecordFields, EventFields]], idempotency_key: str | None
    ) -> Answer:
        """Store new jobs: "ok", "known" (with the ids of the first ones) or "taken" (with an id)."""
        has_key = idempotency_key is not None
        names = [keys.JOBS, keys.ACTIVE_JOBS, keys.jobs_of(user), keys.EVENTS]
        names.append(keys.submission(user, idempotency_key or ""))
        ids = " ".join(job_id for job_id, _, _ in jobs)
        limits = (keys.IDEMPOTENCY_TTL_S, keys.ALL_EVENTS_LIMIT)
        arguments: list[str | int] = ["key" if has_key else "no key", ids, *limits]
        for job_id, record, event in jobs:
            names += [keys.job(job_id), keys.events_of(job_id)]
            arguments += [job_id, *record, event.kind, repr(event.at), event.data]
        return self._submit(names, arguments)

    def transition(
        self, job_id: str, before: RecordFields, after: RecordFields, ended: bool, event: EventFields
    ) -> Answer:
        """Replace a record and append the event: "ok", "missing" or "stale" (with what is stored)."""
        names = [keys.job(job_id), keys.ACTIVE_JOBS, keys.EVENTS, keys.events_of(job_id)]
        compared = (before.state, before.epoch, before.revision)
        whither = "ended" if ended else "active"
        happened = (event.kind, repr(event.at), event.data)
        return self._transition(names, [job_id, *compared, *after, whither, *happened, keys.ALL_EVENTS_LIMIT])

    def amend(self, job_id: str, before: RecordFields, revision: int, text: str) -> Answer:
        """Replace a record, not its state or epoch: "ok", "missing" or "stale" (with what is stored)."""
        compared = (before.state, before.epoch, before.revision)
        return self._amend([keys.job(job_id)], [*compared, revision, text])

    def add_user(self, name: str, user: str, token_hash: str) -> Answer:
        """Create a user: "ok", "name taken" or "token taken"."""
        return self._add_user([keys.USERS, keys.TOKENS], [name, user, token_hash])


def _load(client: redis.Redis, name: str) -> Callable[[Sequence[str], Sequence[str | int]], Answer]:
    source = files("superpipe_cluster.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    script = client.register_script(source)

    def call(names: Sequence[str], arguments: Sequence[str | int]) -> Answer:
        word, *values = cast("list[str]", script(keys=names, args=arguments))
        return Answer(word, tuple(values))

    return call

"""What stands in Redis, looked at from outside: documented, bounded, and readable by other versions."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from superpipe_cluster.errors import StaleWrite
from superpipe_cluster.lifecycle.events import Exited, Placed, Started
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.step import InvalidTransition
from superpipe_cluster.store import keys
from superpipe_cluster.store.interface import JobStore, hash_token
from superpipe_cluster.store.memory_store import MemoryStore
from superpipe_cluster.store.redis_store import RedisStore
from superpipe_cluster.store.writes import advance

NewJob = Callable[..., JobRecord]
PLACED = Placed(device="cpu:0", budget_bytes=1)


def a_job(job_id: str = "1", **fields: object) -> JobRecord:
    return JobRecord.model_validate({"id": job_id, "name": "a", "user": "ann", "kind": "train", **fields})


def test_every_documented_key_exists_once_everything_has_been_used(
    redis_store: RedisStore, raw: redis.Redis
) -> None:
    job_id = redis_store.next_job_id()
    redis_store.submit(a_job(job_id), idempotency_key="k")
    redis_store.put_setting("quota:ann", {"weight": 2.0})
    redis_store.add_user("ann", "admin", hash_token("t"))
    found = list(raw.scan_iter())
    for doc in keys.DOCUMENTED:
        assert any(doc.matches(key) for key in found), doc.name
    for key in found:
        assert any(doc.matches(key) for doc in keys.DOCUMENTED), key


def test_no_two_kinds_of_key_can_be_mistaken_for_each_other() -> None:
    examples = [re.sub(r"<\w+>", "1", doc.name) for doc in keys.DOCUMENTED]
    for example, own in zip(examples, keys.DOCUMENTED, strict=True):
        assert [doc.name for doc in keys.DOCUMENTED if doc.matches(example)] == [own.name]


def test_every_key_in_the_module_is_documented() -> None:
    constants = [value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)]
    made = [keys.job("1"), keys.jobs_of("ann"), keys.events_of("1"), keys.submission("ann", "k")]
    for key in [*constants, *made]:
        assert any(doc.matches(key) for doc in keys.DOCUMENTED), key


def test_an_idempotency_key_of_one_user_is_not_anothers() -> None:
    pairs = [
        ("ann", "x"),
        ("bob", "x"),
        ("ann", "y"),
        ("an", "nx"),
        ("1:a", "x"),
        ("1", "a:x"),
        ("", "ann:x"),
    ]
    assert len({keys.submission(user, key) for user, key in pairs}) == len(pairs)


def test_scripts_make_up_no_keys() -> None:
    for script in (Path(keys.__file__).parent / "lua").glob("*.lua"):
        text = script.read_text()
        assert "spcluster" not in text, script.name
        called = re.findall(r"redis\.call\(\s*\"\w+\",\s*(KEYS\[[^\]]*\]|[^,)\s]+)", text)
        assert called, script.name
        assert all(re.fullmatch(r"KEYS\[\d( \+ 2 \* job)?\]", name) for name in called), script.name


def test_the_news_of_all_jobs_are_bounded_and_histories_are_not(
    redis_store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "ALL_EVENTS_LIMIT", 3)
    stores: list[JobStore] = [redis_store, MemoryStore()]
    for store in stores:
        store.submit(a_job("1", max_attempts=9))
        for event in (PLACED, Started(), Exited(reason="ok")):
            advance(store, "1", event)
        assert [event.kind for event in store.events()] == ["placed", "started", "exited"]
        assert len(store.events("1")) == 4


def test_a_forgotten_idempotency_key_is_a_new_job() -> None:
    clock = itertools.count(1_000_000.0, keys.IDEMPOTENCY_TTL_S / 4)
    store = MemoryStore(clock=lambda: next(clock))
    assert store.submit(a_job("1"), idempotency_key="k").id == "1"
    assert store.submit(a_job("2"), idempotency_key="k").id == "1"
    for _ in range(4):
        store.now()
    assert store.submit(a_job("3"), idempotency_key="k").id == "3"


def test_no_token_is_ever_stored(redis_store: RedisStore, raw: redis.Redis) -> None:
    redis_store.add_user("ann", "admin", hash_token("spc-very-secret"))
    everything = json.dumps([raw.hgetall(keys.USERS), raw.hgetall(keys.TOKENS)])
    assert "very-secret" not in everything
    assert hash_token("spc-very-secret") in everything


def test_what_a_newer_version_stored_is_read_and_kept(redis_store: RedisStore, raw: redis.Redis) -> None:
    redis_store.submit(a_job("1"))
    record = advance(redis_store, "1", PLACED)
    newer = {**json.loads(record.model_dump_json()), "gang": ["1", "2"]}
    raw.hset(keys.job("1"), mapping={"record": json.dumps(newer), "gang-lock": "x"})
    advance(redis_store, "1", Started())
    redis_store.report("1", 1, Progress(step=5))
    stored = json.loads(raw.hget(keys.job("1"), "record") or "")
    assert (stored["gang"], stored["state"], stored["step"]) == (["1", "2"], "RUNNING", 5)
    assert raw.hget(keys.job("1"), "gang-lock") == "x"


def test_a_job_in_a_state_of_a_newer_version_is_shown_and_left_alone(
    redis_store: RedisStore, raw: redis.Redis
) -> None:
    redis_store.submit(a_job("1"))
    record = advance(redis_store, "1", PLACED)
    newer = {**json.loads(record.model_dump_json()), "state": "RESIZING"}
    raw.hset(keys.job("1"), mapping={"record": json.dumps(newer), "state": "RESIZING"})
    before = raw.hgetall(keys.job("1"))
    assert [str(job.state) for job in redis_store.list_jobs(active_only=True)] == ["RESIZING"]
    with pytest.raises(StaleWrite):
        redis_store.report("1", 1, Progress(step=5))
    with pytest.raises(StaleWrite):
        redis_store.set_wait("1", 1, "Resources")
    with pytest.raises(InvalidTransition):
        advance(redis_store, "1", Started())
    assert raw.hgetall(keys.job("1")) == before


def test_events_of_a_newer_version_are_read(redis_store: RedisStore, raw: redis.Redis) -> None:
    redis_store.submit(a_job("1"))
    entry = {"kind": "teleported", "at": "5.5", "data": '{"to_state": "ORBITING"}', "mood": "fine"}
    raw.xadd(keys.events_of("1"), entry)  # pyright: ignore[reportArgumentType]
    event = redis_store.events("1")[-1]
    assert (event.kind, event.at, event.job_id, event.data) == (
        "teleported",
        5.5,
        "1",
        {"to_state": "ORBITING"},
    )

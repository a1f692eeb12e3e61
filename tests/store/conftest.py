"""Stores for the tests: a real Redis of their own, and the one in memory.

The Redis is started once per session through `store/embedded.py`, in a directory short enough for a socket,
emptied before every test, and stopped at the end. A test that leaves an undocumented key behind fails.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store import embedded, keys
from superpipe_cluster.store.cached_store import CachedStore
from superpipe_cluster.store.embedded import EmbeddedRedis
from superpipe_cluster.store.interface import JobStore
from superpipe_cluster.store.memory_store import MemoryStore
from superpipe_cluster.store.redis_store import RedisStore

#: A key's lifetime may have shrunk a little since it was set.
TTL_SLACK_S = 60


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name; `tmp_path` may be too long for that."""
    path = Path(tempfile.mkdtemp(prefix="spc-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    path = Path(tempfile.mkdtemp(prefix="spc-", dir="/tmp"))
    server = embedded.start(path / "redis")
    yield server
    embedded.stop(server.url, server.pid)
    shutil.rmtree(path)


@pytest.fixture
def raw(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A plain client to the emptied Redis, for looking at what is really there."""
    client = redis.Redis.from_url(redis_server.url, decode_responses=True)
    client.flushall()
    yield client
    undocumented = [problem for key in client.scan_iter() for problem in wrong_with(client, key)]
    client.close()
    assert not undocumented, undocumented


def wrong_with(client: redis.Redis, key: str) -> Iterator[str]:
    """What about a key differs from `keys.DOCUMENTED`."""
    docs = [doc for doc in keys.DOCUMENTED if doc.matches(key)]
    if not docs:
        yield f"{key}: not in keys.DOCUMENTED"
    elif client.type(key) not in {doc.type for doc in docs}:
        yield f"{key}: a {client.type(key)}, documented as {docs[0].type}"
    else:
        left_s = client.ttl(key)
        whole_s = docs[0].ttl_s
        if whole_s is None and left_s != -1:
            yield f"{key}: goes away in {left_s} s, documented to stay"
        if whole_s is not None and not whole_s - TTL_SLACK_S <= left_s <= whole_s:
            yield f"{key}: goes away in {left_s} s (-1: never), documented {whole_s}"


@pytest.fixture
def redis_store(redis_server: EmbeddedRedis, raw: redis.Redis) -> Iterator[RedisStore]:
    store = RedisStore(redis_server.url)
    yield store
    store.close()


@pytest.fixture(params=["redis", "memory", "cached redis", "cached memory"])
def store(request: pytest.FixtureRequest) -> JobStore:
    """Every test that takes this runs once with each store."""
    below = request.getfixturevalue("redis_store") if "redis" in request.param else MemoryStore()
    return CachedStore(below) if "cached" in request.param else below


@pytest.fixture
def new_job(store: JobStore) -> Callable[..., JobRecord]:
    """Makes the record of a job that can be submitted to `store`."""
    numbers = itertools.count(1)

    def make(**fields: object) -> JobRecord:
        number = next(numbers)
        return JobRecord.model_validate(
            {
                "id": store.next_job_id(),
                "name": f"job-{number}",
                "user": "ann",
                "kind": "train",
                "spec": {"kind": "train", "note": "ümläut 模型"},
                "max_attempts": 2,
                "submitted_at": 1000.0 + number,
                **fields,
            }
        )

    return make

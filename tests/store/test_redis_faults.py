"""Redis stopped, frozen, full, read-only, locked, killed: a clear error in time, and nothing half-done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from superpipe_cluster.errors import BadInput, StoreUnavailable
from superpipe_cluster.lifecycle.events import Placed, Started, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.step import REPLAYED_FIELDS, replay, step
from superpipe_cluster.store import embedded
from superpipe_cluster.store.cached_store import CachedStore
from superpipe_cluster.store.embedded import EmbeddedRedis
from superpipe_cluster.store.faults import Faults, check_server, version_numbers
from superpipe_cluster.store.interface import hash_token
from superpipe_cluster.store.redis_store import RedisStore
from superpipe_cluster.store.writes import advance
from waiting import wait_until

PLACED = Placed(device="cpu:0", budget_bytes=1)


@pytest.fixture
def own_redis(short_path: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that the test may break."""
    server = embedded.start(short_path / "redis")
    yield server
    embedded.stop(server.url, server.pid)


@pytest.fixture
def store(own_redis: EmbeddedRedis) -> Iterator[RedisStore]:
    store = RedisStore(own_redis.url, answer_timeout_s=0.2)
    yield store
    store.close()


@pytest.fixture
def admin(own_redis: EmbeddedRedis) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(own_redis.url, decode_responses=True)
    yield client
    client.close()


def a_job(job_id: str = "1") -> JobRecord:
    return JobRecord(id=job_id, name="a", user="ann", kind="train", submitted_at=1.0)


def every_write(store: RedisStore, record: JobRecord) -> list[Callable[[], object]]:
    return [
        lambda: store.next_job_id(),
        lambda: store.submit(a_job("99"), idempotency_key="k"),
        lambda: store.submit_all([a_job("97"), a_job("98")]),
        lambda: store.transition(record, step(record, Started(), 2.0), Started()),
        lambda: store.report(record.id, 1, Progress(step=1)),
        lambda: advance(store, record.id, Started()),
        lambda: store.put_setting("quota:ann", {"weight": 2.0}),
        lambda: store.add_user("ann", "admin", hash_token("t")),
    ]


def every_read(store: RedisStore) -> list[Callable[[], object]]:
    return [
        lambda: store.now(),
        lambda: store.get("1"),
        lambda: store.list_jobs(),
        lambda: store.events(),
        lambda: store.settings(),
        lambda: store.users(),
        lambda: store.user_by_token(hash_token("t")),
        lambda: store.ping(),
    ]


def contents(client: redis.Redis) -> dict[str, bytes]:
    return {key: client.execute_command("DUMP", key, NEVER_DECODE=True) for key in client.scan_iter()}


@contextmanager
def refused(words: str, within_s: float = 2.0) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=words) as caught:
        yield
    assert caught.value.hint
    assert time.monotonic() - began < within_s


def test_no_redis_at_all_is_said_at_once(short_path: Path) -> None:
    store = RedisStore(f"unix://{short_path}/redis.sock")
    record = step(a_job(), PLACED, 1.0)
    for act in [*every_read(store), *every_write(store, record)]:
        with refused("cannot be reached"):
            act()


def test_a_frozen_redis_is_given_up_on_and_found_again(own_redis: EmbeddedRedis, store: RedisStore) -> None:
    store.submit(a_job())
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        for act in every_read(store):
            with refused(r"did not answer within 0\.2 s"):
                act()
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    assert store.get("1").id == "1"


def test_a_restarted_redis_is_found_again_by_the_same_store(
    own_redis: EmbeddedRedis, short_path: Path
) -> None:
    store = RedisStore(own_redis.url)
    record = store.submit(a_job())
    embedded.stop(own_redis.url, own_redis.pid)
    with refused("cannot be reached"):
        store.submit(a_job("2"))
    again = embedded.start(short_path / "redis")
    try:
        # The new server knows none of the scripts.
        placed = advance(store, "1", PLACED)
        assert (placed.revision, placed.submitted_at) == (record.revision + 1, record.submitted_at)
        assert [job.id for job in store.list_jobs()] == ["1"], "the refused submit left nothing"
    finally:
        store.close()
        embedded.stop(again.url, again.pid)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "is full"),
        (("REPLICAOF", "127.0.0.1", "1"), "read-only replica"),
    ],
)
def test_a_redis_that_takes_no_writes(
    store: RedisStore, admin: redis.Redis, breaks: tuple[str, ...], words: str
) -> None:
    store.submit(a_job())
    record = advance(store, "1", PLACED)
    before = contents(admin)
    admin.execute_command(*breaks)
    for act in every_write(store, record):
        with refused(words):
            act()
    assert contents(admin) == before
    assert store.get("1") == record, "reading goes on"


def test_a_redis_with_a_password(store: RedisStore, own_redis: EmbeddedRedis, admin: redis.Redis) -> None:
    admin.execute_command("CONFIG", "SET", "requirepass", "s3cret")
    with refused("wants a password"):
        RedisStore(own_redis.url).ping()
    with pytest.raises(StoreUnavailable, match="refuses the password") as caught:
        RedisStore(own_redis.url.replace("unix://", "unix://:wr0ng@")).ping()
    assert "wr0ng" not in caught.value.message
    RedisStore(own_redis.url.replace("unix://", "unix://:s3cret@")).ping()


def test_keys_of_another_program_are_not_touched(store: RedisStore, admin: redis.Redis) -> None:
    admin.set("spcluster:jobs", "mine")
    with refused("another program"):
        store.list_jobs()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to", "to disk"),
        ("Error running script (call to f_0): @user_script:9: -MISCONF Errors writing to the AOF", "to disk"),
        ("NOREPLICAS Not enough good replicas to write.", "too few replicas"),
        ("OOM command not allowed when used memory > 'maxmemory'. script: 0, on @user_script:9.", "is full"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", "does not allow"),
        ("BUSY Redis is busy running a script.", "busy with a script"),
        ("ERR something new", "refused a command: ERR something new"),
    ],
)
def test_what_redis_says_when_it_refuses(said: str, words: str) -> None:
    with refused(words), Faults("redis://:pw@somewhere:6379/0", 1.0):
        raise redis.ResponseError(said)


def test_a_password_is_never_repeated() -> None:
    assert Faults("redis://bob:pw@somewhere:6379/3", 1.0).place == "redis://somewhere:6379/3"
    assert Faults("unix://:pw@/run/redis.sock?db=1", 1.0).place == "unix:///run/redis.sock"


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), Faults("redis://x", 1.0):
        raise KeyError("mine")


@pytest.mark.parametrize(
    "url",
    ["", "localhost:6379", "http://localhost", "redis://host:port", "redis://:p/w@host", "redis://[::1"],
)
def test_a_wrong_url_is_the_users_mistake(url: str) -> None:
    with pytest.raises(BadInput, match="not a Redis URL") as caught:
        RedisStore(url)
    assert caught.value.hint
    assert caught.value.__suppress_context__, "the client's own words may hold a piece of the password"


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"redis_version": "6.0.16"}, "too old"),
        ({"redis_version": "5.0.7"}, "too old"),
        ({}, "too old"),
        ({"redis_version": "7.2.4", "redis_mode": "cluster"}, "cluster mode"),
        ({"redis_version": "7.2.4", "maxmemory": 9, "maxmemory_policy": "allkeys-lru"}, "throws data away"),
    ],
)
def test_a_redis_that_jobs_cannot_be_trusted_to(info: dict[str, Any], words: str) -> None:
    with refused(words):
        check_server(info, "here")


def test_a_redis_that_jobs_can_be_trusted_to() -> None:
    check_server({"redis_version": "6.2.0", "redis_mode": "standalone", "maxmemory": 0}, "here")
    check_server({"redis_version": "7.2.4", "maxmemory": 9, "maxmemory_policy": "noeviction"}, "here")
    check_server({"redis_version": "8.0.1", "maxmemory": 0, "maxmemory_policy": "allkeys-lru"}, "here")
    assert version_numbers("7.2.4-rc1") == (7, 2, 4)


def test_killed_in_the_middle_of_writing_everything_is_whole(
    own_redis: EmbeddedRedis, short_path: Path
) -> None:
    store = RedisStore(own_redis.url)
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(1, 100_000):
                record = store.submit(a_job(str(number)), idempotency_key=str(number))
                for event in (PLACED, Started()):
                    record = store.transition(record, step(record, event, 2.0), event)
        except StoreUnavailable:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: len(store.events(limit=1000)) > 300, "some hundred writes")
    os.kill(own_redis.pid, signal.SIGKILL)
    writer.join(timeout=20)
    assert done.is_set()

    again = embedded.start(short_path / "redis")
    try:
        store.ping()
        jobs = store.list_jobs()
        assert len(jobs) > 50
        assert [job.id for job in jobs] == [str(number) for number in range(1, len(jobs) + 1)]
        for job in jobs:
            replayed = replay(event.happened for event in store.events(job.id))
            assert all(getattr(replayed, name) == getattr(job, name) for name in REPLAYED_FIELDS)
            assert store.submit(a_job("99999999"), idempotency_key=job.id) == job
        assert store.list_jobs(active_only=True) == jobs
    finally:
        store.close()
        embedded.stop(again.url, again.pid)


@pytest.mark.parametrize("cut", [1, 7, 100, 1000, 5000])
def test_with_the_end_of_its_file_cut_off_everything_left_is_whole(
    own_redis: EmbeddedRedis, short_path: Path, cut: int
) -> None:
    """As a machine leaves it that lost its power: the last writes are missing, and the last of all is torn."""
    store = CachedStore(RedisStore(own_redis.url))
    for number in range(1, 21):
        record = store.submit_all([a_job(store.next_job_id()), a_job(store.next_job_id())])[0]
        advance(store, record.id, PLACED)
        store.report(record.id, 1, Progress(step=number))
        store.put_setting(f"quota:{number}", {"weight": number})
    before = {job.id: job for job in store.list_jobs()}
    os.kill(own_redis.pid, signal.SIGKILL)
    wait_until(lambda: not (Path("/proc") / str(own_redis.pid)).exists(), "it is gone")
    files = [*(short_path / "redis").glob("appendonly.aof"), *(short_path / "redis").glob("*/*.incr.aof")]
    (file,) = (each for each in files if each.is_file())
    os.truncate(file, file.stat().st_size - cut)

    again = embedded.start(short_path / "redis")
    try:
        below = RedisStore(again.url)
        jobs = below.list_jobs()
        store.now()  # whatever is asked of the server tells that it is another one
        assert jobs == store.list_jobs(), "what was remembered of the other life is forgotten"
        assert 0 < len(jobs) <= 40
        assert len(jobs) % 2 == 0, "jobs that came in together are there together"
        for job in jobs:
            replayed = replay(event.happened for event in below.events(job.id))
            assert all(getattr(replayed, name) == getattr(job, name) for name in REPLAYED_FIELDS)
            assert job.revision <= before[job.id].revision
        assert len(below.events()) == sum(len(below.events(job.id)) for job in jobs)
        last = advance(store, jobs[-1].id, StopAsked("cancelled"))
        assert below.get(last.id) == last
        below.close()
    finally:
        store.close()
        embedded.stop(again.url, again.pid)

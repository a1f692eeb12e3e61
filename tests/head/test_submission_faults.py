"""A submission that is interrupted anywhere: all of it is there, or nothing; and the head goes on afterwards."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from head.test_service import ADA, CODE, Desk
from superpipe_cluster import spec
from superpipe_cluster.api.views import QuotaRequest
from superpipe_cluster.errors import BadInput, StoreUnavailable
from superpipe_cluster.lifecycle.events import Exited, Placed, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store import embedded
from superpipe_cluster.store.cached_store import CachedStore
from superpipe_cluster.store.interface import hash_token
from superpipe_cluster.store.memory_store import MemoryStore
from superpipe_cluster.store.redis_store import RedisStore
from superpipe_cluster.store.writes import advance


class Shaky(MemoryStore):
    """A store whose submits fail, before or after they have happened; and then perhaps its reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: str | None = None
        self.is_silent = False

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        if self.fails == "before":
            raise StoreUnavailable("it never got there")
        stored = super().submit_all(records, idempotency_key=idempotency_key)
        if self.fails == "after":
            raise StoreUnavailable("its answer got lost")
        return stored

    def get(self, job_id: str) -> JobRecord:
        if self.is_silent:
            raise StoreUnavailable("nobody there")
        return super().get(job_id)


@pytest.fixture
def store() -> Shaky:
    return Shaky()


@pytest.fixture
def desk(tmp_path: Path, store: Shaky) -> Desk:
    return Desk(tmp_path / "home", store)


@pytest.mark.parametrize("array", [None, "0-3"])
def test_a_submit_whose_answer_got_lost_is_found(desk: Desk, store: Shaky, array: str | None) -> None:
    store.fails = "after"
    record = desk.submit(array=array)
    assert record.id == "1"
    assert desk.folders() == [job.id for job in store.list_jobs()]
    assert (desk.home.job("1").code / "mine.py").read_text() == CODE.text


@pytest.mark.parametrize("array", [None, "0-3"])
def test_a_submit_that_never_arrived_leaves_nothing(desk: Desk, store: Shaky, array: str | None) -> None:
    store.fails = "before"
    with pytest.raises(StoreUnavailable, match="never got there"):
        desk.submit(array=array)
    assert desk.folders() == []
    store.fails = None
    assert desk.submit(array=array).state == "QUEUED"


def test_when_nobody_can_tell_the_program_is_kept(desk: Desk, store: Shaky) -> None:
    """The job may be there: without its program it would fail."""
    store.fails, store.is_silent = "after", True
    with pytest.raises(StoreUnavailable, match="answer got lost"):
        desk.submit()
    store.is_silent = False
    assert [job.id for job in store.list_jobs()] == desk.folders() == ["1"]


def test_the_folder_of_a_lost_job_is_not_given_to_another(desk: Desk) -> None:
    """Redis may lose its last second, its counter of ids with it; what the lost jobs have made is theirs."""
    for lost in ("1", "2"):
        desk.home.job(lost).root.mkdir(parents=True)
        desk.home.job(lost).log.write_text("lost\n")
    record = desk.submit()
    assert record.id == "3"
    assert desk.home.job("1").log.read_text() == "lost\n"


def test_a_full_disk_is_said_and_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StoreUnavailable, match="No space left") as caught:
            desk.submit(array="0-3")
    assert caught.value.hint
    assert desk.folders() == []
    assert desk.store.list_jobs() == []
    assert desk.submit().state == "QUEUED"


def test_an_array_of_which_one_task_is_refused_leaves_nothing(desk: Desk) -> None:
    asked: list[int] = []

    def some(job: spec.JobSpec, program: Path, **_: object) -> None:
        asked.append(len(asked))
        if len(asked) == 3:
            raise BadInput("the third cannot be planned")

    desk.service._submission._planner = some  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]
    with pytest.raises(BadInput, match="third"):
        desk.submit(array="0-5", resources={"gpu_memory": "1GiB"})
    assert desk.folders() == []
    assert desk.store.list_jobs() == []


# ---- a real Redis that takes no writes, and then does again ------------------------------------------


@pytest.fixture
def server() -> Iterator[embedded.EmbeddedRedis]:
    with tempfile.TemporaryDirectory(prefix="spc-", dir="/tmp") as short:
        running = embedded.start(Path(short) / "redis")
        yield running
        embedded.stop(running.url, running.pid)


BROKEN = {
    "full": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "is full"),
    "read-only": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "read-only replica"),
    "without replicas": (
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
        "too few replicas",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_redis_that_takes_no_writes_stops_nothing_for_good(
    tmp_path: Path, server: embedded.EmbeddedRedis, how: str
) -> None:
    breaks, mends, words = BROKEN[how]
    admin = redis.Redis.from_url(server.url, decode_responses=True)
    below = RedisStore(server.url)
    store = CachedStore(below)
    desk = Desk(tmp_path / "home", store)
    waiting, placed = desk.submit(), advance(store, desk.submit().id, Placed("cpu:0", 1))
    store.add_user("ada", "user", hash_token("t"))
    before, folders = below.list_jobs(), desk.folders()

    admin.execute_command(*breaks)
    writes: list[Callable[[], Any]] = [
        desk.submit,
        lambda: desk.submit(array="0-9"),
        lambda: desk.service.act(ADA, waiting.id, "hold"),
        lambda: desk.service.cancel(ADA, placed.id, force=False),
        lambda: desk.service.add_user(ADA, "carol", "user"),
        lambda: desk.service.put_quota(ADA, "ada", QuotaRequest(weight=2.0)),
        lambda: advance(store, placed.id, Exited("ok")),
    ]
    for write in writes:
        with pytest.raises(StoreUnavailable, match=words) as caught:
            write()
        assert caught.value.hint
    assert [job.id for job in desk.service.jobs(ADA, ended=True, of_user=None)] == [waiting.id, placed.id]
    assert below.list_jobs() == store.list_jobs() == before, "nothing was half-written"
    assert desk.folders() == folders
    assert store.settings() == {}

    admin.execute_command(*mends)
    assert desk.service.act(ADA, waiting.id, "hold").state == "HELD"
    assert desk.submit(array="0-2").array_index == 0
    assert advance(store, placed.id, StopAsked("cancelled")).state == "STOPPING"
    assert store.list_jobs() == below.list_jobs()
    admin.close()
    store.close()


def test_a_frozen_redis_keeps_nobody_for_long_and_is_believed_afterwards(
    tmp_path: Path, server: embedded.EmbeddedRedis
) -> None:
    """What was sent to it while it stood still happens when it goes on, although nobody was told."""
    below = RedisStore(server.url, answer_timeout_s=0.3)
    store = CachedStore(below)
    desk = Desk(tmp_path / "home", store)
    record = desk.submit()
    store.list_jobs()
    os.kill(server.pid, signal.SIGSTOP)
    failures: list[Exception] = []

    def attempt(action: Callable[[], Any]) -> None:
        try:
            action()
        except StoreUnavailable as error:
            failures.append(error)

    try:
        attempts = (lambda: advance(store, record.id, Placed("cpu:0", 1)), lambda: desk.submit(name="other"))
        threads = [threading.Thread(target=attempt, args=(action,)) for action in attempts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert len(failures) == 2
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert store.list_jobs() == below.list_jobs()
    assert store.get(record.id) == below.get(record.id)
    store.close()

"""A head for tests: the real API on a real port, over the head's real service and the real MemoryStore.

Owns a head without Ray and without a scheduler: the test itself places jobs, writes their logs and ends
them. It can be stopped and started again on the same port, as a head that restarts.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from superpipe_cluster.api import Code, build_app
from superpipe_cluster.client import Client
from superpipe_cluster.errors import StoreUnavailable
from superpipe_cluster.head.home import ClusterFile, Home, RayPlace
from superpipe_cluster.head.outlook import Outlook
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.service import HeadService, Pulse
from superpipe_cluster.lifecycle import events
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.machine import Device, HostMemory
from superpipe_cluster.planning import Plan
from superpipe_cluster.spec import JobSpec, parse
from superpipe_cluster.store.interface import User, hash_token
from superpipe_cluster.store.memory_store import MemoryStore
from waiting import wait_until

GIB = 2**30
CAPACITY_BYTES = 3 * GIB
DEVICE = "cpu:0"
#: What the planner says of every job: 14 units, 5 to 13 of which fit the budget that jobs get by default.
PLAN = Plan(
    unit_bytes=(GIB // 8,) * 14,
    largest_unit_bytes=5 * GIB // 8,
    resident_bytes=0,
    activation_bytes=3 * GIB // 8,
    streamed_bytes=13 * GIB // 8,
)


class StoreService(HeadService):
    """The head's own service over a MemoryStore, with a planner that always says the same."""

    def __init__(self, folder: Path, port: int) -> None:
        self.store = MemoryStore(clock=time.time)
        self.home = Home(folder / "home")
        self.home.create()
        self.outlook = Outlook()
        self.codes: dict[str, Code | None] = {}
        self.away = False
        self.foreign_bytes = 0
        memory = HostMemory(total_bytes=8 * GIB, available_bytes=4 * GIB)
        super().__init__(
            self.store,
            self.home,
            ClusterFile(
                url=f"http://127.0.0.1:{port}",
                host="127.0.0.1",
                port=port,
                redis_url="memory",
                redis_pid=None,
                ray=RayPlace("none"),
                devices=(Device(DEVICE, "virtual", "virtual device", CAPACITY_BYTES, 2 * 10**9, 0),),
                started_at=time.time(),
            ),
            Presence(time.monotonic),
            Pulse(ticked_at=time.time(), trouble=None),
            lambda *_, **__: PLAN,
            lambda: memory,
            time.time(),
            lambda: None,
            outlook=self.outlook,
            foreign=lambda *_: self.foreign_bytes,
        )

    # - what the tests do in the place of scheduler and workers

    def enroll(self, name: str, role: str = "user") -> str:
        token = secrets.token_urlsafe(24)
        self.store.add_user(name, role, hash_token(token))
        return token

    def happen(self, job_id: str, event: events.Event) -> JobRecord:
        before = self.store.get(job_id)
        return self.store.transition(before, step(before, event, self.store.now()), event)

    def run(self, job_id: str, budget_bytes: int = GIB) -> JobRecord:
        self.happen(job_id, events.Placed(DEVICE, budget_bytes))
        return self.happen(job_id, events.Started())

    def report(self, job_id: str, **progress: object) -> JobRecord:
        return self.store.report(job_id, self.store.get(job_id).epoch, Progress.model_validate(progress))

    def finish(
        self, job_id: str, reason: str = "ok", message: str | None = None, code: int | None = 0
    ) -> JobRecord:
        return self.happen(job_id, events.Exited(reason, message, code))

    def write_log(self, job_id: str, data: bytes) -> None:
        with self.home.job(job_id).log.open("ab") as log:
            log.write(data)

    # - the Service, while Redis is away and while it is not

    def trouble(self) -> str | None:
        return "Redis does not answer" if self.away else super().trouble()

    def authenticate(self, token: str) -> User | None:
        if self.away:
            raise StoreUnavailable("Redis does not answer", hint="`spcluster doctor` says what is wrong")
        return super().authenticate(token)

    def submit(self, user: User, spec: JobSpec, code: Code | None, idempotency_key: str | None) -> JobRecord:
        record = super().submit(user, spec, code, idempotency_key)
        self.codes[record.id] = code
        return record


class Head:
    """The API on a real port of this machine."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.service = StoreService(folder, self.port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.tokens = {
            "admin": self.service.enroll("admin", "admin"),
            "alice": self.service.enroll("alice"),
            "bob": self.service.enroll("bob"),
        }
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        config = uvicorn.Config(
            build_app(self.service),
            host="127.0.0.1",
            port=self.port,
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        self._server = server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: server.started, "the API listens")

    def stop(self) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive()

    def environment(self, who: str = "alice") -> dict[str, str]:
        return {"SPCLUSTER_URL": self.url, "SPCLUSTER_TOKEN": self.tokens[who]}


@contextmanager
def serving(folder: Path) -> Iterator[Head]:
    """A running head, its home in `folder`."""
    head = Head(folder)
    head.start()
    try:
        yield head
    finally:
        head.stop()


def job(name: str = "small", **fields: object) -> dict[str, object]:
    """The fields of a valid job."""
    return {
        "name": name,
        "kind": "train",
        "model": {"config": {"model_type": "llama", "hidden_size": 64}},
        "data": {"files": ["python-stdlib:"]},
        "train": {"steps": 10},
        **fields,
    }


def submitted(head: Head, name: str = "small", who: str = "alice", **fields: object) -> str:
    """The id of a new job of this user."""
    with Client(head.url, head.tokens[who]) as client:
        return client.submit(parse(job(name, **fields))).id

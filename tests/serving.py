"""A head for tests: the real API on a real port, over the real MemoryStore.

Owns a `Service` without Ray and without a scheduler: the test itself places jobs, writes their logs and ends
them. It can be stopped and started again on the same port, as a head that restarts.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from superpipe_cluster import __version__
from superpipe_cluster.api import Code, LogChunk, build_app
from superpipe_cluster.api.views import ClusterView, DeviceJobView, DevicesView, DeviceView, HostView
from superpipe_cluster.client import Client
from superpipe_cluster.errors import BadInput, NotFound, StoreUnavailable
from superpipe_cluster.lifecycle import events
from superpipe_cluster.lifecycle.record import JobRecord, Progress
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.planning import Plan
from superpipe_cluster.spec import ByteRange, JobSpec, dump, parse
from superpipe_cluster.store.interface import StoredEvent, User, hash_token
from superpipe_cluster.store.memory_store import MemoryStore
from waiting import wait_until

GIB = 2**30
CAPACITY_BYTES = 3 * GIB
DEVICE = "cpu:0"
#: What the planner says of every job: 14 units, 5 to 13 of which fit the budget that jobs get by default.
PLAN = Plan(
    unit_bytes=(GIB // 8,) * 14,
    largest_unit_bytes=3 * GIB // 8,
    resident_bytes=0,
    activation_bytes=3 * GIB // 8,
    streamed_bytes=21 * GIB // 4,
)
#: The service refuses a job of this name the way the head refuses one that fails to plan.
UNKNOWN_AFTER = "nobody"


class StoreService:
    """`api.Service` over a MemoryStore and a folder of log files."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore(clock=time.time)
        self.folder = folder
        self.codes: dict[str, Code | None] = {}
        self.away = False
        self.url = ""

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
        with self._log(job_id).open("ab") as log:
            log.write(data)

    def _log(self, job_id: str) -> Path:
        return self.folder / f"{job_id}.log"

    # - the Service

    def trouble(self) -> str | None:
        return "Redis does not answer" if self.away else None

    def authenticate(self, token: str) -> User | None:
        self._need_store()
        return self.store.user_by_token(hash_token(token))

    def submit(self, user: User, spec: JobSpec, code: Code | None, idempotency_key: str | None) -> JobRecord:
        self._need_store()
        if UNKNOWN_AFTER in spec.after:
            raise BadInput(
                f"after: there is no job `{UNKNOWN_AFTER}`", hint="`spcluster queue -a` lists all jobs"
            )
        memory = spec.resources.gpu_memory
        budget = memory if isinstance(memory, ByteRange) else ByteRange(GIB, 2 * GIB)
        record = self.store.submit(
            JobRecord(
                id=self.store.next_job_id(),
                name=spec.name,
                user=user.name,
                kind=spec.kind,
                worker=spec.worker,
                spec=dump(spec),
                plan=PLAN.to_dict(),
                budget_min_bytes=budget.min_bytes,
                budget_max_bytes=budget.max_bytes,
                max_attempts=spec.max_attempts,
                output=f"/results/{spec.name}",
            ),
            idempotency_key=idempotency_key,
        )
        self.codes[record.id] = code
        return record

    def jobs(self, user: User, *, ended: bool, of_user: str | None) -> Sequence[JobRecord]:
        self._need_store()
        return self.store.list_jobs(active_only=not ended, user=of_user)

    def job(self, user: User, ref: str) -> JobRecord:
        self._need_store()
        records = self.store.list_jobs()
        named = [record for record in records if record.name == ref]
        own = [record for record in named if record.user == user.name]
        for record in [each for each in records if each.id == ref] + own[::-1] + named[::-1]:
            return record
        raise NotFound(f"there is no job `{ref}`", hint="`spcluster queue -a` lists all jobs")

    def events(self, user: User, job_id: str) -> Sequence[StoredEvent]:
        return self.store.events(job_id)

    def logs(self, user: User, job_id: str, *, offset: int, limit: int) -> LogChunk:
        path = self._log(job_id)
        if not path.exists():
            return LogChunk(b"", 0)
        with path.open("rb") as log:
            size_bytes = os.fstat(log.fileno()).st_size
            log.seek(offset)
            return LogChunk(log.read(limit), size_bytes)

    def cancel(self, user: User, job_id: str, *, force: bool) -> JobRecord:
        return self.happen(job_id, events.StopAsked("cancelled"))

    def devices(self, user: User) -> DevicesView:
        holders = [record for record in self.store.list_jobs(active_only=True) if record.state.holds_device]
        used = sum(record.budget_bytes or 0 for record in holders)
        device = DeviceView(
            id=DEVICE,
            name="virtual device",
            kind="virtual",
            capacity_bytes=CAPACITY_BYTES,
            used_bytes=used,
            free_bytes=CAPACITY_BYTES - used,
            link_bytes_per_s=2 * 10**9,
            jobs=tuple(
                DeviceJobView(
                    id=record.id,
                    name=record.name,
                    user=record.user,
                    budget_bytes=record.budget_bytes or 0,
                    held_bytes=record.held_bytes,
                )
                for record in holders
            ),
        )
        return DevicesView(devices=(device,), host=HostView(total_bytes=8 * GIB, available_bytes=4 * GIB))

    def cluster(self, user: User) -> ClusterView:
        return ClusterView(
            version=__version__,
            url=self.url,
            pid=os.getpid(),
            started_at=self.store.now(),
            ticked_at=self.store.now(),
            store="memory",
            ray="none",
        )

    def add_user(self, user: User, name: str, role: str) -> str:
        return self.enroll(name, role)

    def users(self, user: User) -> Sequence[User]:
        return self.store.users()

    def _need_store(self) -> None:
        if self.away:
            raise StoreUnavailable("Redis does not answer", hint="`spcluster doctor` says what is wrong")


class Head:
    """The API on a real port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.service = StoreService(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = self.service.url = f"http://127.0.0.1:{self.port}"
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
    """A running head, its log files in `folder`."""
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

"""A cluster of real processes and its enemy: who is killed, and bringing back what a watchdog would."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from superpipe_cluster import spec
from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.client import Client
from superpipe_cluster.errors import AlreadyRunning, SpclusterError, StoreUnavailable
from superpipe_cluster.execution.remains import last_child
from superpipe_cluster.head import own_ray
from superpipe_cluster.head.cluster import UpOptions, down, up
from superpipe_cluster.head.home import Home
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.machine import processes
from superpipe_cluster.store.interface import FIRST_EVENT, StoredEvent
from superpipe_cluster.store.redis_store import RedisStore
from waiting import wait_until

T = TypeVar("T")

#: All ten jobs fit at their smallest, and two of them whole: they shrink and grow as others come and go.
DEVICE = "cpu:96MiB@40GB/s"
#: Parts after whose death somebody has to type `up`; the others come back by themselves.
NEEDS_UP = frozenset({"redis", "raylet", "gcs", "agent"})


def training(name: str, seed: int, steps: int) -> spec.JobSpec:
    """A small Llama whose weights are more than the least it may be given."""
    return spec.parse(
        {
            "kind": "train",
            "name": name,
            "model": {
                "config": {
                    "model_type": "llama",
                    "hidden_size": 128,
                    "intermediate_size": 344,
                    "num_hidden_layers": 8,
                    "num_attention_heads": 4,
                    "max_position_embeddings": 64,
                },
                "seed": seed,
            },
            "data": {"files": ["python-stdlib:json/*.py"]},
            "train": {
                "steps": steps,
                "batch_size": 2,
                "sequence_length": 32,
                "checkpoint_every": 10,
                "seed": seed,
                "lr": 1e-3,
            },
            "max_attempts": 1000,  # every one of them may be killed
            "env": {"OMP_NUM_THREADS": "1"},
        }
    )


class ChaosLab:
    """The cluster, its user, and its enemy.

    Args:
        root: an empty folder.
        rng: decides who is killed; seeded by the caller, who prints the seed.
    """

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.home = Home(root / "home")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.options = UpOptions(self.home.root, port=port, devices=(DEVICE,))
        self.killed: Counter[str] = Counter()
        self._rng = rng
        up(self.options)
        self._client = self._new_client()

    def _new_client(self) -> Client:
        return Client(self.home.read_cluster().url, self.home.token.read_text(), patience_s=60.0)

    def submit(self, job: spec.JobSpec) -> JobDetail:
        """Put a job in the queue."""
        return self._client.submit(job)

    def show(self, job_id: str) -> JobDetail:
        """The job, also while parts are coming back."""
        return self._client.show(job_id)

    def model_of(self, job_id: str) -> bytes:
        """The trained weights, as written."""
        return (Path(self.show(job_id).output or "") / "model.safetensors").read_bytes()

    # ---- the enemy -----------------------------------------------------------------------------------------

    def kill_one(self, running: list[str]) -> str | None:
        """Kill one part, of the cluster or of one of the `running` jobs, and bring back what needs it; its name.

        None when the part that was drawn was not there to be killed.
        """
        part = self._rng.choice(["child", "child", "actor", "head", "redis", "raylet", "gcs", "agent"])
        pid = self._pid_of(part, running)
        if pid is None:
            return None
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.killed[part] += 1
        if part in NEEDS_UP:
            self._repair()
        return part

    def _pid_of(self, part: str, running: list[str]) -> int | None:
        match part:
            case "child" | "actor":
                children = [last_child(self.home.job(job_id)) for job_id in running]
                alive = [child.pid for child in children if child is not None and processes.is_alive(child)]
                if not alive:
                    return None
                child = self._rng.choice(alive)
                found = processes.process(child)
                return child if part == "child" else None if found is None else found.parent
            case "head":
                pid, started = map(int, self.home.head_pid.read_text().split())
                return pid if processes.is_alive(processes.Birth(pid, started)) else None
            case "redis":
                return self.home.read_cluster().redis_pid
            case _:
                # A raylet's command line names its agents, so only the first word tells who it is.
                title = {"raylet": "/raylet", "gcs": "/gcs_server", "agent": "ray::DashboardAgent"}[part]
                first = {pid: processes.title(pid).split(" ", 1)[0] for pid in self._rays()}
                return next((pid for pid, word in first.items() if word.endswith(title)), None)

    def _rays(self) -> list[int]:
        return own_ray.find(self.home, self.home.read_cluster().ray.session)

    def _repair(self) -> None:
        """`spcluster up`, again until it says that all is there, as a watchdog does."""

        def whole() -> bool:
            try:
                up(self.options)
            except AlreadyRunning:
                return True
            except SpclusterError:
                return False  # a part is still dying
            return True

        wait_until(whole, "`up` has brought the cluster back", 120)
        self._client.close()
        self._client = self._new_client()

    # ---- what is true in the end ---------------------------------------------------------------------------

    def until(self, holds: Callable[[], bool], description: str, timeout_s: float) -> None:
        """Wait for something, through times without a cluster."""

        def look() -> bool:
            try:
                return holds()
            except (SpclusterError, OSError):
                self._repair()
                return False

        wait_until(look, description, timeout_s)

    def records(self) -> list[JobRecord]:
        """Every record, from the store itself."""
        return self._with_store(lambda store: store.list_jobs())

    def events(self) -> list[StoredEvent]:
        """Everything that happened, in its order."""

        def read(store: RedisStore) -> list[StoredEvent]:
            found: list[StoredEvent] = []
            while more := store.events(after=found[-1].seq if found else FIRST_EVENT):
                found += more
            return found

        return self._with_store(read)

    def _with_store(self, read: Callable[[RedisStore], T]) -> T:
        store = RedisStore(self.home.read_cluster().redis_url)
        try:
            return read(store)
        finally:
            store.close()

    def end(self) -> list[str]:
        """Stop everything; the titles of processes that are left."""
        self._client.close()
        session = self.home.read_cluster().ray.session
        with suppress(StoreUnavailable):
            down(self.home.root)
        return [processes.title(pid) for pid in own_ray.find(self.home, session)]

"""A cluster without processes: the real store, tick and reports over an executor that only keeps names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superpipe_cluster import spec
from superpipe_cluster.execution.interface import Orders, Worker
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.outlook import Outlook
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.reports import Reports
from superpipe_cluster.head.tick import Tick
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.machine import Device, parse_device
from superpipe_cluster.store.memory_store import MemoryStore

GIB = 2**30


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeExecutor:
    """Workers are names. `lingering` ones are dead and still hold their bytes."""

    def __init__(self) -> None:
        self.workers: dict[Worker, Path] = {}
        self.started: list[Worker] = []
        self.lingering: set[Path] = set()
        self.broken = False
        self.hurried: list[Worker] = []

    def start(self, worker: Worker, folder: Path) -> None:
        if self.broken:
            raise ConnectionError("no Ray")
        if worker not in self.workers:
            self.workers[worker] = folder
            self.started.append(worker)

    def alive(self) -> frozenset[Worker]:
        return frozenset(self.workers)

    def kill(self, worker: Worker) -> None:
        self.workers.pop(worker, None)

    def hurry(self, worker: Worker) -> None:
        self.hurried.append(worker)

    def clear(self, folder: Path, device: Device | None) -> bool:
        return folder not in self.lingering


class Lab:
    """Everything of a head but its processes and its HTTP."""

    def __init__(
        self, root: Path, devices: Sequence[str] = ("cpu:10GiB@1GB/s",), host_bytes: int = 64 * GIB
    ) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        self.executor = FakeExecutor()
        self.home = Home(root)
        self.home.create()
        self.devices = [parse_device(text, index) for index, text in enumerate(devices)]
        self.host_bytes = host_bytes
        self.foreign_bytes: dict[str, int] = {}
        self.wall_s = 0.0
        self.woken = 0
        self.new_head()

    def new_head(self) -> None:
        """A head that remembers nothing, over the same store and workers."""
        self.presence = Presence(self.clock)
        self.reports = Reports(self.store, self.presence, self._wake)
        self.outlook = Outlook()
        self.tick = Tick(
            self.store,
            self.executor,
            self.presence,
            self.home,
            self.devices,
            lambda: self.host_bytes,
            foreign=lambda device, _: self.foreign_bytes.get(device.id, 0),
            outlook=self.outlook,
            wall=lambda: self.clock() + self.wall_s,
        )

    def _wake(self) -> None:
        self.woken += 1

    def submit(self, name: str = "tiny", gib: float = 1, **fields: Any) -> JobRecord:
        """A queued job of a program of its own, that wants exactly `gib`."""
        job_id = self.store.next_job_id()
        folder = self.home.job(job_id)
        folder.code.mkdir(parents=True)
        (folder.code / "mine.py").write_text("def main(job): pass\n")
        size = f"{int(gib * 1024)}MiB"
        job = spec.parse(
            {"kind": "train", "name": name, "worker": "/home/mine.py", "resources": {"gpu_memory": size}}
        )
        values: dict[str, Any] = {
            "user": "ada",
            "budget_min_bytes": int(gib * GIB),
            "budget_max_bytes": int(gib * GIB),
            "max_attempts": 3,
            "output": str(folder.output),
        }
        return self.store.submit(
            JobRecord(
                id=job_id,
                name=name,
                kind="train",
                spec=spec.dump(job),
                worker=job.worker,
                **{**values, **fields},
            )
        )

    def state(self, record: JobRecord) -> str:
        return str(self.store.get(record.id).state)

    def get(self, record: JobRecord) -> JobRecord:
        return self.store.get(record.id)

    def worker(self, record: JobRecord) -> Worker:
        return Worker(record.id, self.store.get(record.id).epoch)

    def folder(self, record: JobRecord) -> JobFolder:
        return self.home.job(record.id)

    def tell(self, record: JobRecord, *, epoch: int | None = None, **progress: Any) -> Orders:
        """A report of the job's worker."""
        now = epoch if epoch is not None else self.get(record).epoch
        return self.reports.take(record.id, now, {"progress": progress, "end": None})

    def end(self, record: JobRecord, reason: str = "ok", message: str | None = None) -> Orders:
        """The last report of the job's worker."""
        end = {"reason": reason, "message": message, "exit_code": 0 if reason == "ok" else 1}
        return self.reports.take(record.id, self.get(record).epoch, {"progress": {}, "end": end})

    def run(self, record: JobRecord) -> None:
        """Bring a queued job to RUNNING."""
        self.tick.run()
        self.tell(record, running=True)
        assert self.state(record) == "RUNNING"

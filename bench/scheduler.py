"""How long do people wait for the head itself? Decisions, submits, the queue, a restart, and what it costs when idle.

    python bench/scheduler.py [--quick] [--out FOLDER]

`decide` is called by itself, on pictures of up to 10,000 waiting and 100 running jobs, each taken after some of them
have changed; a picture's time is given beside it. All else goes through the HTTP door of a real head in a process of
its own (its tick, its service, its store) over a real Redis; only workers are names that report and do no work, so
that what is measured is the head's. The client is the one people have.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from superpipe_cluster import bundled, spec
from superpipe_cluster.client import Client
from superpipe_cluster.errors import SpclusterError
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.head import actor
from superpipe_cluster.head.garbage import leave_alone_what_stays
from superpipe_cluster.head.home import ClusterFile, Home, RayPlace, write_private
from superpipe_cluster.head.picture import Camera
from superpipe_cluster.lifecycle.events import Exited, StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.machine import Device, parse_device
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.snapshot import DeviceView, Snapshot
from superpipe_cluster.store import embedded
from superpipe_cluster.store.interface import hash_token
from superpipe_cluster.store.redis_store import RedisStore

GIB = 2**30
TOKEN = "bench"
JOBS = 10_000
SUBMITS = 2_000
CLIENTS = 8
#: Holds about this many jobs of `jobs:train_tiny` at once.
DEVICE = "cpu:1GiB@2GB/s"


# ---- decisions -----------------------------------------------------------------------------------------


def crowd(waiting: int, running: int) -> Snapshot:
    """Jobs of twenty users on eight devices, all elastic, the devices full."""
    rng = random.Random(waiting)
    now = 1e6
    devices = [DeviceView(f"GPU-{index}", 80 * GIB, 20 * 10**9) for index in range(8)]
    records: list[JobRecord] = []
    each = 8 * 80 * GIB // max(running, 8)
    for number in range(1, waiting + running + 1):
        low = rng.randrange(2, 30) * GIB // 2
        curve = tuple((low * part // 2, 2.0 / part, GIB // part) for part in (2, 3, 4, 6))
        common: dict[str, Any] = {
            "id": str(number),
            "name": f"job-{number}",
            "user": f"user-{rng.randrange(20)}",
            "kind": "train",
            "priority": rng.choice([-1, 0, 0, 0, 1, 2]),
            "budget_min_bytes": low,
            "budget_max_bytes": 3 * low,
            "host_bytes": GIB,
            "curve": curve,
            "steps": 1000,
            "submitted_at": now - rng.randrange(100_000),
            "time_limit_s": rng.choice([None, 3600.0, 36000.0]),
        }
        if number <= running:
            held: dict[str, Any] = {
                "state": JobState.RUNNING,
                "device": devices[number % 8].id,
                "budget_min_bytes": each // 4,
                "budget_max_bytes": 2 * each,
                "budget_bytes": each,
                "charged_bytes": each,
                "epoch": 1,
                "attempt": 1,
                "step": rng.randrange(1000),
                "step_s": 1.0,
                "used_until": now,
                "budget_since": now - 3600,
                "started_at": now - 3600.0,
                "placed_at": now - 3600.0,
            }
            common |= held
        else:
            common["queued_at"] = common["submitted_at"]
        records.append(JobRecord.model_validate(common))
    usage = {f"user-{index}": rng.random() * 1e16 for index in range(20)}
    return Snapshot.of(records, devices, host_usable_bytes=2**45, now=now, usage=usage, wall=1.7e9)


class Table:
    """Of a store, what a picture is taken of. Some of its jobs change all the time."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._jobs = {job.id: job for job in snapshot.jobs}
        self._now = snapshot.now
        self._rng = random.Random(1)
        self._running = [job.id for job in snapshot.others]
        self._queued = snapshot.queued.ids

    def happen(self) -> list[JobRecord]:
        """A second: every running job reports, some that wait are told something. Returns all jobs."""
        waiting = self._rng.sample(self._queued, min(5, len(self._queued)))
        for job_id in (*self._running, *waiting):
            self._jobs[job_id] = self._jobs[job_id].model_copy()
        return list(self._jobs.values())

    def now(self) -> float:
        return self._now

    def settings(self) -> dict[str, Any]:
        return {}

    def list_jobs(self) -> list[JobRecord]:
        return list(self._jobs.values())


def decisions(lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for waiting in lengths:
        snapshot = crowd(waiting, 100)
        table: Any = Table(snapshot)
        devices: Any = snapshot.devices
        camera = Camera(table, devices, lambda: 2**45, lambda *_: 0, lambda: 1.7e9)
        camera.take(table.list_jobs())
        leave_alone_what_stays()  # as the head does
        took: dict[str, list[float]] = {"decide": [], "decide_cpu": [], "picture": []}
        for _ in range(rounds):
            records = table.happen()
            took["picture"].append(seconds(lambda: camera.take(records)))  # noqa: B023
            snapshot = camera.take(records)
            before_s = time.process_time()
            took["decide"].append(seconds(lambda: decide(snapshot)))  # noqa: B023
            took["decide_cpu"].append(time.process_time() - before_s)
        row: dict[str, Any] = {"waiting": waiting, "running": 100, "rounds": rounds}
        for name, values in took.items():
            row |= {f"{name}_p50_s": statistics.median(values), f"{name}_p99_s": of_hundred(values, 99)}
        rows.append(row)
    return rows


# ---- a head with workers that are names ----------------------------------------------------------------


class Names:
    """An `Executor` whose workers live, report, and do nothing."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._workers: set[Worker] = set()

    def start(self, worker: Worker, folder: Path) -> None:
        with self._mutex:
            self._workers.add(worker)

    def alive(self) -> frozenset[Worker]:
        with self._mutex:
            return frozenset(self._workers)

    def kill(self, worker: Worker) -> None:
        with self._mutex:
            self._workers.discard(worker)

    def hurry(self, worker: Worker) -> None:
        pass

    def clear(self, folder: Path, device: Device | None) -> bool:
        return True


def serve(root: str) -> None:
    """Be the head of `root`, until killed."""
    names = Names()
    actor.RayExecutor = lambda: names  # pyright: ignore[reportAttributeAccessIssue]
    head = actor.HeadActor(root)
    while True:
        time.sleep(0.5)
        for worker in names.alive():
            with suppress(SpclusterError):  # Redis is away; workers keep their news
                head.report(*worker, {"progress": {"running": True}, "end": None})


@contextmanager
def cluster(root: Path) -> Iterator[tuple[Home, RedisStore]]:
    """A home with a Redis and nobody in it yet."""
    home = Home(root)
    home.create()
    redis = embedded.start(home.redis)
    store = RedisStore(redis.url)
    try:
        store.add_user("bench", "admin", hash_token(TOKEN))
        port = _free_port()
        file = ClusterFile(
            url=f"http://127.0.0.1:{port}",
            host="127.0.0.1",
            port=port,
            redis_url=redis.url,
            redis_pid=redis.pid,
            ray=RayPlace("none"),
            devices=(parse_device(DEVICE),),
            started_at=time.time(),
        )
        write_private(home.cluster, file.to_json())
        yield home, store
    finally:
        store.close()
        embedded.stop(redis.url, redis.pid)


@contextmanager
def head_of(home: Home) -> Iterator[tuple[Client, int, float]]:
    """A running head: a client of it, its process, and the seconds from its start until the queue was answered."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(home.root)],
        env={**os.environ, "SPCLUSTER_HOME": str(home.root)},
    )
    client = Client(home.read_cluster().url, TOKEN, patience_s=60)
    try:
        while True:
            try:
                client.queue(ended=True)
                break
            except SpclusterError:
                if process.poll() is not None:
                    raise
                time.sleep(0.01)
        yield client, process.pid, time.perf_counter() - began
    finally:
        client.close()
        process.kill()
        process.wait()


# ---- what people wait for ------------------------------------------------------------------------------


def submits(home: Home, client: Client, pid: int, count: int) -> dict[str, Any]:
    """Submit `count` jobs, each under a name of its own, with as many clients as people who press Enter at once."""
    job = spec.load(bundled.job_path("train_tiny"))
    first_s = seconds(lambda: client.submit(job))
    url = home.read_cluster().url
    clients = [Client(url, TOKEN) for _ in range(CLIENTS)]

    def some(number: int) -> list[float]:
        named = (job.model_copy(update={"name": f"run-{number}-{each}"}) for each in range(count // CLIENTS))
        return [seconds(lambda: clients[number].submit(one)) for one in named]  # noqa: B023

    with ThreadPoolExecutor(CLIENTS) as pool:
        before_s, began = cpu_s(pid), time.perf_counter()
        took = [each for part in pool.map(some, range(CLIENTS)) for each in part]
        whole_s = time.perf_counter() - began
    for each in clients:
        each.close()
    return {
        "submits": len(took),
        "clients": CLIENTS,
        "first_s": first_s,
        "head_cpu_s_each": (cpu_s(pid) - before_s) / len(took),
        "per_s": len(took) / whole_s,
        "p50_s": statistics.median(took),
        "p99_s": of_hundred(took, 99),
    }


def fill(store: RedisStore, count: int, *, ended: bool) -> None:
    """Have `count` jobs in all, the missing ones as copies of the newest waiting one; `ended`: all of them over."""
    records = store.list_jobs()
    like = records[-1]
    fresh = {
        name: value
        for name, value in like.model_dump().items()
        if name
        not in ("id", "state", "epoch", "attempt", "revision", "submitted_at", "device", "budget_bytes")
    }
    while len(records) < count:
        some = min(500, count - len(records))
        new = [JobRecord.model_validate({**fresh, "id": store.next_job_id()}) for _ in range(some)]
        records += store.submit_all(new)
    for record in store.list_jobs(active_only=True) if ended else ():
        event = StopAsked("cancelled") if record.state.is_waiting else Exited("ok")
        store.transition(record, step(record, event, store.now()), event)


def settle(client: Client) -> None:
    """Wait until the first decisions are made and written down: nothing changes any more."""
    before: object = None
    while before != (now := client.queue(ended=True)):
        before = now
        time.sleep(1.0)


def queue_times(client: Client, pid: int, rounds: int) -> dict[str, Any]:
    client.queue(ended=True)
    before_s = cpu_s(pid) + time.process_time()
    took = [seconds(lambda: client.queue(ended=True)) for _ in range(rounds)]
    used_s = cpu_s(pid) + time.process_time() - before_s
    return {
        "jobs": len(client.queue(ended=True)),
        "p50_s": statistics.median(took),
        "worst_s": max(took),
        "cpu_s_each": used_s / rounds,  # of head and client together, one after the other
    }


def idle_share(pid: int, over_s: float) -> float:
    """The part of a core that the process uses while nobody asks it anything."""

    time.sleep(3.0)  # what was woken by the last question comes to its end
    before_s = cpu_s(pid)
    time.sleep(over_s)
    return (cpu_s(pid) - before_s) / over_s


def cpu_s(pid: int) -> float:
    """What the process has used of the processor so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """RAM of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- putting it together -------------------------------------------------------------------------------


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def of_hundred(values: list[float], which: int) -> float:
    """The value that `which` of a hundred do not exceed."""
    return sorted(values)[min(len(values) - 1, which * len(values) // 100)]


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def through_the_door(quick: bool) -> dict[str, Any]:
    jobs, count, rounds, idle_s = (500, 100, 3, 2.0) if quick else (JOBS, SUBMITS, 15, 20.0)
    found: dict[str, Any] = {}
    root = Path(tempfile.mkdtemp(prefix="spc-", dir="/tmp"))
    try:
        with cluster(root) as (home, store):
            with head_of(home) as (client, pid, start_s):
                found["empty start"] = {"to_serving_s": start_s}
                found["submits"] = submits(home, client, pid, count)
                print(f"submits: {found['submits']}", flush=True)
            for name, ended in (("waiting", False), ("ended", True)):
                fill(store, jobs, ended=ended)
                with head_of(home) as (client, pid, start_s):
                    start_cpu_s = cpu_s(pid)
                    settle(client)
                    found[name] = {
                        "to_serving_s": start_s,
                        "to_serving_cpu_s": start_cpu_s,
                        "queue": queue_times(client, pid, rounds),
                        "idle_core_share": idle_share(pid, idle_s),
                        "resident_bytes": resident_bytes(pid),
                        "running": sum(job.state == "RUNNING" for job in client.queue()),
                    }
                print(f"{jobs} jobs, all others {name}: {found[name]}", flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    lengths = [row["waiting"] for row in rows]
    axes.plot(lengths, [1e3 * row["decide_p99_s"] for row in rows], "o-", label="99 of 100 within")
    axes.plot(lengths, [1e3 * row["decide_p50_s"] for row in rows], "o--", label="median")
    axes.axhline(50, color="grey", linewidth=0.8)
    axes.set(
        xscale="log", xlabel="jobs in the queue, beside 100 that run", ylabel="milliseconds of a decision"
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{'waiting':>8} {'decide, median':>15} {'99 of 100':>10} {'of a core':>13} {'99 of 100':>10} "
        f"{'a picture':>13} {'99 of 100':>10}"
    ]
    lines += [
        f"{row['waiting']:8} {1e3 * row['decide_p50_s']:12.1f} ms {1e3 * row['decide_p99_s']:7.1f} ms "
        f"{1e3 * row['decide_cpu_p50_s']:10.1f} ms {1e3 * row['decide_cpu_p99_s']:7.1f} ms "
        f"{1e3 * row['picture_p50_s']:10.1f} ms {1e3 * row['picture_p99_s']:7.1f} ms"
        for row in found["decide"]
    ]
    door = found.get("door")
    if door is not None:
        made = door["submits"]
        lines.append(
            f"submits: {made['per_s']:.0f}/s with {made['clients']} clients, median {1e3 * made['p50_s']:.0f} ms, "
            f"99 of 100 within {1e3 * made['p99_s']:.0f} ms; the first, which is planned, {made['first_s']:.1f} s"
        )
        for name in ("waiting", "ended"):
            row = door[name]
            lines.append(
                f"{row['queue']['jobs']} jobs ({name}): queue {row['queue']['p50_s']:.2f} s (of a core "
                f"{row['queue']['cpu_s_each']:.2f} s), restart to serving {row['to_serving_s']:.1f} s (of a core "
                f"{row['to_serving_cpu_s']:.1f} s), idle {100 * row['idle_core_share']:.1f} % of a core, "
                f"{row['resident_bytes'] / 2**20:.0f} MiB"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for scheduler.json and scheduler.png")
    parser.add_argument("--quick", action="store_true", help="small numbers: whether it works at all")
    parser.add_argument("--only", choices=("decide", "door"), help="a part of it")
    parser.add_argument("--serve", metavar="HOME", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve is not None:
        serve(asked.serve)
    from about import about  # torch is not for the head, which is this file, too

    lengths, rounds = ([100], 5) if asked.quick else ([100, 300, 1000, 3000, 10_000], 200)
    found: dict[str, Any] = {"about": about("cpu"), "decide": [], "door": None}
    if asked.only != "door":
        found["decide"] = decisions(lengths, rounds)
    if asked.only != "decide":
        found["door"] = through_the_door(asked.quick)
    print(table(found))
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "scheduler.json").write_text(json.dumps(found, indent=1) + "\n")
        draw(found["decide"], asked.out / "scheduler.png")


if __name__ == "__main__":
    sys.exit(main())

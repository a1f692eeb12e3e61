"""A newcomer gets in between two running trainings, by their making room, on a real cluster; nobody's bits change."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import round_figures
from streaming.twins import assert_equal
from superpipe_cluster import spec
from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.client import Client
from superpipe_cluster.head.cluster import UpOptions, down, up
from superpipe_cluster.head.home import Home
from superpipe_cluster.lifecycle.events import from_stored
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.step import replay
from superpipe_cluster.store.interface import FIRST_EVENT, StoredEvent
from superpipe_cluster.store.redis_store import RedisStore
from waiting import wait_until

MIB = 2**20
CAPACITY_BYTES = 32 * MIB
SEEDS = {"first": 1, "second": 2, "newcomer": 3}

#: Trains 20 steps and on, slowly, until there is a file for it. The seed is its place in the names, and no parameter:
#: jobs that differ in their names alone are planned once.
PROGRAM = """
import time
from pathlib import Path

import torch
from torch import nn

from superpipe_cluster.planning import Probe


def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Sequential(nn.Linear(384, 384), nn.Tanh()) for _ in range(12)])


def loss_at(model, seed, step):
    torch.manual_seed(1000 * seed + step)
    return model(torch.randn(4, 384)).square().mean()


def make_step(model, optimizer, seed, step):
    loss = loss_at(model, seed, step)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def probe(job):
    model = build(0)
    return Probe(model, lambda: loss_at(model, 0, 0).backward(), lambda p: torch.optim.AdamW(p, lr=1e-3))


def main(job):
    torch.set_num_threads(1)
    seed, enough = job.params["seeds"][job.name], Path(job.params["enough"]) / job.name
    model = build(seed)
    with job.stream(model) as streamer:
        optimizer = streamer.optimizer(torch.optim.AdamW, lr=1e-3)
        step = 0
        while (step < 20 or not enough.exists()) and not job.should_stop:
            loss = make_step(model, optimizer, seed, step)
            step += 1
            assert streamer.stats().held_bytes <= job.budget_bytes
            job.progress(step=step, loss=loss)
            if not enough.exists():
                time.sleep(0.25)
    torch.save(model.state_dict(), "weights.pt")
"""


def undisturbed(seed: int, steps: int) -> dict[str, torch.Tensor]:
    """The same training without streaming, a cluster, or neighbours."""
    program: dict[str, Any] = {}
    exec(PROGRAM, program)  # what the jobs run, and nothing else
    model = program["build"](seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        program["make_step"](model, optimizer, seed, step)
    return dict(model.state_dict())


class Cluster:
    def __init__(self, root: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.home = Home(root / "home")
        self.root = root
        up(UpOptions(self.home.root, port=port, devices=(f"cpu:{CAPACITY_BYTES // MIB}MiB@40GB/s",)))
        round_figures.give_to(self.home, speed=1000)
        self.client = Client(self.home.read_cluster().url, self.home.token.read_text())
        self.enough = root / "enough"
        self.enough.mkdir()
        self.program = root / "elastic.py"
        self.program.write_text(PROGRAM)

    def submit(self, name: str, memory: str) -> JobDetail:
        return self.client.submit(
            spec.parse(
                {
                    "kind": "train",
                    "name": name,
                    "worker": str(self.program),
                    "resources": {"gpu_memory": memory},
                    "params": {"seeds": SEEDS, "enough": str(self.enough)},
                    "env": {"OMP_NUM_THREADS": "1"},
                }
            )
        )

    def until(self, holds: Callable[..., bool], *jobs: JobDetail, what: str, timeout_s: float = 60) -> None:
        wait_until(lambda: holds(*(self.client.show(job.id) for job in jobs)), what, timeout_s)

    def assert_undisturbed(self, job: JobDetail) -> None:
        """Let it come to its end: it has the weights that it would have alone."""
        (self.enough / job.name).touch()
        ended = self.client.wait(job.id, timeout_s=100)
        assert (ended.state, ended.reason, ended.attempt) == ("SUCCEEDED", "ok", 1), ended.message
        assert ended.step >= 20
        assert_equal(
            torch.load(Path(ended.output or "") / "weights.pt"), undisturbed(SEEDS[job.name], ended.step)
        )

    def events(self) -> list[StoredEvent]:
        store = RedisStore(self.home.read_cluster().redis_url)
        try:
            found: list[StoredEvent] = []
            while more := store.events(after=found[-1].seq if found else FIRST_EVENT):
                found += more
            return found
        finally:
            store.close()

    def down(self) -> None:
        self.client.close()
        down(self.home.root)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.down()


def most_promised(events: list[StoredEvent]) -> int:
    """The most that was ever promised on the device, after any single event."""
    histories: dict[str, list[StoredEvent]] = {}
    records: dict[str, JobRecord] = {}
    most = 0
    for event in events:
        assert from_stored(event.kind, event.data) is not None
        history = histories.setdefault(event.job_id, [])
        history.append(event)
        records[event.job_id] = replay(each.happened for each in history)
        held = [record.promised_bytes for record in records.values() if record.state.holds_device]
        most = max(most, sum(held))
    return most


def answer_times(events: list[StoredEvent]) -> list[float]:
    """Seconds from each request for bytes to their being free."""
    asked: dict[tuple[str, int], float] = {}
    took: list[float] = []
    for event in events:
        if event.kind == "resize_asked":
            asked[event.job_id, event.data["revision"]] = event.at
        elif event.kind == "resized" and event.data["refused"] is None:
            took.append(event.at - asked[event.job_id, event.data["revision"]])
    return took


@pytest.mark.timeout(300)
def test_a_newcomer_gets_in_and_they_grow_back(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    first = cluster.submit("first", "6MiB..16MiB")
    second = cluster.submit("second", "6MiB..16MiB")
    cluster.until(
        lambda *both: all(
            job.state == "RUNNING" and job.budget_bytes == 16 * MIB and job.step > 5 for job in both
        ),
        first,
        second,
        what="both run, and share the device",
    )
    newcomer = cluster.submit("newcomer", "16MiB")
    cluster.until(lambda job: job.state == "RUNNING", newcomer, what="the newcomer runs beside them")
    cluster.until(
        lambda *both: all(job.state == "RUNNING" and job.budget_bytes < 16 * MIB for job in both),
        first,
        second,
        what="both run on, with fewer bytes",
        timeout_s=1,
    )
    cluster.assert_undisturbed(newcomer)
    cluster.until(
        lambda *both: sum(job.budget_bytes for job in both) > 24 * MIB,
        first,
        second,
        what="they grow back",
        timeout_s=100,
    )
    cluster.assert_undisturbed(first)
    cluster.assert_undisturbed(second)
    events = cluster.events()
    assert most_promised(events) <= CAPACITY_BYTES
    took = answer_times(events)
    record_property("seconds from request to freed bytes", took)
    print("seconds from request to freed bytes:", [round(each, 3) for each in took])
    assert len(took) >= 3
    assert max(took) < 5.0  # a step takes a third of a second, and the copy a hundredth

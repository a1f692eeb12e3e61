from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from head.fakes import GIB, Clock
from superpipe_cluster.execution.layout import note_birth
from superpipe_cluster.head.home import Home
from superpipe_cluster.head.neighbours import Neighbours
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.machine import nvml, parse_device

GPU = replace(parse_device("cpu:20GiB"), id="GPU-1f", kind="cuda")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "600"], process_group=0)
    yield started
    started.kill()
    started.wait()


def running(gib: int) -> JobRecord:
    return JobRecord(
        id="7",
        name="a",
        user="ada",
        kind="train",
        state=JobState.RUNNING,
        device=GPU.id,
        budget_bytes=gib * GIB,
    )


class Driver:
    """Says what a GPU holds, and counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used_bytes = 0
        self.by_process: dict[int, int] = {}
        self.asked = 0
        monkeypatch.setattr(nvml, "memory", self._memory)

    def _memory(self, uuid: str) -> nvml.Memory:
        self.asked += 1
        return nvml.Memory(20 * GIB, self.used_bytes, self.by_process)


def test_our_own_processes_are_no_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: subprocess.Popen[bytes]
) -> None:
    driver, home = Driver(monkeypatch), Home(tmp_path)
    stranger = subprocess.Popen(["sleep", "600"], process_group=0)
    home.job("7").root.mkdir(parents=True)
    note_birth(home.job("7").pid, child.pid)
    driver.used_bytes, driver.by_process = 9 * GIB, {child.pid: 6 * GIB, stranger.pid: 3 * GIB}
    assert Neighbours(home)(GPU, [running(8)]) == 3 * GIB
    stranger.kill()
    stranger.wait()
    driver.used_bytes, driver.by_process = 6 * GIB, {child.pid: 6 * GIB}
    assert Neighbours(home)(GPU, [running(8)]) == 0


def test_what_was_given_back_is_not_free_before_the_driver_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, clock = Driver(monkeypatch), Clock()
    neighbours = Neighbours(Home(tmp_path), clock)
    driver.used_bytes = 8 * GIB
    assert neighbours(GPU, [running(8)]) == 0
    assert neighbours(GPU, [running(8)]) == 0
    assert driver.asked == 1  # the driver takes its time
    assert neighbours(GPU, [running(5)]) == 3 * GIB
    driver.used_bytes = 5 * GIB
    clock.now_s += 10
    assert neighbours(GPU, [running(5)]) == 0


def test_of_a_virtual_device_a_file_in_the_home_tells(tmp_path: Path) -> None:
    device = parse_device("cpu:1GiB")
    neighbours = Neighbours(Home(tmp_path))
    (tmp_path / "foreign-cpu:0.json").write_text('{"bytes": 4096}')
    assert neighbours(device, []) == 4096
    (tmp_path / "foreign-cpu:0.json").unlink()
    assert neighbours(device, []) == 0

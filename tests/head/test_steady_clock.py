from __future__ import annotations

from pathlib import Path

import pytest

from head.fakes import Clock
from superpipe_cluster.head.steady_clock import LOOK_EVERY_S, SteadyClock, SteadyStore
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store.memory_store import MemoryStore

HOUR_S = 3600.0


class Machine:
    """A machine whose wall clock somebody sets."""

    def __init__(self) -> None:
        self.monotonic = Clock()
        self.shift_s = 1e9
        self.looks = 0

    def wall(self) -> float:
        self.looks += 1
        return self.monotonic() + self.shift_s

    def clock(self, kept: Path | None = None, boot_id: str = "b1") -> SteadyClock:
        return SteadyClock(self.wall, self.monotonic, kept, boot_id)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_it_begins_with_the_clock_that_it_follows(machine: Machine) -> None:
    clock = machine.clock()
    assert clock() == machine.wall()
    machine.monotonic.now_s += 7
    assert clock() == machine.wall()


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_an_hour_more_or_less_changes_no_duration_by_more_than_a_hundredth(
    machine: Machine, jump_s: float
) -> None:
    clock = machine.clock()
    began = clock()
    machine.shift_s += jump_s
    for _ in range(100):
        machine.monotonic.now_s += 60
        clock()
    assert abs(clock() - began - 6000) <= 60 + 1e-3
    assert (clock() - began > 6000) == (jump_s > 0)


def test_it_never_goes_back(machine: Machine) -> None:
    clock = machine.clock()
    machine.shift_s -= HOUR_S
    seen = []
    for _ in range(1000):
        machine.monotonic.now_s += 0.1
        seen.append(clock())
    assert seen == sorted(seen)


def test_it_comes_to_the_right_time_in_the_end(machine: Machine) -> None:
    clock = machine.clock()
    clock()
    machine.shift_s += 10
    for _ in range(300):
        machine.monotonic.now_s += 5
        clock()
    assert clock() == pytest.approx(machine.wall())


def test_the_other_clock_is_asked_seldom(machine: Machine) -> None:
    clock = machine.clock()
    for _ in range(1000):
        clock()
    assert machine.looks == 1
    machine.monotonic.now_s += LOOK_EVERY_S
    clock()
    assert machine.looks == 2


def test_the_next_head_goes_on_with_the_same_time(machine: Machine, tmp_path: Path) -> None:
    kept = tmp_path / "clock.json"
    first = machine.clock(kept)()
    machine.shift_s += HOUR_S
    machine.monotonic.now_s += 1
    assert machine.clock(kept)() == pytest.approx(first + 1)


def test_after_a_restart_of_the_machine_it_begins_anew(machine: Machine, tmp_path: Path) -> None:
    kept = tmp_path / "clock.json"
    machine.clock(kept)()
    machine.monotonic.now_s = 5.0
    assert machine.clock(kept, "b2")() == machine.wall()


def test_a_file_that_cannot_be_read_is_no_file(machine: Machine, tmp_path: Path) -> None:
    kept = tmp_path / "clock.json"
    kept.write_text("{")
    assert machine.clock(kept)() == machine.wall()


def test_a_store_with_it_submits_and_tells_by_it(machine: Machine) -> None:
    clock = machine.clock()
    store = SteadyStore(MemoryStore(machine.wall), clock)
    began = store.now()
    machine.shift_s += HOUR_S
    job = store.submit(JobRecord(id=store.next_job_id(), name="a", user="ada", kind="train"))
    assert job.submitted_at == pytest.approx(began)
    assert store.get(job.id).submitted_at == pytest.approx(began)

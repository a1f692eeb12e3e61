"""Equal jobs are planned once, and only equal ones."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from superpipe_cluster import spec
from superpipe_cluster.errors import BadInput
from superpipe_cluster.head.plans import Plans
from superpipe_cluster.planning import Forecast, ForecastRow, Plan, PlannedDevice, keep_correction
from waiting import wait_until

DEVICE = PlannedDevice(None, 1e9, 2**30)


def row(budget_bytes: int, step_s: float) -> ForecastRow:
    return ForecastRow(budget_bytes, 1, 1, budget_bytes, 0, 1000, 1.0, step_s, step_s, "link")


FORECAST = Forecast((row(100, 2.0), row(200, 1.0)), 100, 200, 200, 1.0, 2, "cpu", fingerprint="f")
PLAN = Plan((50, 50), 50, 0, 50, 100, forecast=FORECAST)


class Counting:
    """A planner that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[spec.JobSpec] = []
        self.fails = False
        self.mutex = threading.Lock()
        self.busy = self.most = 0
        self.gate: threading.Event | None = None

    def __call__(self, job: spec.JobSpec, program: Path, *, cuda: bool, device: PlannedDevice | None) -> Plan:
        self.asked.append(job)
        with self.mutex:
            self.busy += 1
            self.most = max(self.most, self.busy)
        if self.gate is not None:
            assert self.gate.wait(10)
        with self.mutex:
            self.busy -= 1
        if self.fails:
            raise BadInput("no such model")
        return PLAN


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPCLUSTER_HOME", str(tmp_path / "home"))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("def probe(job): ...\n")
    return path


def job(**fields: Any) -> spec.JobSpec:
    values = {"kind": "train", "name": "a", "worker": "/home/mine.py", "train": {"steps": 5}, **fields}
    return spec.parse(values)


def plan(plans: Plans, program: Path, **fields: Any) -> Plan | None:
    return plans(job(**fields), program, cuda=False, device=DEVICE)


def test_what_is_said_beside_the_work_makes_no_other_job(program: Path) -> None:
    planner = Counting()
    plans = Plans(planner)
    for beside in (
        {},
        {"name": "b"},
        {"output": "/results/b"},
        {"priority": "high"},
        {"after": ["7"]},
        {"array": "0-3"},
        {"time_limit": "8h"},
        {"max_attempts": 9},
        {"schedule": {"window": "night"}},
        {"elastic": {"max_slowdown": 2.0}},
        {"params": {"array_index": 3}},
    ):
        assert plan(plans, program, **beside) == PLAN
    assert len(planner.asked) == 1


def test_other_work_is_another_job(program: Path, tmp_path: Path) -> None:
    planner = Counting()
    plans = Plans(planner)
    prompts = tmp_path / "model"
    prompts.mkdir()
    plan(plans, program)
    for number, other in enumerate(
        (
            {"train": {"steps": 6}},
            {"resources": {"gpu_memory": "1GiB"}},
            {"streaming": {"k": 2}},
            {"params": {"width": 3}},
            {"env": {"WIDTH": "3"}},
            {"model": {"source": str(prompts)}},
        ),
        start=2,
    ):
        plan(plans, program, **other)
        assert len(planner.asked) == number, other
    (prompts / "config.json").write_text("{}")
    plan(plans, program, model={"source": str(prompts)})
    assert len(planner.asked) == 8, "the model's folder has changed"
    plans(job(), program, cuda=True, device=DEVICE)
    plans(job(), program, cuda=False, device=None)
    assert len(planner.asked) == 10
    program.write_text("def probe(job): pass\n")
    plan(plans, program)
    assert len(planner.asked) == 11, "the program has changed"


def test_a_program_that_asks_for_its_number_is_planned_for_each(program: Path) -> None:
    planner = Counting()
    plans = Plans(planner)
    program.write_text("def probe(job): return build(job.params['array_index'])\n")
    for index in (0, 1, 0):
        plan(plans, program, params={"array_index": index})
    assert len(planner.asked) == 2


def test_a_failure_is_not_kept(program: Path) -> None:
    planner = Counting()
    plans = Plans(planner)
    planner.fails = True
    for _ in range(2):
        with pytest.raises(BadInput, match="no such model"):
            plan(plans, program)
    planner.fails = False
    assert plan(plans, program) == PLAN
    assert len(planner.asked) == 3


def test_equal_jobs_at_once_wait_for_one_plan(program: Path) -> None:
    planner = Counting()
    planner.gate = threading.Event()
    plans = Plans(planner)
    made: list[Plan | None] = []
    threads = [threading.Thread(target=lambda: made.append(plan(plans, program))) for _ in range(6)]
    for thread in threads:
        thread.start()
    planner.gate.set()
    for thread in threads:
        thread.join(timeout=10)
    assert made == [PLAN] * 6
    assert len(planner.asked) == 1


def test_only_so_many_are_planned_at_once(program: Path) -> None:
    planner = Counting()
    planner.gate = threading.Event()
    plans = Plans(planner, at_once=2)
    threads = [
        threading.Thread(target=lambda steps=steps: plan(plans, program, train={"steps": steps}))
        for steps in range(1, 6)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(planner.asked) == 2, "two are being planned")
    planner.gate.set()
    for thread in threads:
        thread.join(timeout=10)
    assert len(planner.asked) == 5
    assert planner.most == 2


def test_a_plan_is_good_for_an_hour(program: Path) -> None:
    planner, now_s = Counting(), 0.0
    plans = Plans(planner, clock=lambda: now_s)
    plan(plans, program)
    now_s = 3599.0
    plan(plans, program)
    assert len(planner.asked) == 1
    now_s = 3601.0
    plan(plans, program)
    assert len(planner.asked) == 2


def test_what_runs_have_taught_since_then_counts(program: Path) -> None:
    plans = Plans(Counting())
    plan(plans, program)
    keep_correction("f", forecast_s=1.0, measured_s=3.0)
    learned = plan(plans, program)
    assert learned is not None
    assert learned.forecast is not None
    assert [row.step_s for row in learned.forecast.rows] == [6.0, 3.0]
    assert (learned.forecast.whole_step_s, learned.forecast.corrected) == (3.0, 3.0)
    assert [row.slowdown for row in learned.forecast.rows] == [2.0, 1.0]


def test_only_so_many_are_kept(program: Path) -> None:
    planner = Counting()
    plans = Plans(planner)
    for steps in range(1, 300):
        plan(plans, program, train={"steps": steps})
    plan(plans, program, train={"steps": 299})
    assert len(planner.asked) == 299
    plan(plans, program, train={"steps": 1})
    assert len(planner.asked) == 300

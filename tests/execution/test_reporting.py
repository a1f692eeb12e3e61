from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from execution.programs import prepare
from superpipe_cluster.execution.interface import Orders, Report
from superpipe_cluster.execution.reporting import report_to_the_end
from superpipe_cluster.execution.supervisor import Supervisor

WAITING = "import time\ndef main(job):\n    while not job.should_stop:\n        time.sleep(0.01)\n"


def report(root: Path, program: str, tell: Callable[[Report], Orders]) -> Supervisor:
    """Run `program` under a head that answers with `tell`, until nobody has to hear of it any more."""
    prepare(root, program)
    supervisor = Supervisor(root)
    supervisor.start()
    report_to_the_end(supervisor, tell, every_s=0.05)
    return supervisor


def test_the_end_is_told_with_all_progress_before_it(tmp_path: Path) -> None:
    heard: list[Report] = []

    def head(report: Report) -> Orders:
        heard.append(report)
        return Orders()

    report(tmp_path, "def main(job):\n    for step in range(5):\n        job.progress(step=step + 1)", head)
    merged: dict[str, Any] = {}
    for each in heard:
        merged.update(each["progress"])
    assert (merged["running"], merged["step"]) == (True, 5)
    assert [each["end"] is not None for each in heard] == [False] * (len(heard) - 1) + [True]


def test_the_first_metrics_are_told_and_the_last_ones(tmp_path: Path) -> None:
    losses: list[float] = []
    away = iter((True, True, True))

    def head(report: Report) -> Orders:
        if next(away, False):
            raise ConnectionError("away")
        losses.extend(report["progress"].get("metrics", {}).values())
        return Orders()

    report(tmp_path, "def main(job):\n    for step in range(50):\n        job.progress(loss=50 - step)", head)
    assert (losses[0], losses[-1]) == (50, 1)


def test_a_head_that_is_away_hears_everything_when_it_is_back(tmp_path: Path) -> None:
    heard: list[Report] = []
    calls = iter(range(10**6))

    def head(report: Report) -> Orders:
        if next(calls) < 20:
            raise ConnectionError("away")
        heard.append(report)
        return Orders()

    report(tmp_path, "def main(job):\n    job.progress(step=5, loss=0.5)", head)
    assert heard[0]["progress"]["running"] is True
    assert [each["progress"]["step"] for each in heard if "step" in each["progress"]] == [5]
    assert heard[-1]["end"] == {"reason": "ok", "message": None, "exit_code": 0}


def test_an_order_to_stop_reaches_the_program(tmp_path: Path) -> None:
    heard: list[Report] = []

    def head(report: Report) -> Orders:
        heard.append(report)
        return Orders(stop="cancelled")

    report(tmp_path, WAITING, head)
    assert heard[-1]["end"] == {"reason": "cancelled", "message": None, "exit_code": 0}


def test_a_worker_whose_time_is_over_ends_its_child(tmp_path: Path) -> None:
    supervisor = report(tmp_path, WAITING, lambda _: Orders(stale=True))
    end = supervisor.wait(0)
    assert end is not None
    assert end.exit_code is None


def test_orders_reach_the_program_and_what_it_makes_of_them_the_head(tmp_path: Path) -> None:
    heard: list[Report] = []

    def head(report: Report) -> Orders:
        heard.append(report)
        said = [each["progress"] for each in heard]
        if any(each.get("paused") is False for each in said):
            return Orders(stop="cancelled")
        paused = any(each.get("paused") for each in said)
        resized = any(each.get("budget_revision") == 3 for each in said)
        return Orders(budget_bytes=2**19, budget_revision=3, pause=not (paused and resized))

    report(tmp_path, WAITING, head)
    (refused,) = {
        each["progress"]["budget_refused"] for each in heard if "budget_refused" in each["progress"]
    }
    assert "streams no model" in refused
    assert heard[-1]["end"] == {"reason": "cancelled", "message": None, "exit_code": 0}


def test_a_head_in_a_hurry_hears_at_once(tmp_path: Path) -> None:
    prepare(tmp_path, WAITING)
    supervisor = Supervisor(tmp_path)
    supervisor.start()
    supervisor.hurry()
    assert supervisor.wait_for_news(600) is None
    supervisor.stop("cancelled")
    assert supervisor.wait_for_news(600) is not None

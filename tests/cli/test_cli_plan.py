"""`spcluster plan`: the table, the picture, and what the exit code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superpipe_cluster.cli.main import run
from superpipe_cluster.planning import Forecast, ForecastRow, Plan

MIB = 1 << 20


def _row(mib: int, step_s: float) -> ForecastRow:
    bound = "link" if step_s > 0.5 else "compute"
    return ForecastRow(mib * MIB, 10, 1, mib * MIB - 5, 900 * MIB, 7 * MIB, 3.0, step_s, step_s / 0.5, bound)


FORECAST = Forecast(
    rows=(_row(100, 1.25), _row(200, 0.75), _row(400, 0.5)), floor_bytes=100 * MIB, no_slowdown_bytes=400 * MIB,
    whole_bytes=400 * MIB, whole_step_s=0.5, units=12, device="cpu",
)  # fmt: skip
PLAN = Plan((20 * MIB,) * 10, 60 * MIB, 0, 40 * MIB, 360 * MIB, forecast=FORECAST)


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPCLUSTER_HOME", str(tmp_path))
    monkeypatch.setattr("superpipe_cluster.cli.verbs.plan.plan_job", lambda *args, **options: PLAN)


def test_a_table_of_80_columns_with_the_budget_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "jobs:train_tiny", "--device", "cpu:1GiB@2GB/s"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith(">")] == [">"]
    marked = next(line for line in lines if line.startswith(">"))
    assert "400.0 MiB" in marked
    assert "500 ms" in marked
    assert any(line.startswith("smallest") and str(102 * MIB) in line for line in lines)
    assert any(line.startswith("no slowdown") and "400.0 MiB" in line for line in lines)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "jobs:train_tiny", "--device", "cpu:1GiB@2GB/s", "-o", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert Forecast.from_dict(answer["forecast"]) == FORECAST
    assert answer["chosen_budget_bytes"] == 400 * MIB


def test_what_never_fits_exits_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "jobs:train_tiny", "--device", "cpu:50MiB@2GB/s"]) == 4
    assert "error: train_tiny needs 102.0 MiB" in capsys.readouterr().err


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plan.png"
    assert run(["plan", "jobs:train_tiny", "--device", "cpu:1GiB@2GB/s", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_its_name_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert (
        run(["plan", "jobs:train_tiny", "--device", "cpu:1GiB@2GB/s", "--plot", str(tmp_path / "x.png")]) == 2
    )
    assert "pip install 'superpipe_cluster[plot]'" in capsys.readouterr().err


def test_a_model_that_a_job_is_yet_to_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "jobs:generate_tiny", "--device", "cpu:1GiB@2GB/s"]) == 2
    assert "made by the job train_tiny" in capsys.readouterr().err

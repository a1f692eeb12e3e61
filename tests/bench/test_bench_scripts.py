"""The bench scripts run, on shapes so small that their figures mean nothing; what they say of equality must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_contender_has_a_row_and_the_exact_ones_are_exact(tmp_path: Path) -> None:
    workloads = ("vit-infer", "llama-train")
    shown = run(
        BENCH / "gpu", "--device", "cpu", "--tiny", "--in-process", "--out", tmp_path, "--only", *workloads
    )
    result = json.loads((tmp_path / "gpu-tiny-on-cpu.json").read_text())
    rows = result["rows"]
    contenders = {
        "standard",
        "accelerate cpu_offload",
        "diffusers group offload",
        "FSDP2 CPUOffloadPolicy",
        "ours",
    }
    for workload in workloads:
        assert contenders <= {row["contender"] for row in rows if row["workload"] == workload}
    for row in rows:
        assert "seconds" in row or row.get("not_here"), row
        assert row["equal"] if "seconds" in row and row["exact"] else True, row
    ours = [row for row in rows if row["contender"] == "ours"]
    assert {row["setting"].get("policy", "optimal") for row in ours} == {"naive", "sliding", "optimal"}
    assert all(row["loads_per_step"] > 0 for row in ours if "k" in row["setting"])
    for row in ours:
        if "budget" in row["setting"]:
            assert row["peak_bytes"] <= row["setting"]["budget"]
            assert row["seconds"] > 0
    training = [
        row for row in rows if row["workload"] == "llama-train" and row["contender"].startswith("accel")
    ]
    assert (
        "never changes the weights" in training[0]["not_here"] or "not installed" in training[0]["not_here"]
    )
    assert "| ours | policy=naive, k=3 |" in shown


def test_a_cell_that_dies_is_a_row_with_its_last_words(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(BENCH / 'gpu')!r})\n"
        "import runpy; from pathlib import Path\n"
        f"bench = runpy.run_path({str(BENCH / 'gpu' / '__main__.py')!r})\n"
        f"run = bench['Run']('tiny', 'cpu', Path({str(tmp_path)!r}), 1.0, in_process=False)\n"
        "print(run.rows_of('vit-infer', 'nobody'))\n"
    )
    shown = run("-c", script)
    assert "the process ended with 1: KeyError: 'nobody'" in shown


def test_copies_are_compared(tmp_path: Path) -> None:
    shown = run(
        BENCH / "batch_transfer.py",
        "--device",
        "cpu",
        "--quick",
        "--layers",
        "LoRA adapters",
        "--out",
        tmp_path,
    )
    rows = json.loads((tmp_path / "batch-transfer-cpu.json").read_text())["rows"]
    assert {row["k"] for row in rows} == {1, 2}
    assert all(speed > 0 for row in rows for speed in row["bytes_per_s"].values())
    assert "LoRA adapters" in shown

"""The scheduler's bench runs, on numbers so small that its figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_decisions_are_timed_and_drawn(tmp_path: Path) -> None:
    command = [sys.executable, BENCH / "scheduler.py", "--quick", "--only", "decide", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scheduler.json").read_text())
    (row,) = found["decide"]
    assert (row["waiting"], row["running"]) == (100, 100)
    assert 0 < row["decide_p50_s"] <= row["decide_p99_s"]
    assert found["about"]["commit"]
    assert (tmp_path / "scheduler.png").stat().st_size > 1000

"""The bench that holds forecasts against runs: its tables, and that its pieces add up. How far off it is depends on the
machine's other users, and is not for a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "forecast.py"
PROGRAM, OTHER = "declared twice, 64 rows, forward", "mlp, 512 rows, train"


def old_row(program: str) -> dict[str, object]:
    return {"table": "taught", "program": program, "peak_error": 0.2, "step_error": -0.3}


@pytest.mark.slow
def test_a_piece_of_the_bench_keeps_what_the_others_found(tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    path.write_text(json.dumps({"rows": [old_row(OTHER), old_row(PROGRAM), {"program": OTHER}]}))
    done = subprocess.run(
        [sys.executable, SCRIPT, "--only", PROGRAM, "--json", path],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    rows, kept = found["rows"][:-1], found["rows"][-1]
    assert kept == old_row(OTHER)
    assert [(row["table"], row["program"]) for row in rows] == [("declared", PROGRAM)] * 4
    assert all(abs(row["peak_error"]) <= 0.05 for row in rows)
    # Ten products of 64 x 128 x 512 and as many back, at 2 GFLOP/s: they cannot have been faster.
    assert all(row["step_s"] > 20 * 2 * 64 * 128 * 512 / 2e9 for row in rows)
    assert rows[0]["slowdown"] > 1.5
    assert (rows[0]["bound"], rows[-1]["bound"], rows[-1]["slowdown"]) == ("link", "compute", 1.0)
    assert [line.split(",")[0] for line in found["verdict"]] == ["declared: of 4 cases", "taught: of 1 cases"]
    assert "taught: of 1 cases, peak bytes within 5 %: 0, seconds within 10 %: 0" in done.stdout

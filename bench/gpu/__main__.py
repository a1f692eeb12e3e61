"""The paper's tables 1 to 4 and figure 2, and the rivals a user would pick, in one run on one machine.

    python bench/gpu [--quick | --full] [--only NAME ...] [--out FOLDER]
    python bench/gpu --device cpu --tiny     # the whole script on small shapes, to know that it works

For each workload: the whole model (`standard`) for its time and peak; the rivals; then ours over the paper's grid of k
and k', over byte budgets, and at the peak of each rival, which is the comparison at equal memory. Every cell is a
process of its own. What is not installed or fails is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cell
import torch
from contenders import CONTENDERS
from contenders.door import NotHere
from report import Row, compare, write
from workloads import WORKLOADS, Scale, Workload

_SHARES = {"tiny": (0.5,), "quick": (0.35, 0.6), "full": (0.25, 0.4, 0.55, 0.7, 0.85, 1.05)}
_MINUTES = {"tiny": 3.0, "quick": 7.5, "full": 120.0}
_CELL_S = {"tiny": 60.0, "quick": 75.0, "full": 1200.0}
_QUICK = ("vit-infer", "llama-infer", "sd-infer", "vit-train", "llama-train")
_RIVAL_PACKAGES = (
    "accelerate",
    "diffusers",
    "deepspeed",
    "roundpipe",
    "mmgp",
    "ramtorch",
    "torch",
    "transformers",
)


class Run:
    """One run of the bench: its cells, one after the other, within its time."""

    def __init__(self, scale: Scale, device: str, folder: Path, minutes: float, *, in_process: bool) -> None:
        self.rows: list[Row] = []
        self.samples: dict[str, Any] = {}
        self._scale: Scale = scale
        self._device = device
        self._folder = folder
        self._ends = time.monotonic() + 60 * minutes
        self._cells = 0
        self._in_process = in_process
        steps = {"tiny": (2, 2), "quick": (3, 5), "full": (4, 10)}[scale]
        self._common = {"scale": scale, "device": device, "warm_up": steps[0], "steps": steps[1]}

    def rows_of(
        self, workload: str | None, contender: str | None, settings: list[dict[str, Any]] | None = None
    ) -> list[Row]:
        """Run one process; its rows, and one that says why there are not more, if so."""
        self._cells += 1
        path = self._folder / f"{self._cells}.jsonl"
        request = {
            **self._common, "workload": workload, "contender": contender, "settings": settings, "rows": os.fspath(path)
        }  # fmt: skip
        limit = min(_CELL_S[self._scale], self._ends - time.monotonic())
        why = "no time was left in this mode" if limit < 1 else None
        if why is None and self._in_process:
            cell.run(request)
        elif why is None:
            why = self._in_own_process(request, limit)
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [*rows, {"setting": {}, "error": why}] if why else rows

    @staticmethod
    def _in_own_process(request: dict[str, Any], limit_s: float) -> str | None:
        command = [sys.executable, os.fspath(Path(__file__).with_name("cell.py")), json.dumps(request)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit_s:.0f} s"
        if done.returncode == 0:
            return None
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return f"the process ended with {done.returncode}: {last[0][:300]}"

    def machine(self) -> Row:
        """The link, each way."""
        row = self.rows_of(None, None)[0]
        if "error" in row:
            sys.exit(f"the machine could not be measured: {row['error']}")
        return row

    def add(self, workload: Workload, contender: str, rows: list[Row], notes: dict[str, str]) -> None:
        """Keep rows, with their names."""
        for row in rows:
            row |= {
                "workload": workload.name, "source": workload.source, "unit": workload.unit, "contender": contender,
                "exact": CONTENDERS[contender].exact, "note": notes.get(json.dumps(row["setting"]), ""),
            }  # fmt: skip
            if "sample" in row:
                self.samples[row["sample"]] = torch.load(row["sample"])
            self.rows.append(row)
            shown = (
                f"{row['seconds'] * 1e3:10.2f} ms"
                if "seconds" in row
                else row.get("not_here", row.get("error"))
            )
            print(f"{workload.name:12} {contender:24} {json.dumps(row['setting']):56} {shown}", flush=True)

    def workload(self, workload: Workload, rivals: list[str], machine: Row) -> None:
        """All cells of one workload."""
        peaks: dict[str, int] = {}
        for name in rivals:
            if name == "ours":
                continue
            try:
                CONTENDERS[name].check(workload)
            except NotHere as reason:
                self.add(workload, name, [{"setting": {}, "not_here": str(reason)}], {})
                continue
            rows = self.rows_of(workload.name, name)
            self.add(workload, name, rows, {})
            measured = [row["peak_allocated_bytes"] for row in rows if row.get("peak_allocated_bytes")]
            if measured and name != "cpu":
                peaks[name] = min(measured)
        if "ours" not in rivals:
            return
        budgets, notes = self._budgets(workload, peaks, machine)
        settings = CONTENDERS["ours"].settings(workload, self._scale)
        self.add(workload, "ours", self.rows_of(workload.name, "ours", budgets + settings), notes)

    def _budgets(
        self, workload: Workload, peaks: dict[str, int], machine: Row
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Budgets to try, and the rival at whose peak each is."""
        context, notes = machine["context_bytes"], {}
        if "standard" in peaks:
            whole = peaks["standard"]
        else:  # a device that counts nothing: the bytes of the weights, and of what training keeps beside them
            with torch.device("meta"):
                nbytes = sum(p.numel() * 4 for p in workload.build(self._scale).parameters())
            whole = nbytes * (4 if workload.train else 1) + (1 << 20)
        chosen = [int(share * whole) + context for share in _SHARES[self._scale]]
        budgets: list[dict[str, Any]] = [{"budget": budget} for budget in chosen]
        for name, peak in peaks.items():
            if name != "standard":
                budgets.append({"budget": peak + context})
                notes[json.dumps(budgets[-1])] = f"at the peak of {name}"
        return budgets, notes


def _about(scale: Scale) -> Row:
    versions = {}
    for package in _RIVAL_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "scale": scale,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="half of the layers, under 8 minutes (the default)"
    )
    size.add_argument("--full", action="store_true", help="the paper's shapes and its whole grid")
    size.add_argument("--tiny", action="store_true", help="small shapes")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", nargs="+", default=[], help="workloads and contenders to run")
    parser.add_argument("--minutes", type=float, help="stop starting cells after this")
    parser.add_argument("--in-process", action="store_true", help="all cells in this process, for a debugger")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    asked = parser.parse_args()
    scale: Scale = "tiny" if asked.tiny else "full" if asked.full else "quick"
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu --tiny runs the script without one")
    unknown = [name for name in asked.only if name not in WORKLOADS and name not in CONTENDERS]
    if unknown:
        sys.exit(f"no workload or contender is called {unknown[0]!r}: {', '.join([*WORKLOADS, *CONTENDERS])}")
    workloads = [n for n in asked.only if n in WORKLOADS] or list(_QUICK if scale == "quick" else WORKLOADS)
    contenders = [n for n in asked.only if n in CONTENDERS] or [
        name for name in CONTENDERS if name != "cpu" or scale == "full"
    ]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            scale, asked.device, Path(folder), asked.minutes or _MINUTES[scale], in_process=asked.in_process
        )
        machine = run.machine()
        for name in workloads:
            run.workload(WORKLOADS[name], contenders, machine)
        compare(run.rows, machine, run.samples)
    name = f"gpu-{scale}" if asked.device.startswith("cuda") else f"gpu-{scale}-on-cpu"
    print("\n" + write(asked.out, name, run.rows, _about(scale), machine))


if __name__ == "__main__":
    sys.exit(main())

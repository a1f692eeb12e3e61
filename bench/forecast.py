"""How true is the forecast? Peak bytes and seconds of a step, forecast and measured, on a virtual device with a link.

    python bench/forecast.py [--json FILE] [--only TEXT ...]

Each case is a program (model, batch, phase) in a budget. Three tables, which must not be confused:

`declared`: computation takes the time of a declared speed, as the link does, whoever else uses the machine
([Note: declared] in `forecast_programs`). The forecast is told nothing of it and times operators as always. What is
checked is all that the runtime adds to them: overlap, waiting, order, the optimizer, what operators cost beside.

`processor`: real arithmetic, in which the speed of this machine has its part: one that is one of several on its host
changes it by half from one minute to the next. Operators are timed in processor seconds, and the forecast is given the
share that a run got of the processor: its processor time over the clock, waiting for copies aside, times how fast the
processor was by a yardstick, the same arithmetic always, timed around operators and runs.

`taught`: the same runs, forecast as a cluster does from the second run of a program on: nothing is known of this
machine's speed but what a run in another budget has taught (`planning.corrections`). Every budget teaches all others.

With `--json`, what FILE has of programs that are not asked for is kept, so that the bench can be run in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from about import about
from forecast_programs import DECLARED, ON_THE_PROCESSOR, Program

from superpipe_cluster.planning import keep_correction
from superpipe_cluster.planning.forecast import ForecastRow
from superpipe_cluster.planning.machine_profile import MachineProfile
from superpipe_cluster.planning.measuring import measure_machine, time_operators
from superpipe_cluster.planning.planner import Planner
from superpipe_cluster.planning.record import record, streamed_optimizer
from superpipe_cluster.planning.trace import Trace
from superpipe_cluster.streaming import VirtualDevice, stream

TABLES = ("declared", "processor", "taught")
PEAK_WITHIN, SECONDS_WITHIN = 0.05, 0.10
WAYS = (0.1, 0.4, 0.75, 1.0)  # of the way from the smallest budget to the whole
WARM_UP, STEPS = 6, 6
#: On the processor all budgets of a program run in turn, so that a machine whose speed changes is on average as fast
#: for one as for the others.
TURNS = 4
PLACE = torch.device("cpu")


class Run:
    """A program in one budget, and the figures of its steps so far."""

    def __init__(self, program: Program, budget: int) -> None:
        self._program, self._budget = program, budget
        self._seconds: list[float] = []
        self._yardsticks_s: list[float] = []
        self._computed_s = self._used_s = 0.0
        self.peak_bytes = 0

    @property
    def step_s(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self._seconds)

    def turn(self) -> None:
        """Some steps more, and the yardstick before and after."""
        self._yardsticks_s.append(yardstick())
        probe = self._program.probe()
        device = VirtualDevice(link_bytes_per_s=self._program.link_bytes_per_s)
        with stream(probe.model, self._budget, device, activations=self._program.activations) as streamer:
            optimizer = streamed_optimizer(probe, streamer)
            for number in range(WARM_UP + STEPS):
                stall_s, used_s, began = streamer.stats().stall_s, time.thread_time(), time.perf_counter()
                probe.step()
                if optimizer is not None:
                    optimizer.step()
                    optimizer.zero_grad()
                taken_s = time.perf_counter() - began
                if number >= WARM_UP:
                    self._seconds.append(taken_s)
                    self._used_s += time.thread_time() - used_s
                    self._computed_s += taken_s - (streamer.stats().stall_s - stall_s)
            self.peak_bytes = max(self.peak_bytes, streamer.stats().peak_bytes)
        self._yardsticks_s.append(yardstick())

    def share(self, yardstick_s: float) -> float:
        """Of the processor, as it was when the yardstick took so long, that it got when it did not wait for a copy."""
        fast = yardstick_s / statistics.median(self._yardsticks_s)
        return min(1.0, self._used_s / self._computed_s) * fast


def yardstick() -> float:
    """Processor seconds of some arithmetic that is always the same: products, and passes over memory."""
    matrix, vector = torch.ones(256, 1024), torch.ones(4 << 20)
    seconds: list[float] = []
    with torch.no_grad():
        for _ in range(15):
            began = time.thread_time()
            matrix @ matrix.T
            vector.mul_(1.0)
            seconds.append(time.thread_time() - began)
    return statistics.median(seconds)


class Case:
    """A program with what a forecast of it needs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._trace: Trace = record(program.probe, activations=program.activations)
        self._profile: MachineProfile = measure_machine(PLACE)
        around = [yardstick()]
        time_operators(self._trace, self._profile, PLACE)
        self.yardstick_s = statistics.mean([*around, yardstick()])
        idle = self.planner()
        self.budgets = [idle.floor_bytes + int(way * (idle.whole_bytes - idle.floor_bytes)) for way in WAYS]

    def planner(self, share: float = 1.0) -> Planner:
        """As a forecast of it is made now."""
        link = self.program.link_bytes_per_s
        return Planner(self._trace, self._profile, link_bytes_per_s=link, share=share)

    def row(self, table: str, forecast: ForecastRow, run: Run, **more: Any) -> dict[str, Any]:
        """A forecast beside its run."""
        return {
            "table": table,
            "program": self.program.name,
            "budget_bytes": forecast.budget_bytes,
            **more,
            "forecast_peak_bytes": forecast.peak_bytes,
            "peak_bytes": run.peak_bytes,
            "peak_error": forecast.peak_bytes / run.peak_bytes - 1,
            "forecast_step_s": forecast.step_s,
            "step_s": run.step_s,
            "step_error": forecast.step_s / run.step_s - 1,
            "slowdown": forecast.slowdown,
            "bound": forecast.bound,
        }


def declared(program: Program) -> Iterator[dict[str, Any]]:
    """Rows of the first table."""
    case = Case(program)
    planner = case.planner()
    for budget in case.budgets:
        run = Run(program, budget)
        run.turn()
        yield case.row("declared", planner.row(budget), run)


def on_the_processor(program: Program) -> Iterator[dict[str, Any]]:
    """Rows of the two others."""
    case = Case(program)
    runs = {budget: Run(program, budget) for budget in case.budgets}
    for _ in range(TURNS):
        for run in runs.values():
            run.turn()
    for budget, run in runs.items():
        share = run.share(case.yardstick_s)
        yield case.row("processor", case.planner(share).row(budget), run, processor_share=share)
    first = case.planner()
    for teacher, taught_by in runs.items():
        keep_correction(first.fingerprint, first.row(teacher).step_s, taught_by.step_s)
        second = case.planner()
        for budget, run in runs.items():
            if budget != teacher:
                yield case.row("taught", second.row(budget), run, taught_by_bytes=teacher)


def verdict(rows: list[dict[str, Any]]) -> str:
    """What came of each table."""
    lines: list[str] = []
    for table in TABLES:
        errors = [abs(row["step_error"]) for row in rows if row["table"] == table]
        peaks = [abs(row["peak_error"]) <= PEAK_WITHIN for row in rows if row["table"] == table]
        if errors:
            within = sum(error <= SECONDS_WITHIN for error in errors)
            lines.append(
                f"{table}: of {len(errors)} cases, peak bytes within 5 %: {sum(peaks)}, seconds within 10 %: {within}; "
                f"seconds {100 * statistics.median(errors):.1f} % off in the median, {100 * max(errors):.1f} % at most"
            )
    return "\n".join(lines)


def write(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put `rows` in the place of those of the same programs in a file; all rows that are there then."""
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    anew = {row["program"] for row in rows}
    kept = [row for row in known if row["program"] not in anew and row.get("table") in TABLES]
    order = [program.name for program in (*DECLARED, *ON_THE_PROCESSOR)]
    rows = sorted([*kept, *rows], key=lambda row: (TABLES.index(row["table"]), order.index(row["program"])))
    head = about("virtual") | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    text = json.dumps({"about": head, "verdict": verdict(rows).splitlines(), "rows": rows}, indent=1)
    path.write_text(text + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="the programs whose names contain one of these"
    )
    asked = parser.parse_args()
    os.environ["SPCLUSTER_HOME"] = tempfile.mkdtemp()  # no corrections from earlier runs
    rows: list[dict[str, Any]] = []
    print(f"{'table':9} {'program':31} {'budget':>9} {'peak':>8} {'forecast':>10} {'step':>10} {'error':>8}")
    for programs, cases in ((DECLARED, declared), (ON_THE_PROCESSOR, on_the_processor)):
        for program in programs:
            if not any(text in program.name for text in asked.only):
                continue
            for row in cases(program):
                rows.append(row)
                print(
                    f"{row['table']:9} {row['program']:31} {row['budget_bytes'] / 2**20:5.1f} MiB "
                    f"{100 * row['peak_error']:+6.1f} % {1000 * row['forecast_step_s']:7.1f} ms "
                    f"{1000 * row['step_s']:7.1f} ms {100 * row['step_error']:+6.1f} %",
                    flush=True,
                )
    print(f"\n{verdict(write(asked.json, rows) if asked.json else rows)}")


if __name__ == "__main__":
    main()

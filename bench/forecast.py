"""How true is the forecast? Peak bytes and seconds of a step, forecast and measured, on a virtual device with a link.

    python bench/forecast.py [--json FILE] [--quick]

For each program (model, batch, phase) the operators are timed in processor seconds, and each budget is forecast and
run. What others take of the processor during a run is measured with it, and given to the forecast as the share that the
program got: its processor time over the clock, waiting for copies aside, times how fast the processor was. A machine
that is one of several on its host changes its speed by half from one minute to the next; so a yardstick, always the
same arithmetic, is timed around the operators and around every run, and the share is relative to the former.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from about import about
from torch import nn
from torch.nn import functional as F

from superpipe_cluster.planning import Probe
from superpipe_cluster.planning.measuring import measure_machine, time_operators
from superpipe_cluster.planning.planner import Planner
from superpipe_cluster.planning.record import record, streamed_optimizer
from superpipe_cluster.streaming import VirtualDevice, stream

PEAK_WITHIN, SECONDS_WITHIN = 0.05, 0.10
WARM_UP, STEPS = 6, 10
#: All budgets of a program are run this often in turn: a machine that others share changes its speed within seconds.
ROUNDS = 3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(x))))


class Mlp(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


class Convolutions(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels)
                )
                for _ in range(depth)
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = x + stage(x)
        return x


@dataclass(frozen=True)
class Program:
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    train: bool
    link_bytes_per_s: float

    def probe(self) -> Probe:
        model = self.build().train(self.train)
        batch = torch.zeros(self.shape)

        def step() -> None:
            with torch.set_grad_enabled(self.train):
                loss = model(batch).square().mean()
            if self.train:
                loss.backward()

        return Probe(model, step, (lambda own: torch.optim.AdamW(own)) if self.train else None)


PROGRAMS = [
    Program("mlp, 128 rows, forward", lambda: Mlp(512, 8), (128, 512), False, 1.5e9),
    Program("mlp, 512 rows, forward", lambda: Mlp(512, 8), (512, 512), False, 1.0e9),
    Program("mlp, 128 rows, train", lambda: Mlp(384, 8), (128, 384), True, 1.0e9),
    Program("mlp, 512 rows, train", lambda: Mlp(384, 8), (512, 384), True, 0.5e9),
    Program("transformer, 2x64, forward", lambda: Transformer(384, 8), (2, 64, 384), False, 1.0e9),
    Program("transformer, 4x128, train", lambda: Transformer(256, 6), (4, 128, 256), True, 0.5e9),
    Program("convolutions, 2 images, train", lambda: Convolutions(128, 8), (2, 128, 24, 24), True, 0.2e9),
]
WAYS = (0.1, 0.4, 0.75, 1.0)  # of the way from the smallest budget to the whole


@dataclass
class Run:
    """The steps of one budget so far."""

    seconds: list[float] = field(default_factory=list)
    yardsticks_s: list[float] = field(default_factory=list)
    computed_s: float = 0.0
    used_s: float = 0.0
    peak_bytes: int = 0

    def share(self, yardstick_s: float) -> float:
        """Of the processor, as it was when the yardstick took so long, that it got when it did not wait for a copy."""
        return min(1.0, self.used_s / self.computed_s) * yardstick_s / statistics.median(self.yardsticks_s)

    def more(self, program: Program, budget: int) -> None:
        """Some steps more."""
        self.yardsticks_s.append(yardstick())
        probe = program.probe()
        device = VirtualDevice(link_bytes_per_s=program.link_bytes_per_s)
        with stream(probe.model, budget, device) as streamer:
            optimizer = streamed_optimizer(probe, streamer)
            for number in range(WARM_UP + STEPS):
                stall_s, used_s, began = streamer.stats().stall_s, time.thread_time(), time.perf_counter()
                probe.step()
                if optimizer is not None:
                    optimizer.step()
                    optimizer.zero_grad()
                taken = time.perf_counter() - began
                if number >= WARM_UP:
                    self.seconds.append(taken)
                    self.used_s += time.thread_time() - used_s
                    self.computed_s += taken - (streamer.stats().stall_s - stall_s)
            self.peak_bytes = max(self.peak_bytes, streamer.stats().peak_bytes)
        self.yardsticks_s.append(yardstick())


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


def cases(program: Program) -> Iterator[dict[str, Any]]:
    """Every budget of one program, forecast and measured."""
    place = torch.device("cpu")
    trace = record(program.probe)
    profile = measure_machine(place)
    around = [yardstick()]
    time_operators(trace, profile, place)
    around.append(yardstick())
    idle = Planner(trace, profile, link_bytes_per_s=program.link_bytes_per_s)
    budgets = [idle.floor_bytes + int(way * (idle.whole_bytes - idle.floor_bytes)) for way in WAYS]
    runs = {budget: Run() for budget in budgets}
    for _ in range(ROUNDS):
        for budget, run in runs.items():
            run.more(program, budget)
    for budget, run in runs.items():
        share = run.share(statistics.mean(around))
        row = Planner(trace, profile, link_bytes_per_s=program.link_bytes_per_s, share=share).row(budget)
        step_s = statistics.median(run.seconds)
        yield {
            "program": program.name,
            "budget_bytes": budget,
            "processor_share": share,
            "forecast_peak_bytes": row.peak_bytes,
            "peak_bytes": run.peak_bytes,
            "peak_error": row.peak_bytes / run.peak_bytes - 1,
            "forecast_step_s": row.step_s,
            "step_s": step_s,
            "step_error": row.step_s / step_s - 1,
            "slowdown": row.slowdown,
            "bound": row.bound,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="the first two programs only")
    asked = parser.parse_args()
    os.environ["SPCLUSTER_HOME"] = tempfile.mkdtemp()  # no corrections from earlier runs
    rows: list[dict[str, Any]] = []
    print(f"{'program':31} {'budget':>9} {'peak':>8} {'share':>5} {'forecast':>10} {'step':>10} {'error':>8}")
    for program in PROGRAMS[:2] if asked.quick else PROGRAMS:
        for row in cases(program):
            rows.append(row)
            print(
                f"{row['program']:31} {row['budget_bytes'] / 2**20:5.1f} MiB {100 * row['peak_error']:+6.1f} % "
                f"{row['processor_share']:5.2f} {1000 * row['forecast_step_s']:7.1f} ms {1000 * row['step_s']:7.1f} ms "
                f"{100 * row['step_error']:+6.1f} %",
                flush=True,
            )
    peaks = sum(abs(row["peak_error"]) <= PEAK_WITHIN for row in rows)
    seconds = sum(abs(row["step_error"]) <= SECONDS_WITHIN for row in rows)
    median = statistics.median(abs(row["step_error"]) for row in rows)
    print(
        f"\nof {len(rows)} cases, peak bytes within 5 %: {peaks}; seconds within 10 %: {seconds}; "
        f"median error of seconds {100 * median:.1f} %"
    )
    if asked.json:
        asked.json.write_text(
            json.dumps(
                {
                    "about": about("virtual")
                    | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]},
                    "rows": rows,
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()

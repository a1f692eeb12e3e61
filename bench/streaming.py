"""How close does each policy come to the best possible time? The real engine on a virtual device.

    python bench/streaming.py [--quick] [--out FOLDER]

A model of equal units whose computation is a sleep, over a link that takes its time: what is measured is how the copies
of the runtime hide behind the computation. Every figure is a ratio within one run: the median time of a step over the
lower bound `max(computation, unavoidable loads * time of a load)`. The computation is the measured step of the whole
model on the device; unavoidable are n - k + 1 loads for a forward pass and 2 (n - k) for forward and backward (frozen
weights: loads are all that crosses the link).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from about import about
from torch import nn

from superpipe_cluster.streaming import PolicyName, VirtualDevice, stream

UNITS = 32
UNIT_BYTES = 256 << 10
COMPUTE_S = 0.012  # of a unit, in each direction
OPERATORS = 32  # of a unit that read its weights
LOADS_OVER_COMPUTE = {"compute-bound": 0.4, "balanced": 1.0, "link-bound": 3.0}
POLICIES: tuple[PolicyName, ...] = ("naive", "sliding", "optimal")
KS, QUICK_KS = (2, 3, 8, 16, 24), (2, 16)
#: Steps before the measured ones: the order is learned in the first, and how far to look ahead in the next few.
WARM_UP, STEPS = 6, 4


class Pause(torch.autograd.Function):
    """Computes nothing for a while, in forward and in backward, reading its weight all the time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        _compute(weight)
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        _compute(weight)
        return gradients[0] * 1.0, None


def _compute(weight: torch.Tensor) -> None:
    ends = time.perf_counter() + COMPUTE_S
    for operator in range(1, OPERATORS + 1):
        weight[:1].sum()
        time.sleep(max(0.0, ends - COMPUTE_S * (1 - operator / OPERATORS) - time.perf_counter()))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()  # a block is a module with modules inside
        self.inner.weight = nn.Parameter(torch.ones(UNIT_BYTES // 4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Pause.apply(x, self.inner.weight)


def measure(policy: PolicyName, k: int, load_s: float, *, train: bool) -> dict[str, float]:
    """Median seconds of a step, and loads per step."""
    model = nn.Sequential(*[Block() for _ in range(UNITS)])
    device = VirtualDevice(link_bytes_per_s=UNIT_BYTES / load_s)
    seconds, loads = [], []
    with stream(model, k=k, policy=policy, device=device) as streamer:
        assert streamer.stats().units == UNITS
        for _ in range(WARM_UP + STEPS):
            before, began = streamer.stats().loads, time.perf_counter()
            out = model(torch.ones(4, requires_grad=train))
            if train:
                out.sum().backward()
            seconds.append(time.perf_counter() - began)
            loads.append(streamer.stats().loads - before)
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "loads": statistics.mean(loads[WARM_UP:]),
    }


def fewest_loads(k: int, *, train: bool) -> int:
    return 2 * (UNITS - k) if train else UNITS - k + 1


def rows(ks: tuple[int, ...]) -> list[dict[str, Any]]:
    found = []
    print(f"{'phase':8}{'bound by':14}{'k':>4}" + "".join(f"{policy:>17}" for policy in POLICIES))
    for phase in ("forward", "train"):
        train = phase == "train"
        compute_s = measure("whole", UNITS, COMPUTE_S / 100, train=train)["seconds"]
        for name, ratio in LOADS_OVER_COMPUTE.items():
            for k in ks:
                cells = []
                for policy in POLICIES:
                    figures = measure(policy, k, ratio * COMPUTE_S, train=train)
                    least = fewest_loads(k, train=train)
                    over = figures["seconds"] / max(compute_s, least * ratio * COMPUTE_S)
                    found.append(
                        {
                            "phase": phase,
                            "bound_by": name,
                            "k": k,
                            "policy": policy,
                            **figures,
                            "over_bound": over,
                            "fewest_loads": least,
                        }
                    )
                    cells.append(f"{over:8.3f} ({figures['loads']:4.1f})")
                print(f"{phase:8}{name:14}{k:4}" + "".join(f"{cell:>17}" for cell in cells), flush=True)
    return found


def verdict(found: list[dict[str, Any]]) -> str:
    """The figures that the runtime is held to."""
    at = {(row["phase"], row["bound_by"], row["k"], row["policy"]): row for row in found}
    optimal = [row for row in found if row["policy"] == "optimal"]
    worst = max((row for row in optimal if row["k"] >= 3), key=lambda row: row["over_bound"])
    worst_2 = max((row for row in optimal if row["k"] == 2), key=lambda row: row["over_bound"])
    slower = [
        row
        for row in optimal
        if row["seconds"] > 1.01 * at[row["phase"], row["bound_by"], row["k"], "sliding"]["seconds"]
    ]
    half = {policy: at["forward", "link-bound", UNITS // 2, policy]["seconds"] for policy in POLICIES}
    return "\n".join(
        [
            f"optimal over the bound, worst at k >= 3: {worst['over_bound']:.3f} "
            f"({worst['phase']}, {worst['bound_by']}, k={worst['k']}); at k = 2: {worst_2['over_bound']:.3f}",
            f"optimal slower than sliding by more than 1 %: {len(slower)} of {len(optimal)} cases",
            f"forward, link-bound, k = n/2: {half['sliding'] / half['optimal']:.2f} times as fast as sliding "
            f"and {half['naive'] / half['optimal']:.2f} times as fast as naive",
        ]
    )


def plot(found: list[dict[str, Any]], path: Path) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    phases = list(dict.fromkeys(row["phase"] for row in found))
    figure, axes = pyplot.subplots(
        len(phases), len(LOADS_OVER_COMPUTE), figsize=(11, 6), sharex=True, squeeze=False
    )
    for phase, line in zip(phases, axes, strict=True):
        for name, axis in zip(LOADS_OVER_COMPUTE, line, strict=True):
            for policy in POLICIES:
                group = [
                    row
                    for row in found
                    if (row["phase"], row["bound_by"], row["policy"]) == (phase, name, policy)
                ]
                axis.plot(
                    [row["k"] for row in group], [row["over_bound"] for row in group], "o-", label=policy
                )
            axis.axhline(1.0, color="grey", linewidth=0.8)
            axis.set(title=f"{phase}, {name}", yscale="log")
    axes[-1][0].set(xlabel=f"k of {UNITS} units", ylabel="time / lower bound")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two sizes of the window")
    parser.add_argument("--out", type=Path, help="folder for streaming-virtual.json and .png")
    asked = parser.parse_args()
    found = rows(QUICK_KS if asked.quick else KS)
    print(f"\ntime over the lower bound (loads per step), {UNITS} units; 1.00 is the best possible")
    print(verdict(found))
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        path = asked.out / "streaming-virtual.json"
        path.write_text(
            json.dumps({"about": about("virtual"), "verdict": verdict(found), "rows": found}, indent=1) + "\n"
        )
        plot(found, path.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())

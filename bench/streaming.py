"""How close does each policy come to the best possible time? The real engine on a virtual device.

    python bench/streaming.py [--json FILE]

A model of equal units whose computation is a sleep, over a link that takes its time: what is measured is how the copies
of the runtime hide behind the computation. Every figure is a ratio within one run: the median time of a step over the
lower bound `max(computation, unavoidable loads * time of a load)`, unavoidable being n - k + 1 loads for a forward pass
and 2 (n - k) for forward and backward (frozen weights: loads are all that crosses the link).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from superpipe_cluster.streaming import PolicyName, VirtualDevice, stream

UNITS = 12
UNIT_BYTES = 1 << 20
COMPUTE_S = 0.008
WARM_UP, STEPS = 3, 9
LOADS_OVER_COMPUTE = {"compute-bound": 0.4, "balanced": 1.0, "link-bound": 3.0}


class Pause(torch.autograd.Function):
    """Computes nothing for a while, in forward and in backward."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        weight[:1].sum()  # the read that the runtime must serve
        time.sleep(COMPUTE_S)
        return x * 1.0

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (weight,) = ctx.saved_tensors
        weight[:1].sum()
        time.sleep(COMPUTE_S)
        return gradient * 1.0, None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()  # a block is a module with modules inside
        self.inner.weight = nn.Parameter(torch.ones(UNIT_BYTES // 4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Pause.apply(x, self.inner.weight)


def measure(policy: PolicyName, k: int, load_s: float, train: bool) -> dict[str, float]:
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
    passes = 2 if train else 1
    fewest = 2 * (UNITS - k) if train else (UNITS - k + 1 if k < UNITS else 0)
    bound_s = max(passes * UNITS * COMPUTE_S, fewest * load_s)
    return {
        "over_bound": statistics.median(seconds[WARM_UP:]) / bound_s,
        "loads": statistics.mean(loads[WARM_UP:]),
        "fewest_loads": fewest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    asked = parser.parse_args()
    rows = []
    print(
        f"{'phase':8} {'bound by':14} {'k':>3}   "
        + "".join(f"{policy:>16}" for policy in ("naive", "sliding", "optimal"))
    )
    for phase in ("forward", "train"):
        for name, ratio in LOADS_OVER_COMPUTE.items():
            for k in (2, 4, 8):
                cells = []
                for policy in ("naive", "sliding", "optimal"):
                    figures = measure(policy, k, ratio * COMPUTE_S, phase == "train")
                    rows.append({"phase": phase, "bound_by": name, "k": k, "policy": policy, **figures})
                    cells.append(f"{figures['over_bound']:6.2f} ({figures['loads']:4.1f})")
                print(f"{phase:8} {name:14} {k:3}   " + "".join(f"{cell:>16}" for cell in cells), flush=True)
    print(f"\ntime over the lower bound (loads per step), {UNITS} units; 1.00 is the best possible")
    if asked.json:
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": "virtual",
            "commit": subprocess.run(
                ["git", "rev-parse", "HEAD"], capture_output=True, text=True
            ).stdout.strip(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        asked.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

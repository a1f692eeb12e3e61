"""What does streaming cost a model that needs none of it? Everything on the device, against the plain model.

    python bench/overhead.py [--out FOLDER]

Llama layers of a few sizes, one thread. Plain and streamed steps take turns, and the figure is the median of the ratios
of neighbours, so whatever else the machine does weighs on both. Two cases: `at rest` (no budget: the read guard leaves
once nothing moves any more) and `watched` (a budget in bytes, which a virtual device can only keep by seeing every
operator; on a GPU the allocator keeps it).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from about import about
from transformers import LlamaConfig, LlamaForCausalLM

from superpipe_cluster.streaming import stream

LAYERS = 4
SIZES = ((256, 64), (512, 64), (512, 256), (768, 128))  # hidden size, tokens
WARM_UP, PAIRS = 5, 25


def build(hidden: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            vocab_size=512,
            max_position_embeddings=512,
        )
    )


def seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def compare(hidden: int, tokens: int, phase: str, budget: int | None) -> dict[str, Any]:
    """Median seconds of the plain step, and the median ratio of the streamed one over it."""
    plain = build(hidden)
    streamed = copy.deepcopy(plain)
    batch = torch.randint(512, (1, tokens), generator=torch.Generator().manual_seed(0))

    def step_of(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        def forward() -> None:
            with torch.no_grad():
                model(input_ids=batch)

        def train() -> None:
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return forward if phase == "forward" else train

    with stream(streamed, budget) as streamer:
        steps = (
            step_of(plain, torch.optim.AdamW(plain.parameters())),
            step_of(streamed, streamer.optimizer(torch.optim.AdamW)),
        )
        for step in steps:
            for _ in range(WARM_UP):
                step()
        alone, ratios = [], []
        for number in range(PAIRS):
            order = (0, 1) if number % 2 else (1, 0)
            times = {which: seconds(steps[which]) for which in order}
            alone.append(times[0])
            ratios.append(times[1] / times[0])
    return {
        "hidden": hidden,
        "tokens": tokens,
        "phase": phase,
        "case": "at rest" if budget is None else "watched",
        "unit_ms": 1000 * statistics.median(alone) / LAYERS,
        "over_plain": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for overhead-cpu.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(
        f"{'hidden':>6}{'tokens':>8}  {'phase':8}{'ms per layer':>13}  {'case':9}streamed / plain (quartiles)"
    )
    for hidden, tokens in SIZES:
        for phase in ("forward", "train"):
            for budget in (None, 8 << 30):
                row = compare(hidden, tokens, phase, budget)
                rows.append(row)
                low, high = row["quartiles"]
                print(
                    f"{hidden:6}{tokens:8}  {phase:8}{row['unit_ms']:13.1f}  {row['case']:9}"
                    f"{row['over_plain']:6.3f} ({low:.3f} to {high:.3f})",
                    flush=True,
                )
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "overhead-cpu.json").write_text(
            json.dumps({"about": about("cpu, one thread"), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())

"""Runs seeds, and prints those that break something with the command that shows how.

PYTHONPATH=tests python -m simulation --seeds 2000 [--first 0] [--events 1000] [--processes 2]
PYTHONPATH=tests python -m simulation --seed 17 [--trace]
PYTHONPATH=tests python -m simulation --planted tests/simulation/PLANTED.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from simulation import planted
from simulation.run import Outcome


def main() -> int:
    """The exit code: 1 when something was broken."""
    parser = argparse.ArgumentParser(prog="simulation", description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--events", type=int, default=1000, help="with faults, before the quiet end")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true", help="print what happens in it")
    parser.add_argument("--plant", choices=sorted(planted.BUGS), help="with this bug in")
    parser.add_argument("--planted", type=Path, help="write the table of which seed catches which bug")
    asked = parser.parse_args()
    if asked.planted is not None:
        asked.planted.write_text(planted.table(asked.processes), encoding="utf-8")
        return 0
    if asked.seed is not None:
        return _one(asked.seed, asked.events, asked.plant, trace=asked.trace)
    return _many(range(asked.first, asked.first + asked.seeds), asked.events, asked.plant, asked.processes)


def _one(seed: int, events: int, plant: str | None, *, trace: bool) -> int:
    outcome = planted.run_with(plant, seed, events, print if trace else None)
    print(f"seed {seed}: {outcome.broken or 'all is well'} ({outcome.events} events, {outcome.jobs})")
    print(f"digest {outcome.digest}")
    return 1 if outcome.broken else 0


def _many(seeds: range, events: int, plant: str | None, processes: int) -> int:
    began = time.monotonic()
    total, ends, broken = 0, Counter[str](), 0
    # Started anew rather than forked, and with one hash seed: the order of a set is part of a trace.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for outcome in pool.imap(partial(planted.run_with, plant, events=events), seeds, chunksize=8):
            total += outcome.events
            ends.update(outcome.jobs)
            if outcome.broken is not None:
                broken += 1
                print(f"{outcome.broken}\n    {_replay(outcome, events, plant)}", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{len(seeds)} seeds, {total} events, {sum(ends.values())} jobs {dict(ends)}, {seconds:.0f} s: {broken} broken"
    )
    return 1 if broken else 0


def _replay(outcome: Outcome, events: int, plant: str | None) -> str:
    planting = f" --plant {plant}" if plant else ""
    return f"PYTHONPATH=tests python -m simulation --seed {outcome.seed} --events {events}{planting} --trace"


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of a set of strings is part of a trace, and is another one in every process unless this is set.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]])
    sys.exit(main())

"""Does sharing pay? A lab's week under exclusive FIFO, a static split, and this scheduler, without and with elasticity.

    python bench/night.py [--quick] [--out bench/results]

Replays the jobs of `lab_week.py` in virtual time (`lab_replay.py`). The last two contenders are the real
`scheduling.decide`. What is simulated is the speed of jobs that share a device: [Note: sources] in `lab_week.py` says
what that and the jobs are taken from, and the sensitivity rows change one of these assumptions at a time.

Exclusive FIFO gives a job the whole device, as Slurm does without shards, and streams what is larger than that. The
static split cuts each device into four equal parts; a job gets as many as its smallest workable budget needs, first
come first served. The same jobs arrive in all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from about import about
from lab_replay import CONTENDERS, Replay
from lab_week import DEVICE_BYTES, HOUR_S, Assumptions, week

#: A run shorter than this counts as this long where its completion is compared with it, or seconds would rule.
SHORT_S = 600.0
BASE = Assumptions()
#: One assumption changed at a time.
SENSITIVITY = {
    "jobs keep the GPU busy 25 % of the time": Assumptions(busy=0.25),
    "jobs keep the GPU busy 80 % of the time": Assumptions(busy=0.8),
    "sharing costs 30 % of the GPU": Assumptions(shared=0.7),
    "half as much work arrives": Assumptions(load=0.75),
    "everybody asks for a max_slowdown of 2": Assumptions(max_slowdown=2.0),
    "transfers take twice as long": Assumptions(link=1.2),
    "transfers take four times as long": Assumptions(link=2.4),
}
SENSITIVE_WEEKS = range(3)
#: Devices -> seeds.
WEEKS = {1: range(6), 8: range(1)}
QUICK_WEEKS = {1: range(2)}
FIGURES = (
    "makespan_s",
    "mean_s",
    "p95_s",
    "waiting_s",
    "byte_utilisation",
    "gpu_utilisation",
    "jain",
    "worst_ratio",
)


def measure(seed: int, devices: int, contender: str, assumed: Assumptions) -> dict[str, Any]:
    """The figures of one week under one contender."""
    jobs = week(seed, devices, assumed)
    decider, elastic = CONTENDERS[contender]
    replay = Replay(jobs, devices, decider, elastic=elastic, assumed=assumed)
    replay.run()
    took = {job.number: replay.ended_s[str(job.number)] - job.submitted_s for job in jobs}
    waited = [replay.started_s[str(job.number)] - job.submitted_s for job in jobs]
    late = [max(took[job.number], SHORT_S) / max(job.alone_s, SHORT_S) for job in jobs]
    makespan_s = max(replay.ended_s.values()) - jobs[0].submitted_s
    speeds: dict[str, list[float]] = {}
    for job, ratio in zip(jobs, late, strict=True):
        speeds.setdefault(job.user, []).append(1.0 / ratio)
    return {
        "seed": seed,
        "devices": devices,
        "contender": contender,
        **asdict(assumed),
        "jobs": len(jobs),
        "makespan_s": makespan_s,
        "mean_s": statistics.mean(took.values()),
        "p95_s": statistics.quantiles(took.values(), n=20)[-1],
        "waiting_s": statistics.mean(waited),
        "byte_utilisation": replay.useful_byte_s / (devices * DEVICE_BYTES * makespan_s),
        "gpu_utilisation": replay.busy_s / (devices * makespan_s),
        "jain": _jain([statistics.mean(user) for user in speeds.values()]),
        "worst_ratio": max(late),
        "violations": replay.violations,
        "resizes": replay.resizes,
        "preemptions": replay.preemptions,
        "decide_p99_ms": 1e3 * sorted(replay.decide_s)[int(0.99 * (len(replay.decide_s) - 1))],
    }


def _jain(values: Sequence[float]) -> float:
    """1.0 when all users get on equally well, 1/n when one does."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


# ---- the report ----------------------------------------------------------------------------------------------


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over weeks; violations, resizes and preemptions are summed."""
    means = {name: statistics.mean(row[name] for row in rows) for name in FIGURES}
    sums = {name: sum(row[name] for row in rows) for name in ("jobs", "violations", "resizes", "preemptions")}
    return {**means, **sums, "decide_p99_ms": max(row["decide_p99_ms"] for row in rows)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All contenders, one line each."""
    lines = [
        f"{'devices':>7} {'contender':15} {'jobs':>6} {'makespan':>9} {'mean':>7} {'p95':>8} {'waiting':>8} "
        f"{'bytes':>6} {'GPU':>5} {'Jain':>5} {'worst':>7} {'over':>5} {'resized':>8} {'preempted':>9}"
    ]
    for devices, contender in dict.fromkeys((row["devices"], row["contender"]) for row in rows):
        of = summary([row for row in rows if (row["devices"], row["contender"]) == (devices, contender)])
        lines.append(
            f"{devices:7} {contender:15} {of['jobs']:6.0f} {of['makespan_s'] / HOUR_S:7.1f} h "
            f"{of['mean_s'] / HOUR_S:5.2f} h {of['p95_s'] / HOUR_S:6.2f} h {of['waiting_s'] / HOUR_S:6.2f} h "
            f"{of['byte_utilisation']:6.2f} {of['gpu_utilisation']:5.2f} {of['jain']:5.2f} {of['worst_ratio']:7.1f} "
            f"{of['violations']:5.0f} {of['resizes']:8.0f} {of['preemptions']:9.0f}"
        )
    return "\n".join(lines)


def against_fifo(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many times better ours is than exclusive FIFO; more than 1 is better."""
    fifo = summary([row for row in rows if row["contender"] == "exclusive FIFO"])
    ours = summary([row for row in rows if row["contender"] == "ours"])
    times = {name: fifo[name] / ours[name] for name in ("mean_s", "makespan_s", "p95_s", "worst_ratio")}
    return {**times, "jain": ours["jain"] / fifo["jain"], "violations": ours["violations"]}


def verdict(rows: Sequence[dict[str, Any]], sensitivity: dict[str, list[dict[str, Any]]]) -> str:
    """What the scheduler is held to: 1.5 in mean completion, 1.3 in makespan, fairness no worse, no violation."""
    groups = {
        f"{devices} GPU": [row for row in rows if row["devices"] == devices] for devices in _devices(rows)
    }
    groups.update({f"1 GPU, {name}": found for name, found in sensitivity.items()})
    lines = ["ours against exclusive FIFO, times better:"]
    for name, group in groups.items():
        of = against_fifo(group)
        is_fair = of["jain"] >= 1.0 and of["worst_ratio"] >= 1.0
        holds = of["mean_s"] >= 1.5 and of["makespan_s"] >= 1.3 and is_fair and not of["violations"]
        lines.append(
            f"  {name:50} mean completion {of['mean_s']:5.2f}, makespan {of['makespan_s']:4.2f}, "
            f"p95 {of['p95_s']:5.2f}, Jain {of['jain']:4.2f}, worst ratio {of['worst_ratio']:5.2f}: "
            f"{'holds' if holds else 'does not hold'}"
        )
    return "\n".join(lines)


def _devices(rows: Sequence[dict[str, Any]]) -> list[int]:
    return list(dict.fromkeys(row["devices"] for row in rows))


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of four figures, by contender."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "mean_s": "mean completion, h",
        "p95_s": "p95 completion, h",
        "makespan_s": "makespan, h",
        "jain": "Jain index",
    }
    figure, axes = pyplot.subplots(
        len(_devices(rows)), len(shown), figsize=(13, 3 * len(_devices(rows))), squeeze=False
    )
    for devices, line in zip(_devices(rows), axes, strict=True):
        for (name, label), axis in zip(shown.items(), line, strict=True):
            values = [
                summary([row for row in rows if (row["devices"], row["contender"]) == (devices, contender)])[
                    name
                ]
                for contender in CONTENDERS
            ]
            scale = HOUR_S if name.endswith("_s") else 1.0
            axis.bar(
                list(CONTENDERS),
                [value / scale for value in values],
                color=["grey", "silver", "tab:cyan", "tab:blue"],
            )
            axis.set(title=f"{devices} GPU: {label}")
            axis.tick_params(axis="x", rotation=20, labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(
    rows: Sequence[dict[str, Any]], sensitivity: dict[str, list[dict[str, Any]]], out: Path | None
) -> None:
    """Print what was found, and keep it."""
    print(table(rows))
    print(verdict(rows, sensitivity), flush=True)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "about": about("simulated"),
        "verdict": verdict(rows, sensitivity),
        "rows": rows,
        "sensitivity": sensitivity,
    }
    (out / "night.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, out / "night.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two weeks of one GPU, no sensitivity")
    parser.add_argument("--out", type=Path, help="folder for night.json and .png")
    asked = parser.parse_args()
    sensitivity: dict[str, list[dict[str, Any]]] = {}
    for name, assumed in () if asked.quick else SENSITIVITY.items():
        contenders = ("exclusive FIFO", "ours")
        sensitivity[name] = [
            measure(seed, 1, each, assumed) for seed in SENSITIVE_WEEKS for each in contenders
        ]
    rows: list[dict[str, Any]] = []
    for devices, seeds in (QUICK_WEEKS if asked.quick else WEEKS).items():
        for seed in seeds:
            rows += [measure(seed, devices, contender, BASE) for contender in CONTENDERS]
            print(f"{devices} GPU, week {seed}: {rows[-1]['jobs']} jobs", file=sys.stderr, flush=True)
        report(rows, sensitivity, asked.out)


if __name__ == "__main__":
    main()

"""What was measured of a job beside what was forecast: peak, seconds and loads of a step, slowdown.

Owns these lines of `spcluster show`. The forecast itself is the plan's.
"""

from __future__ import annotations

from collections.abc import Iterator

from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.cli import render, story
from superpipe_cluster.planning import Plan


def against(job: JobDetail, now: float) -> Iterator[tuple[str, str]]:
    """Label and text of every line, with the error of the forecast where the two are of the same budget."""
    try:
        forecast = Plan.from_dict(job.plan).forecast if job.plan else None
    except (KeyError, TypeError):  # a head of another version plans in other words
        forecast = None
    row = forecast.at(job.budget_bytes or job.budget_max_bytes) if forecast is not None else None
    peak = f"{render.size(job.peak_bytes)}, {job.peak_units} units" if job.peak_bytes else ""
    # The forecast of other kinds is of their longest step: how far off it is says nothing.
    step_s = job.step_s if job.kind == "train" else None
    if forecast is None or row is None:
        yield "peak", peak
        yield "pace", f"{render.seconds(job.step_s)} per step" if job.step_s else ""
        return
    steady = job.budget_bytes is not None and not story.last_resize(job.events, now)
    yield (
        "peak",
        _beside(peak, job.peak_bytes, render.size(row.peak_bytes), row.peak_bytes, comparable=steady),
    )
    pace = f"{render.seconds(step_s)} per step" if step_s else ""
    # The pace is that of the latest steps, and so of this budget, as long as there is one.
    holds = job.budget_bytes is not None
    yield "pace", _beside(pace, step_s or 0.0, render.seconds(row.step_s), row.step_s, comparable=holds)
    # Later attempts count their own loads, from a step that nobody knows.
    measured = job.loads / job.step if step_s and job.attempt == 1 and job.step else 0.0
    loads = f"{measured:.1f} per step" if measured else ""
    yield (
        "loads",
        _beside(loads, measured, f"{row.loads_per_step:.1f}", row.loads_per_step, comparable=steady),
    )
    slower = (
        f"{render.slowdown(step_s / forecast.whole_step_s)}; " if step_s and forecast.whole_step_s else ""
    )
    yield "slowdown", f"{slower}forecast {render.slowdown(row.slowdown)}"


def _beside(measured: str, value: float, foreseen: str, forecast: float, *, comparable: bool) -> str:
    if not measured:
        return f"forecast {foreseen}"
    if not comparable:
        return f"{measured}, at other budgets too; forecast {foreseen}"
    return f"{measured}; forecast {foreseen} ({100 * (forecast / value - 1):+.1f} %)"

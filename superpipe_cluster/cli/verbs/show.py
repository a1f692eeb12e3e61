"""`spcluster show`: all about one job."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from superpipe_cluster.api.views import EventView, JobDetail
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.planning import Plan


@click.command("show")
@click.argument("ref", metavar="ID|NAME")
@output_option
def command(ref: str, as_json: bool) -> None:
    """Show all about a job.

    Of your own jobs, and for admins of everybody's.
    """
    with open_client() as client:
        job = client.show(ref)
    if as_json:
        render.print_json(job.model_dump(mode="json"))
        return
    render.facts(_facts(job))
    if job.events:
        click.echo()
        render.facts((render.clock_time(event.at), _story(event)) for event in job.events)


def _facts(job: JobDetail) -> Iterator[tuple[str, str]]:
    yield "job", f"{job.id}  {job.name}  ({job.kind}, {job.user})"
    yield "state", render.state(job).plain + (f": {job.message}" if job.message else "")
    if job.stop_asked and not job.is_over:
        yield "stopping", job.stop_asked
    yield "attempt", f"{job.attempt} of {job.max_attempts}" if job.attempt else ""
    yield "after", ", ".join(job.after)
    yield "priority", {-1: "low", 1: "high"}.get(job.priority, "")
    yield "worker", job.worker
    yield "device", job.device or ""
    given = f"{render.size(job.budget_bytes)} of " if job.budget_bytes else ""
    yield (
        "budget",
        f"{given}{render.span(job.budget_min_bytes, job.budget_max_bytes)}" if job.budget_max_bytes else "",
    )
    yield "window", f"k = {'?' if job.k is None else job.k} of {job.units} units" if job.units else ""
    yield (
        "model",
        f"{render.size(job.model_bytes)}, {render.size(job.host_bytes)} of RAM" if job.model_bytes else "",
    )
    yield from _against_forecast(job)
    yield "link", _link(job)
    yield "step", render.of(job.step, job.steps) if job.steps or job.step else ""
    yield "metrics", "  ".join(f"{name} {_figure(value)}" for name, value in sorted(job.metrics.items()))
    yield "first loss", _figure(job.first_loss) if job.first_loss is not None else ""
    yield "checkpoint", f"step {job.checkpoint_step}" if job.checkpoint_step is not None else ""
    yield "output", job.output or ""
    yield "submitted", render.clock_time(job.submitted_at)
    yield "started", render.clock_time(job.started_at)
    yield "ended", render.clock_time(job.ended_at)
    yield "ran for", render.duration(render.elapsed_s(job, time.time())) if job.started_at is not None else ""
    yield "limit", render.duration(job.time_limit_s)
    yield "exit code", "" if job.exit_code is None else str(job.exit_code)


def _against_forecast(job: JobDetail) -> Iterator[tuple[str, str]]:
    """Peak, and seconds and loads of a step: measured, forecast, and the error of the forecast."""
    try:
        forecast = Plan.from_dict(job.plan).forecast if job.plan else None
    except (KeyError, TypeError):  # a head of another version plans in other words
        forecast = None
    row = forecast.at(job.budget_bytes or job.budget_max_bytes) if forecast is not None else None
    peak = f"{render.size(job.peak_bytes)}, {job.peak_units} units" if job.peak_bytes else ""
    if row is None:
        yield "peak", peak
        yield "pace", f"{render.seconds(job.step_s)} per step" if job.step_s else ""
        return
    yield "peak", _compared(peak, job.peak_bytes, render.size(row.peak_bytes), row.peak_bytes)
    # What a generating job calls a step is a prompt, and the forecast's is one forward.
    step_s = job.step_s if job.kind == "train" else None
    pace = f"{render.seconds(step_s)} per step" if step_s else ""
    yield "pace", _compared(pace, step_s or 0.0, render.seconds(row.step_s), row.step_s)
    # Later attempts count their own loads, from a step that nobody knows.
    measured = job.loads / job.step if step_s and job.attempt == 1 and job.step else 0.0
    loads = f"{measured:.1f} per step" if measured else ""
    yield "loads", _compared(loads, measured, f"{row.loads_per_step:.1f}", row.loads_per_step)
    yield "slowdown", f"forecast {render.slowdown(row.slowdown)}"


def _compared(measured: str, value: float, foreseen: str, forecast: float) -> str:
    if not measured:
        return f"forecast {foreseen}"
    return f"{measured}; forecast {foreseen} ({100 * (forecast / value - 1):+.1f} %)"


def _link(job: JobDetail) -> str:
    if not job.loads:
        return ""
    return f"{job.loads} loads, {render.size(job.link_bytes)}, waited {render.duration(job.stall_s)} for it"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"


def _story(event: EventView) -> str:
    if event.kind == "submitted":
        return event.kind  # what else it says stands above
    details: list[str] = []
    for key, value in event.data.items():
        # `to_...` is where the event left the job, which the next one shows.
        if not key.startswith("to_") and value not in (None, "", [], {}):
            details.append(f"{key.removesuffix('_bytes')}={_value(key, value)}")
    return f"{event.kind}  {' '.join(details)}".rstrip()


def _value(key: str, value: object) -> str:
    return render.size(value) if key.endswith("_bytes") and isinstance(value, int) else str(value)

"""`spcluster show`: all about one job."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

import click

from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.cli import forecasts, render, story, waiting
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.times import day_and_clock

_PRIORITIES = {-1: "low", 0: "normal", 1: "high", 2: "interactive"}
#: Of a long story, its end: an elastic job is resized many times.
_MOST_EVENTS = 20


@click.command("show")
@click.argument("ref", metavar="ID|NAME")
@output_option
def command(ref: str, as_json: bool) -> None:
    """Show all about a job.

    Of a waiting one, why it waits and when it is likely to start; of a running one, what it was shrunk or grown
    to and why, and what was measured beside what was forecast. Of your own jobs, and for admins of everybody's.

    \b
    Example:  spcluster show 12
    """
    with open_client() as client:
        job = client.show(ref)
        # Whoever looks at one task of an array wants to know of the others.
        others = client.queue(ended=True, user=job.user) if job.tasks and not as_json else []
    if as_json:
        render.print_json(job.model_dump(mode="json"))
        return
    tasks = Counter(other.state.lower() for other in others if other.array == job.array)
    render.facts(_facts(job, tasks, time.time()))
    if job.events:
        click.echo()
        earlier = len(job.events) - _MOST_EVENTS
        if earlier > 0:
            click.echo(f"({earlier} earlier; `spcluster show {job.id} -o json` has them all)")
        latest = job.events[-_MOST_EVENTS:]
        render.facts((render.clock_time(event.at), story.line(event)) for event in latest)


def _facts(job: JobDetail, tasks: Mapping[str, int], now: float) -> Iterator[tuple[str, str]]:
    yield "job", f"{render.shown_id(job)}  {job.name}  ({job.kind}, {job.user})"
    is_waiting = job.state in ("QUEUED", "HELD")
    said = job.state.lower() if is_waiting else render.doing(job).plain
    yield "state", said + (f": {job.message}" if job.message and not is_waiting else "")
    yield from waiting.explained(job, now)
    if job.stop_asked and not job.is_over:
        yield "stopping", job.stop_asked
    yield "attempt", f"{job.attempt} of {job.max_attempts}" if job.attempt else ""
    yield "priority", _PRIORITIES.get(job.priority, str(job.priority)) if job.priority else ""
    yield from _conditions(job, now)
    yield "tasks", ", ".join(f"{count} {state}" for state, count in sorted(tasks.items()))
    yield "worker", job.worker
    yield "device", job.device or ""
    yield from _budget(job, now)
    held = job.k if job.state not in ("QUEUED", "HELD") else None  # of an attempt that is over
    yield "k", f"{held} of {job.units} units" if held is not None and job.units else ""
    yield "model", _model(job)
    yield from forecasts.against(job, now)
    yield "link", _link(job)
    yield "step", render.of(job.step, job.steps) if job.step or (job.steps and job.attempt) else ""
    yield "metrics", "  ".join(f"{name} {_figure(value)}" for name, value in sorted(job.metrics.items()))
    yield "first loss", _figure(job.first_loss) if job.first_loss is not None else ""
    yield "checkpoint", f"step {job.checkpoint_step}" if job.checkpoint_step is not None else ""
    yield "output", job.output or ""
    yield "submitted", render.clock_time(job.submitted_at)
    yield "started", render.clock_time(job.started_at)
    yield "ended", render.clock_time(job.ended_at)
    yield "ran for", render.duration(render.elapsed_s(job, now)) if job.started_at is not None else ""
    yield "limit", render.duration(job.time_limit_s)
    yield "used", _used(job, now)
    yield "exit code", str(job.exit_code) if job.is_over and job.exit_code is not None else ""


def _conditions(job: JobDetail, now: float) -> Iterator[tuple[str, str]]:
    """What it asked of its start: other jobs, hours, its array."""
    after = job.spec.get("after") or {}
    ways = after if isinstance(after, dict) else {"ok": after}
    words = {"ok": "", "any": "ended: ", "fail": "failed: "}
    yield "after", "; ".join(f"{words.get(way, way)}{', '.join(refs)}" for way, refs in ways.items() if refs)
    schedule = job.spec.get("schedule") or {}
    at_end = schedule.get("at_end")
    yield "window", f"{job.window}; at its end: {at_end}" if job.window and at_end else job.window or ""
    yield "not before", day_and_clock(job.begin_at, now) if job.begin_at is not None else ""
    yield "array", f"task {job.array_index} of {job.spec.get('array') or job.array}" if job.array else ""


def _budget(job: JobDetail, now: float) -> Iterator[tuple[str, str]]:
    """What it may hold, of what it asked for; what is being asked of it, and what moved it last."""
    if not job.budget_max_bytes:
        return
    span = render.span(job.budget_min_bytes, job.budget_max_bytes)
    elastic = job.spec.get("elastic") or {}
    fixed = [word for word in ("shrink", "grow") if elastic.get(word) is False]
    bound = elastic.get("max_slowdown")
    rules = [f"never {word}s" for word in fixed] + ([f"at most {bound:g}x slower"] if bound else [])
    if job.most_bytes is not None and job.most_bytes < job.budget_max_bytes:
        rules.append(f"{render.size(job.most_bytes)} is enough for now")
    given = f"{render.size(job.budget_bytes)} of " if job.budget_bytes else ""
    yield "budget", "; ".join([given + span, *rules])
    asked = job.budget_asked_bytes
    if asked is not None and asked != job.budget_bytes:
        word = render.reason(job) or "moving"
        yield "", f"{word} to {render.size(asked)}; {render.size(job.promised_bytes)} count until it has"
    yield "", story.last_resize(job.events, now) if not job.is_over else ""


def _link(job: JobDetail) -> str:
    if not job.loads:
        return ""
    return f"{job.loads} loads, {render.size(job.link_bytes)}, waited {render.duration(job.stall_s)} for it"


def _model(job: JobDetail) -> str:
    if not job.model_bytes:
        return ""
    shared = f", {render.size(job.shared_bytes)} of it shared" if job.shared_bytes else ""
    return f"{render.size(job.model_bytes)}, {render.size(job.host_bytes)} of RAM{shared}"


def _used(job: JobDetail, now: float) -> str:
    # Charged up to the last event; since then it has held what it was promised.
    since_s = max(0.0, now - job.events[-1].at) if job.events else 0.0
    used_byte_s = job.used_byte_s + job.promised_bytes * since_s
    if not used_byte_s:
        return ""
    waited = f", waited {render.duration(job.waited_s)} in the queue" if job.waited_s else ""
    return f"{render.gib_hours(used_byte_s)} GiB-hours of device memory{waited}"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.5g}"

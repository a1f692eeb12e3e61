"""`spcluster queue`: everybody's jobs, oldest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.live import Live
from rich.text import Text

from superpipe_cluster.api.views import JobView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.times import ahead
from superpipe_cluster.cli.words import note
from superpipe_cluster.client import Client


@dataclass(frozen=True, slots=True)
class _Field:
    """A column and what stands in it: of a job, at a time. An optional one is left out where it says nothing."""

    column: Column
    cell: Callable[[JobView, float], Text | str]
    optional: bool = False


def _window(job: JobView, now: float) -> str:
    # A job that waits again still has the figures of its last attempt.
    return render.of(job.k, job.units) if job.k and job.state not in ("QUEUED", "HELD") else "-"


def _steps(job: JobView, now: float) -> str:
    return render.of(job.step, job.steps) if job.step or (job.steps and job.attempt) else "-"


def _start(job: JobView, now: float) -> str:
    return "-" if job.expected_start_at is None else ahead(job.expected_start_at, now)


_FIELDS = (
    _Field(Column("ID", justify="right"), lambda job, now: render.shown_id(job)),
    _Field(Column("NAME", narrow="shorten", widest=40), lambda job, now: job.name),
    _Field(Column("USER", narrow="shorten", widest=10), lambda job, now: job.user),
    _Field(Column("STATE", widest=9), lambda job, now: render.state(job)),
    _Field(Column("REASON", widest=14), lambda job, now: render.reason(job) or "-", optional=True),
    _Field(Column("BUDGET", justify="right"), lambda job, now: render.size(job.budget_bytes)),
    _Field(Column("K/N", justify="right"), _window, optional=True),
    _Field(Column("STEP", justify="right"), _steps, optional=True),
    _Field(Column("TIME", justify="right"), lambda job, now: render.duration(render.elapsed_s(job, now))),
    _Field(Column("START"), _start, optional=True),
)

_WATCH_S = 2.0


@click.command("queue")
@click.option("-a", "--all", "ended", is_flag=True, help="Also the jobs that are over.")
@click.option("-u", "--user", metavar="USER", help="Only this user's jobs.")
@click.option("-w", "--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
@output_option
def command(ended: bool, user: str | None, watch: bool, as_json: bool) -> None:
    """List the jobs.

    Everybody sees everybody's jobs, so that you know who holds the GPU. TIME is how long a job has been
    running, ran, or has been waiting so far; K/N how many of its model's units it may hold on the device at
    once; REASON what it waits for, and START when it is likely to begin. `spcluster show` explains both.

    \b
    Example:  spcluster queue -u alice
    """
    with open_client() as client:
        if watch:
            _watch(client, ended, user, as_json)
            return
        jobs = client.queue(ended=ended, user=user)
    _print(jobs, as_json)
    if not jobs and not as_json:
        note("no jobs" if ended else "nothing to do; `spcluster queue -a` lists also what is over")


def _watch(client: Client, ended: bool, user: str | None, as_json: bool) -> None:
    screen = render.console()
    try:
        if as_json or not screen.is_terminal:
            while True:
                _print(client.queue(ended=ended, user=user), as_json)
                time.sleep(_WATCH_S)
        with Live(console=screen, auto_refresh=False, screen=True) as live:
            while True:
                live.update(render.live(_table(client.queue(ended=ended, user=user))), refresh=True)
                time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        return


def _print(jobs: list[JobView], as_json: bool) -> None:
    if as_json:
        render.print_json([flat(job) for job in jobs])
    elif jobs:
        render.echo(_table(jobs))


def _table(jobs: Sequence[JobView]) -> list[str]:
    now = time.time()
    columns = [(field, [field.cell(job, now) for job in jobs]) for field in _FIELDS]
    kept = [
        (field, cells)
        for field, cells in columns
        if not field.optional or any(str(cell) != "-" for cell in cells)
    ]
    rows = zip(*(cells for _, cells in kept), strict=True)
    return render.layout([field.column for field, _ in kept], rows)


def flat(job: JobView) -> dict[str, Any]:
    """The job as one flat object: of its metrics only the loss, under its own name."""
    fields = job.model_dump(mode="json", exclude={"metrics"})
    return {**fields, "loss": job.metrics.get("loss")}

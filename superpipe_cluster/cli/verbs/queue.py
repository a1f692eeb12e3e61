"""`spcluster queue`: everybody's jobs, oldest first."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from superpipe_cluster.api.views import JobView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.words import note
from superpipe_cluster.client import Client

_COLUMNS = (
    Column("ID", justify="right"),
    Column("NAME", narrow="shorten", widest=40),
    Column("USER", widest=10),
    Column("STATE", widest=18),
    Column("BUDGET", justify="right"),
    Column("K/N", justify="right"),
    Column("STEP", justify="right"),
    Column("TIME", justify="right"),
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
    once.
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
                live.update(_table(client.queue(ended=ended, user=user)), refresh=True)
                time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        return


def _print(jobs: list[JobView], as_json: bool) -> None:
    if as_json:
        render.print_json([flat(job) for job in jobs])
    elif jobs:
        render.show(_table(jobs))


def _table(jobs: list[JobView]) -> Table:
    now = time.time()
    return render.layout(_COLUMNS, (_row(job, now) for job in jobs))


def _row(job: JobView, now: float) -> tuple[Text | str, ...]:
    return (
        job.id,
        job.name,
        job.user,
        render.state(job),
        render.size(job.budget_bytes),
        render.of(job.k, job.units),
        render.of(job.step, job.steps) if job.steps or job.step else "-",
        render.duration(render.elapsed_s(job, now)),
    )


def flat(job: JobView) -> dict[str, Any]:
    """The job as one flat object: of its metrics only the loss, under its own name."""
    fields = job.model_dump(mode="json", exclude={"metrics"})
    return {**fields, "loss": job.metrics.get("loss")}

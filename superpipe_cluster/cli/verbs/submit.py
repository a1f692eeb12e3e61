"""`spcluster submit`: check a job here, and put it in the queue."""

from __future__ import annotations

from collections.abc import Iterator

import click

from superpipe_cluster import spec
from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.cli import render
from superpipe_cluster.cli.follow import follow as follow_job
from superpipe_cluster.cli.main import INTERRUPTED
from superpipe_cluster.cli.options import job_path, open_client, output_option
from superpipe_cluster.cli.outcome import exit_code, sentence
from superpipe_cluster.cli.words import note
from superpipe_cluster.client import Client
from superpipe_cluster.client.program import program_of
from superpipe_cluster.planning import Plan


@click.command("submit")
@click.argument("job", metavar="PATH|jobs:NAME")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override a field of the file (repeatable).",
)
@click.option("-n", "--name", help="The job's name in the queue.")
@click.option("-f", "--follow", is_flag=True, help="Print its log until it is over, then exit like --wait.")
@click.option(
    "--wait", is_flag=True, help="Wait until it is over: 0 succeeded, its code or 1 failed, 130 cancelled."
)
@click.option("--dry-run", is_flag=True, help="Only check the file and what it names; needs no cluster.")
@click.option("-q", "--quiet", is_flag=True, help="Print the job's id and nothing else.")
@output_option
def command(
    job: str,
    overrides: tuple[str, ...],
    name: str | None,
    follow: bool,
    wait: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Put a job in the queue.

    PATH is a job file; jobs:NAME one of those that `spcluster examples` lists. The files that it names must
    be on this machine. Your own worker program is sent as it is now: later edits do not change a job in the
    queue.
    """
    # Set last, so that -n wins over --set name=...
    changes = [*overrides, *([f"name={name}"] if name is not None else [])]
    checked = spec.load(job_path(job), overrides=changes)
    checked.local_files()
    program_of(checked)
    if dry_run:
        _print_checked(checked, job, quiet, as_json)
        return 0
    with open_client() as client:
        made = client.submit(checked)
        _print_made(made, quiet, as_json, following=follow)
        if follow:
            return exit_code(follow_job(client, made.id))
        return _wait(client, made) if wait else 0


def _wait(client: Client, made: JobDetail) -> int:
    try:
        done = client.wait(made.id)
    except KeyboardInterrupt:
        note(f"detached: job {made.id} goes on without us; `spcluster wait {made.id}` waits again")
        return INTERRUPTED
    note(sentence(done))
    return exit_code(done)


def _print_checked(checked: spec.JobSpec, job: str, quiet: bool, as_json: bool) -> None:
    if as_json:
        render.print_json(spec.dump(checked))
    elif not quiet:
        click.echo(
            f"{checked.name} ({checked.kind}, {checked.worker}) has no mistakes; nothing was submitted"
        )
        click.echo(f"what it would take: spcluster plan {job}")


def _print_made(made: JobDetail, quiet: bool, as_json: bool, *, following: bool) -> None:
    if as_json:
        render.print_json(made.model_dump(mode="json"))
    elif quiet:
        click.echo(made.id)
    else:
        click.echo(f"job {made.id} ({made.name}) is {render.state(made).plain}")
        render.facts(_forecast(made))
        if not following:
            click.echo(f"follow it with: spcluster logs -f {made.id}")


def _forecast(made: JobDetail) -> Iterator[tuple[str, str]]:
    try:
        plan = Plan.from_dict(made.plan) if made.plan else None
    except (KeyError, TypeError):  # a head of another version plans in other words
        plan = None
    if plan is None:
        yield "  units", "known once it runs"
    else:
        yield "  units", f"{_window(made, plan)}/{plan.units} on the device at once"
        yield (
            "  model",
            f"{render.size(plan.model_bytes)}, with all that it works with {render.size(plan.whole_bytes)}",
        )
        yield from _figures(made, plan)
    yield (
        "  budget",
        render.span(made.budget_min_bytes, made.budget_max_bytes) if made.budget_max_bytes else "",
    )
    yield "  RAM", render.size(made.host_bytes) if made.host_bytes else ""
    yield "  after", ", ".join(made.after)


def _figures(made: JobDetail, plan: Plan) -> Iterator[tuple[str, str]]:
    """Peak and seconds, for the wanted and the guaranteed end of the job's range of budgets."""
    rows = [] if plan.forecast is None else [plan.forecast.at(made.budget_max_bytes)]
    if plan.forecast is not None and made.budget_min_bytes < made.budget_max_bytes:
        rows.append(plan.forecast.at(made.budget_min_bytes))
    known = [row for row in rows if row is not None]
    if not known:
        yield "  peak", f"at most {render.size(min(plan.whole_bytes, made.budget_max_bytes))}"
        return
    yield "  peak", " or ".join(render.size(row.peak_bytes) for row in known)
    yield (
        "  step",
        ", ".join(
            f"{render.seconds(row.step_s)} ({render.slowdown(row.slowdown)}) in {render.size(row.budget_bytes)}"
            for row in known
        ),
    )


def _units(plan: Plan, budget_bytes: int) -> int:
    row = plan.forecast.at(budget_bytes) if plan.forecast is not None else None
    return plan.k(budget_bytes) if row is None else row.k


def _window(made: JobDetail, plan: Plan) -> str:
    """The k that follows from the budget, `5` or `3..7`, unless the job asks for one."""
    asked = made.spec.get("streaming", {}).get("k")
    least, most = (_units(plan, budget) for budget in (made.budget_min_bytes, made.budget_max_bytes))
    if asked is not None:
        least, most = min(asked, least), min(asked, most)
    return str(least) if least == most else f"{least}..{most}"

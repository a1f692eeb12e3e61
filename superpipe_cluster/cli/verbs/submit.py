"""`spcluster submit`: check a job here, and put it in the queue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence

import click

from superpipe_cluster import spec
from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.cli import expectations, render
from superpipe_cluster.cli.follow import follow as follow_job
from superpipe_cluster.cli.main import INTERRUPTED
from superpipe_cluster.cli.options import job_path, open_client, output_option
from superpipe_cluster.cli.outcome import exit_code, sentence
from superpipe_cluster.cli.times import moment
from superpipe_cluster.cli.words import note
from superpipe_cluster.client import Client
from superpipe_cluster.client.program import files_of, program_of
from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec.units import spell_moment

_WAYS = ("ok", "any", "fail")


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
@click.option(
    "--priority", type=click.Choice(["low", "normal", "high", "interactive"]), help="Its class in the queue."
)
@click.option(
    "--after",
    multiple=True,
    metavar="[any:|fail:]JOB",
    help="Wait until JOB has succeeded, ended (any:) or failed (fail:); repeatable.",
)
@click.option("--array", metavar="0-15%4", help="Submit it once per index, here four at once.")
@click.option(
    "--not-before", metavar="TIME", help="The earliest start: 22:30, 2h (from now), 2026-11-22T22:00."
)
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
    priority: str | None,
    after: tuple[str, ...],
    array: str | None,
    not_before: str | None,
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

    \b
    Examples:  spcluster submit train.yaml --set train.steps=500 -f
               spcluster submit sweep.yaml --array 0-15%4 --after prepare
    """
    # Set last, so that an option of its own wins over --set.
    changes = [*overrides, *_changes(name, priority, after, array, not_before)]
    checked = spec.load(job_path(job), overrides=changes)
    checked.local_files()
    program_of(checked)
    files_of(checked)
    if follow and checked.array is not None:
        raise BadInput(
            "-f follows one log, and an array has one per task",
            hint="--wait waits for all of them; `spcluster logs -f 12_4` follows a task",
        )
    if dry_run:
        _print_checked(checked, job, quiet, as_json)
        return 0
    with open_client() as client:
        made = client.submit(checked)
        _print_made(made, checked, quiet, as_json, following=follow)
        if follow:
            return exit_code(follow_job(client, made.id))
        return _wait(client, made) if wait else 0


def _changes(
    name: str | None, priority: str | None, after: Sequence[str], array: str | None, not_before: str | None
) -> Iterator[str]:
    """The options as overrides of the file."""
    if name is not None:
        yield f"name={name}"
    if priority is not None:
        yield f"priority={priority}"
    if after:
        refs: dict[str, list[str]] = {way: [] for way in _WAYS}
        for one in after:
            way, ref = one.split(":", 1) if ":" in one else ("ok", one)
            if way not in refs or not ref:
                raise BadInput(
                    f"--after {one}: expected JOB, any:JOB or fail:JOB", hint="write --after any:12"
                )
            refs[way].append(ref)
        yield f"after={json.dumps(refs)}"
    if array is not None:
        yield f"array={array}"
    if not_before is not None:
        yield f"schedule.not_before={spell_moment(moment(not_before, time.time()))}"


def _wait(client: Client, made: JobDetail) -> int:
    """Wait for the job, or for all tasks of its array; the first exit code that is not 0."""
    first_bad = 0
    for job_id in made.tasks or (made.id,):
        try:
            done = client.wait(job_id)
        except KeyboardInterrupt:
            note(f"detached: job {job_id} goes on without us; `spcluster wait {job_id}` waits again")
            return INTERRUPTED
        note(sentence(done))
        first_bad = first_bad or exit_code(done)
    return first_bad


def _print_checked(checked: spec.JobSpec, job: str, quiet: bool, as_json: bool) -> None:
    if as_json:
        render.print_json(spec.dump(checked))
    elif not quiet:
        click.echo(
            f"{checked.name} ({checked.kind}, {checked.worker}) has no mistakes; nothing was submitted"
        )
        click.echo(f"what it would take: spcluster plan {job}")


def _print_made(
    made: JobDetail, checked: spec.JobSpec, quiet: bool, as_json: bool, *, following: bool
) -> None:
    if as_json:
        render.print_json(made.model_dump(mode="json"))
        return
    if quiet:
        click.echo(made.id)
        return
    click.echo(f"job {render.shown_id(made)} ({made.name}) is {render.doing(made).plain}")
    if checked.array is not None:
        at_once = f", {checked.array.limit} at once" if checked.array.limit is not None else ""
        click.echo(f"it is the first of {len(checked.array.indices)} tasks{at_once}")
    render.facts(expectations.of(made, time.time()))
    if not following:
        click.echo(f"follow it with: spcluster logs -f {made.id}")

"""`spcluster usage`: who has used how much."""

from __future__ import annotations

import time

import click

from superpipe_cluster.api.views import JobUsageView, UserUsageView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.times import since as how_far_back
from superpipe_cluster.cli.words import note

_USER_COLUMNS = (
    Column("USER", narrow="shorten"),
    Column("JOBS", justify="right"),
    Column("GIB-H", justify="right"),
    Column("LINK", justify="right"),
    Column("WAITED", justify="right"),
    Column("RAN", justify="right"),
    Column("SLOWDOWN", justify="right"),
    Column("SHARE", justify="right"),
)
_JOB_COLUMNS = (
    Column("ID", justify="right"),
    Column("NAME", narrow="shorten"),
    Column("USER", narrow="shorten", widest=10),
    Column("STATE"),
    Column("GIB-H", justify="right"),
    Column("LINK", justify="right"),
    Column("WAITED", justify="right"),
    Column("RAN", justify="right"),
    Column("SLOWDOWN", justify="right"),
)


@click.command("usage")
@click.option("-u", "--user", metavar="USER", help="Only this user.")
@click.option("--since", metavar="TIME", help="Only jobs that ran since then: 7d, 12h, 2026-11-01T00:00.")
@click.option("-j", "--jobs", "by_job", is_flag=True, help="One line per job instead of per user.")
@output_option
def command(user: str | None, since: str | None, by_job: bool, as_json: bool) -> None:
    """Show who has used how much.

    GIB-H is device memory times the time it was promised, what one pays for here; SLOWDOWN how much longer steps
    took than with the whole model on the device; SHARE the part of all recent usage, older hours counting less and
    less. Whoever has the smaller share goes first.

    \b
    Example:  spcluster usage --since 7d --jobs
    """
    from_at = None if since is None else how_far_back(since, time.time())
    with open_client() as client:
        found = client.usage(user=user, since=from_at)
    if as_json:
        render.print_json(found.model_dump(mode="json"))
    elif by_job and found.jobs:
        render.table(_JOB_COLUMNS, (_job(job) for job in found.jobs))
    elif not by_job and found.users:
        render.table(_USER_COLUMNS, (_user(one) for one in found.users))
    else:
        note("nobody has used anything" if since is None else "nobody has used anything since then")


def _user(user: UserUsageView) -> tuple[str, ...]:
    return (user.user, str(user.jobs), *_figures(user), f"{100 * user.share:.0f} %")


def _job(job: JobUsageView) -> tuple[str, ...]:
    return (job.id, job.name, job.user, job.state.lower(), *_figures(job))


def _figures(used: UserUsageView | JobUsageView) -> tuple[str, ...]:
    return (
        render.gib_hours(used.byte_s),
        render.size(used.link_bytes),
        render.duration(used.waited_s),
        render.duration(used.ran_s),
        "-" if used.slowdown is None else f"{used.slowdown:.2f}x",
    )

"""`spcluster wait`: until jobs are over."""

from __future__ import annotations

import time

import click

from superpipe_cluster.cli.on_each import meant
from superpipe_cluster.cli.options import open_client
from superpipe_cluster.cli.outcome import exit_code, sentence
from superpipe_cluster.cli.words import error, hint
from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec.units import parse_duration

#: What `timeout` of coreutils exits with.
TIMED_OUT = 124


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return parse_duration(f"{value}s" if value.replace(".", "", 1).isdigit() else value)
    except BadInput as failure:
        raise click.BadParameter(f"{failure.message}\nhint: {failure.hint}") from None


@click.command("wait")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
@click.option(
    "--timeout", "timeout_s", callback=_seconds, metavar="TIME", help="Give up after 90 (seconds), 5m or 8h."
)
def command(refs: tuple[str, ...], timeout_s: float | None) -> int:
    """Wait until jobs are over.

    The id or the name of an array means all its tasks.

    Exits with 0 when all succeeded, 124 after the timeout, else with the code of the first that did not: its
    own exit code (or 1) when it failed, 130 when it was cancelled.

    \b
    Example:  spcluster wait 12 13 --timeout 8h
    """
    give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
    first_bad = 0
    with open_client() as client:
        for job_id in [one for ref in refs for one in meant(client, ref)]:
            left_s = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
            try:
                job = client.wait(job_id, timeout_s=left_s)
            except TimeoutError as late:
                error(f"{late} (--timeout)")
                hint(f"it goes on; `spcluster show {job_id}` says how far it is")
                return TIMED_OUT
            click.echo(sentence(job))
            first_bad = first_bad or exit_code(job)
    return first_bad

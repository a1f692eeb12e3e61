"""`spcluster cancel`: stop jobs."""

from __future__ import annotations

import click

from superpipe_cluster.cli.options import open_client
from superpipe_cluster.cli.words import error, hint
from superpipe_cluster.errors import Conflict, Forbidden, NotFound


@click.command("cancel")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Kill it now instead of letting it save first.")
def command(refs: tuple[str, ...], force: bool) -> int:
    """Stop jobs.

    A waiting job is over at once. A running one is asked to save and stop, and killed when it takes too long.
    All named jobs are tried, also when one of them cannot be cancelled.
    """
    worst = 0
    with open_client() as client:
        for ref in refs:
            try:
                job = client.cancel(ref, force=force)
            except (NotFound, Forbidden, Conflict) as failure:
                error(failure.message)
                if failure.hint:
                    hint(failure.hint)
                worst = max(worst, failure.exit_code)
            else:
                click.echo(f"{job.id} {job.name} {job.state.lower()}")
    return worst

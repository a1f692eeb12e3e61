"""`spcluster requeue`: have running jobs save, and wait again."""

from __future__ import annotations

import click

from superpipe_cluster.cli.on_each import on_each


@click.command("requeue")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
def command(refs: tuple[str, ...]) -> int:
    """Have running jobs save and wait again.

    Their device bytes become free. They go on from where they saved when it is their turn, and lose no attempt.

    \b
    Example:  spcluster requeue 12
    """
    return on_each(refs, lambda client, ref: client.requeue(ref))

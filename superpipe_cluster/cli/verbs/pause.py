"""`spcluster pause`: have running jobs stand still."""

from __future__ import annotations

import click

from superpipe_cluster.cli.on_each import on_each


@click.command("pause")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
def command(refs: tuple[str, ...]) -> int:
    """Have running jobs stand still.

    Each stops at its next step and keeps its device bytes, so that `spcluster resume` goes on in a moment. To
    give the bytes up as well, `spcluster requeue` it.

    \b
    Example:  spcluster pause llama-notes
    """
    return on_each(refs, lambda client, ref: client.pause(ref))

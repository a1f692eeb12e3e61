"""`spcluster resume`: have paused jobs go on."""

from __future__ import annotations

import click

from superpipe_cluster.cli.on_each import on_each


@click.command("resume")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
def command(refs: tuple[str, ...]) -> int:
    """Have paused jobs go on.

    \b
    Example:  spcluster resume llama-notes
    """
    return on_each(refs, lambda client, ref: client.resume(ref))

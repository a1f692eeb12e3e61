"""`spcluster release`: put held jobs back in line."""

from __future__ import annotations

import click

from superpipe_cluster.cli.on_each import on_each


@click.command("release")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
def command(refs: tuple[str, ...]) -> int:
    """Put held jobs back in line.

    The id or name of an array means all its tasks, `12_4` one of them.

    \b
    Example:  spcluster release 12 13
    """
    return on_each(refs, lambda client, ref: client.release(ref))

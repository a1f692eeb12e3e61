"""`spcluster hold`: keep waiting jobs from starting."""

from __future__ import annotations

import click

from superpipe_cluster.cli.on_each import on_each


@click.command("hold")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
def command(refs: tuple[str, ...]) -> int:
    """Keep waiting jobs from starting.

    They stay in the queue, without a place in line, until `spcluster release`. For a running job there are
    `spcluster pause` (it keeps its bytes) and `spcluster requeue` (it gives them up).
    The id or name of an array means all its tasks, `12_4` one of them.

    \b
    Example:  spcluster hold 12 13
    """
    return on_each(refs, lambda client, ref: client.hold(ref))

"""`spcluster cancel`: stop jobs."""

from __future__ import annotations

import click

from superpipe_cluster.cli.on_each import on_each


@click.command("cancel")
@click.argument("refs", metavar="ID|NAME...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Kill it now instead of letting it save first.")
def command(refs: tuple[str, ...], force: bool) -> int:
    """Stop jobs.

    A waiting job is over at once. A running one is asked to save and stop, and killed when it takes too long.
    All named jobs are tried, also when one of them cannot be cancelled. The id or name of an array means all its
    tasks, `12_4` one of them.

    \b
    Example:  spcluster cancel 12 llama-notes
    """
    return on_each(refs, lambda client, ref: client.cancel(ref, force=force))

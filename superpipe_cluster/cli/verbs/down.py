"""`spcluster down`: the end of the cluster, or of its head alone."""

from __future__ import annotations

import os

import click

from superpipe_cluster.cli.words import note


@click.command("down")
@click.option(
    "--head-only", is_flag=True, help="Stop only the head; jobs go on, and `spcluster up` comes back to them."
)
@click.option(
    "--drain",
    is_flag=True,
    help="Start no more jobs, and wait for those that run to end; Ctrl-C takes it back.",
)
def command(head_only: bool, drain: bool) -> None:
    """Stop the cluster.

    Running jobs save first. They are back in the queue at the next `spcluster up`. With `--drain` they come to their
    end instead, however long that takes.

    \b
    Example:  spcluster down --drain
    """
    if head_only and drain:
        raise click.UsageError("--head-only stops no job, and --drain waits for all: give one of them")
    # Here, so that `down --help` stays fast.
    from superpipe_cluster.client import home_directory
    from superpipe_cluster.head import cluster

    cluster.down(home_directory(os.environ), head_only=head_only, drain=drain, say=note)
    click.echo("the head is stopped; jobs go on" if head_only else "the cluster is stopped")

"""`spcluster logs`: a job's log, once or until the job is over."""

from __future__ import annotations

import click

from superpipe_cluster.cli.follow import follow as follow_job
from superpipe_cluster.cli.follow import print_log
from superpipe_cluster.cli.options import open_client


@click.command("logs")
@click.argument("ref", metavar="ID|NAME")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over; Ctrl-C leaves it running.")
@click.option("--tail", type=click.IntRange(0, 100_000), metavar="N", help="Begin with the last N lines.")
def command(ref: str, follow: bool, tail: int | None) -> None:
    """Print a job's log.

    Following lives through a restart of the head. On a terminal it shows how far the job is.

    \b
    Example:  spcluster logs -f train_tiny
    """
    with open_client() as client:
        if follow:
            follow_job(client, ref, tail=tail)
            return
        for piece in client.logs(ref, tail=tail):
            print_log(piece.text)

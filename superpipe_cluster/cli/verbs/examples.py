"""`spcluster examples`: the job files that come along."""

from __future__ import annotations

import click

from superpipe_cluster import bundled
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.words import note


@click.command("examples")
@output_option
def command(as_json: bool) -> None:
    """List the job files that come along.

    Submit one with `spcluster submit jobs:NAME`, or copy it with `spcluster cp NAME .` and change it.

    \b
    Example:  spcluster examples
    """
    jobs = bundled.jobs()
    if as_json:
        render.print_json(
            [{"name": job.name, "description": job.description, "path": str(job.path)} for job in jobs]
        )
        return
    columns = (Column("NAME", widest=30), Column("WHAT IT SHOWS", narrow="fold"))
    render.table(columns, ((job.name, job.description) for job in jobs))
    note("`spcluster submit jobs:NAME` runs one, `spcluster cp NAME .` copies it")

"""`spcluster schema`: what a job file may say, as a JSON schema."""

from __future__ import annotations

import json

import click

from superpipe_cluster import spec


@click.command("schema")
def command() -> None:
    """Print the JSON schema of job files.

    Editors complete and check job files with it: `spcluster schema > job.schema.json`.

    \b
    Example:  spcluster schema > schema.json
    """
    click.echo(json.dumps(spec.schema(), indent=2))

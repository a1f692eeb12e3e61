"""`spcluster cp`: a job file that comes along, to be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from superpipe_cluster import bundled
from superpipe_cluster.cli.words import note
from superpipe_cluster.errors import BadInput, Conflict


@click.command("cp")
@click.argument("name")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(name: str, dest: Path, force: bool) -> None:
    """Copy one of the job files that come along.

    NAME is one that `spcluster examples` lists, DEST a folder or a new file's name. Prints the path of the
    copy.
    """
    source = bundled.job_path(name.removeprefix("jobs:"))
    target = dest / source.name if dest.is_dir() else dest
    if target.exists() and not force:
        raise Conflict(f"{target} is already there", hint="--force replaces it, or name another file")
    try:
        shutil.copyfile(source, target)
    except OSError as failure:
        raise BadInput(
            f"cannot write {target} ({failure.strerror})", hint="name a folder you may write to"
        ) from None
    click.echo(str(target))
    note(f"`spcluster submit {target}` runs it")

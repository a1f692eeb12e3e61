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
@click.option("--force", is_flag=True, help="Replace files that are there.")
def command(name: str, dest: Path, force: bool) -> None:
    """Copy one of the job files that come along.

    NAME is one that `spcluster examples` lists, DEST a folder or a new file's name. A program that comes with the
    job is copied beside it. Prints the path of the copy.

    \b
    Example:  spcluster cp train_tiny mine.yaml
    """
    source = bundled.job_path(name.removeprefix("jobs:"))
    target = dest / source.name if dest.is_dir() else dest
    copies = {target: source} | {target.parent / path: file for path, file in _files(source)}
    there = next((copy for copy in copies if copy.exists() and not force), None)
    if there is not None:
        raise Conflict(f"{there} is already there", hint="--force replaces it, or name another file")
    try:
        for copy, original in copies.items():
            if copy.parent != target.parent:
                copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original, copy)
    except OSError as failure:
        raise BadInput(
            f"cannot write {target} ({failure.strerror})", hint="name a folder you may write to"
        ) from None
    click.echo(str(target))
    note(f"`spcluster submit {target}` runs it")


def _files(source: Path) -> list[tuple[Path, Path]]:
    """The program or the files that the job brings along: where they lie beside it, and here."""
    # Here, so that `cp --help` stays fast.
    from superpipe_cluster import spec

    job = spec.load(source)
    if isinstance(job, spec.ScriptJob):
        return [(Path(path), source.parent / path) for path in job.travelling()]
    return [] if job.own_program is None else [(Path(job.own_program.name), job.own_program)]

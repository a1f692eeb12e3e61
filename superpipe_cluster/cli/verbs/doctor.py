"""`spcluster doctor`: is this machine fit, and is the cluster well."""

from __future__ import annotations

import os
from dataclasses import asdict

import click
from rich.text import Text

from superpipe_cluster.cli import render
from superpipe_cluster.cli.checks import Check, all_checks
from superpipe_cluster.cli.options import DEFAULT_PORT, output_option
from superpipe_cluster.cli.render import Column

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="Port to check."
)
@output_option
def command(port: int, as_json: bool) -> int:
    """Check this machine and the cluster.

    Exits with 1 when something fails; a warning is something that works, but not as well as it could.

    \b
    Example:  spcluster doctor
    """
    checks = list(all_checks(os.environ, port))
    if as_json:
        render.print_json([asdict(check) for check in checks])
    else:
        rows = (row for check in checks for row in _rows(check))
        render.table((Column("CHECK"), Column(""), Column("FOUND", narrow="fold")), rows)
    return 1 if any(check.status == "fail" for check in checks) else 0


def _rows(check: Check) -> list[tuple[Text | str, ...]]:
    found: list[tuple[Text | str, ...]] = [
        (check.name, Text(check.status, style=_COLOURS[check.status]), check.detail)
    ]
    if check.hint:
        found.append(("", "", f"hint: {check.hint}"))
    return found

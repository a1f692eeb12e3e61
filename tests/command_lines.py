"""Command lines in texts (a README, a job file's header, a compose file), read as the program reads them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from superpipe_cluster.cli.main import cli


def parse_line(line: str) -> click.Context:
    """Parse a `spcluster ...` line, comments and `> file` at its end left out; the innermost verb's context.

    Raises:
        click.UsageError: the program would refuse it.
    """
    words = shlex.split(line.split(" > ")[0], comments=True)
    assert words[:1] == ["spcluster"], line
    return parse_arguments(words[1:])


def parse_arguments(arguments: Sequence[str]) -> click.Context:
    """Parse what follows `spcluster`; nothing is run."""
    command: click.Command = cli
    context = click.Context(cli)
    rest = list(arguments)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, arguments
        command = found
        context = click.Context(command, info_name=name) if isinstance(command, click.Group) else context
    return command.make_context(command.name, rest)

"""Every command explains itself with an example that it takes, and the shell can complete its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module

import click
import pytest

from command_lines import parse_line
from commands import process, spcluster
from superpipe_cluster.cli.main import VERBS


def commands() -> Iterator[tuple[str, ...]]:
    """Every verb, and every command of those that are groups."""
    for verb in VERBS:
        yield (verb,)
        command = import_module(f"superpipe_cluster.cli.verbs.{verb}").command
        if isinstance(command, click.Group):
            yield from ((verb, name) for name in command.commands)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_has_an_example_that_it_takes(words: tuple[str, ...]) -> None:
    said = spcluster(*words, "--help")
    assert said.returncode == 0
    assert max(map(len, said.stdout.splitlines())) <= 80
    examples = re.findall(r"^ +(?:Examples?: +)?(spcluster .*)$", said.stdout, re.MULTILINE)
    assert examples, said.stdout
    for example in examples:
        typed = parse_line(example)
        assert example.split()[1 : 1 + len(words)] == list(words) or len(words) == 1
        assert typed.command.name is not None


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("spcluster re", {"release", "resume", "requeue"}),
        ("spcluster quota ", {"list", "set", "remove"}),
        ("spcluster submit --pri", {"--priority"}),
        ("spcluster submit --priority ", {"low", "normal", "high", "interactive"}),
    ],
)
def test_the_shell_completes_what_is_typed(typed: str, offered: set[str]) -> None:
    position = str(len(typed.split(" ")) - 1)
    said = process(_SPCLUSTER_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=position)
    assert said.returncode == 0, said.stderr
    assert {line.partition(",")[2] for line in said.stdout.splitlines()} == offered


def test_the_shells_script_comes_from_the_program() -> None:
    assert "_SPCLUSTER_COMPLETE=bash_complete" in process(_SPCLUSTER_COMPLETE="bash_source").stdout

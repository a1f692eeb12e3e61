"""What the command line says beside its data: errors, hints, notes; all of it on stderr.

Owns the form of these lines (`error: ...`, `hint: ...`) and whether they are coloured. Needs click alone, so
that `spcluster --help` and a usage error stay fast.
"""

from __future__ import annotations

import os

import click


def error(message: str) -> None:
    """Say what went wrong."""
    _say("error", "red", message)


def hint(message: str) -> None:
    """Say what to do about it."""
    _say("hint", "cyan", message)


def note(message: str) -> None:
    """Say something that is neither data nor an error."""
    click.echo(message, err=True)


def _say(word: str, colour: str, message: str) -> None:
    # click drops colours by itself where stderr is no terminal.
    label = f"{word}:" if os.environ.get("NO_COLOR") else click.style(f"{word}:", fg=colour, bold=True)
    click.echo(f"{label} {message}", err=True)

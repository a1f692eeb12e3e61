"""`spcluster set`: change what a job asks for, while it waits and while it runs."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from typing import Any

import click

from superpipe_cluster.cli.on_each import on_each
from superpipe_cluster.cli.times import moment
from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec import ByteRange
from superpipe_cluster.spec.units import parse_duration, spell_duration, spell_moment

_NOTHING = ("null", "none", "")


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text in choices:
            return text
        close = difflib.get_close_matches(text.lower(), choices, n=1)
        raise BadInput(
            f"expected one of {', '.join(choices)}; got {text!r}",
            hint=f"did you mean {close[0]}?" if close else None,
        )

    return read


def _memory(text: str) -> str:
    return text if text == "auto" else str(ByteRange.parse(text))


def _time_limit(text: str) -> str | None:
    return None if text in _NOTHING else spell_duration(parse_duration(text))


def _not_before(text: str) -> str | None:
    return None if text in _NOTHING else spell_moment(moment(text, time.time()))


#: Field -> how its value is read.
_FIELDS: dict[str, Callable[[str], Any]] = {
    "priority": _one_of("low", "normal", "high", "interactive"),
    "gpu_memory": _memory,
    "time_limit": _time_limit,
    "not_before": _not_before,
    "window": lambda text: None if text in _NOTHING else text,
    "at_window_end": _one_of("shrink", "pause", "requeue"),
}


@click.command("set")
@click.argument("ref", metavar="ID|NAME")
@click.argument("changes", metavar="FIELD=VALUE...", nargs=-1, required=True)
def command(ref: str, changes: tuple[str, ...]) -> int:
    """Change what a job asks for.

    Also while it runs: a new gpu_memory moves its budget at one of its next steps, without a restart. The id or
    name of an array means all its tasks.

    \b
    priority=low|normal|high|interactive
    gpu_memory=6GiB..20GiB         guaranteed..wanted; 12GiB; auto
    time_limit=8h                  null: none
    not_before=22:30               2h (from now), 2026-11-22T22:00; null: at once
    window=nights                  null: at any hour
    at_window_end=shrink|pause|requeue

    \b
    Example:  spcluster set 12 gpu_memory=6GiB..20GiB priority=high
    """
    fields = _read(changes)
    return on_each([ref], lambda client, job_id: client.change(job_id, **fields))


def _read(changes: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise BadInput(f"`{change}` is not of the form FIELD=VALUE", hint="write it like priority=high")
        if name not in _FIELDS:
            close = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"these can be: {', '.join(_FIELDS)}"
            raise BadInput(f"`{name}` of a job cannot be changed", hint=hint)
        try:
            fields[name] = _FIELDS[name](text.strip())
        except BadInput as error:
            raise BadInput(f"{name}: {error.message}", hint=error.hint) from None
    return fields

"""Options and connections that several verbs share.

Owns `-o json`, sizes, and how a verb gets its client. Imports the client only when there is something to ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from superpipe_cluster import bundled
from superpipe_cluster.cli.words import note
from superpipe_cluster.errors import BadInput
from superpipe_cluster.sizes import parse_bytes

if TYPE_CHECKING:
    from superpipe_cluster.client import Client

#: Where the API listens unless told otherwise.
DEFAULT_PORT = 7077

_BUNDLED = "jobs:"

F = TypeVar("F", bound=Callable[..., Any])


def output_option(function: F) -> F:
    """`-o json`: the verb gets `as_json: bool`."""
    return click.option(
        "-o",
        "--output",
        "as_json",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        callback=lambda ctx, param, value: value == "json",
        help="How to print.",
    )(function)


def job_path(job: str) -> str:
    """The file that a verb's `PATH|jobs:NAME` means."""
    # A local file always wins over a bundled name.
    if job.startswith(_BUNDLED) and not os.path.exists(job):
        return str(bundled.job_path(job.removeprefix(_BUNDLED)))
    return job


def open_client() -> Client:
    """A client of the cluster that the environment names; its retries are announced on stderr."""
    from superpipe_cluster.client import Client

    return Client(on_retry=note)


def checked_size(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """For an option that is a size: the text as it is, once it has been read as one.

    Raises:
        BadInput: it is no size; the message names the option.
    """
    try:
        parse_bytes("0B" if value is None else value)
    except BadInput as error:
        raise BadInput(f"{param.opts[0]}: {error.message}", hint=error.hint) from None
    return value

"""`spcluster events`: what happens, to whom, as it happens."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click

from superpipe_cluster.api.views import ClusterEventView
from superpipe_cluster.cli import render, story
from superpipe_cluster.cli.main import INTERRUPTED
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.words import note

#: How long the head may wait for something to happen before it answers, seconds.
_WAIT_S = 10.0


@click.command("events")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option(
    "-n",
    "--last",
    type=click.IntRange(0, 1000),
    default=20,
    show_default=True,
    help="How many to begin with.",
)
@output_option
def command(follow: bool, last: int, as_json: bool) -> int:
    """Show what happens.

    Each line is one change in the life of a job: placed, started, resized, ended. Of other people's jobs only what
    happened is shown, and not the details. With `-f`, JSON is one object per line.

    \b
    Example:  spcluster events -f
    """
    with open_client() as client:
        page = client.events(last=last)
        if as_json and not follow:
            render.print_json([event.model_dump(mode="json") for event in page.events])
            return 0
        _print(page.events, as_json)
        if not follow:
            if not page.events:
                note("nothing has happened yet")
            return 0
        note("following; Ctrl-C ends it")
        try:
            while True:
                page = client.events(after=page.next, wait_s=_WAIT_S, following=True)
                _print(page.events, as_json)
        except KeyboardInterrupt:
            return INTERRUPTED


def _print(events: Sequence[ClusterEventView], as_json: bool) -> None:
    width = render.console().width
    for event in events:
        if as_json:
            line = json.dumps(event.model_dump(mode="json"), ensure_ascii=False)
        else:
            at = time.strftime("%m-%d %H:%M:%S", time.localtime(event.at))
            line = (
                f"{at}  {event.job_id:>5}  {event.kind:<12}  {story.details(event.kind, event.data)}".rstrip()
            )
            line = line if len(line) <= width else f"{line[: width - 1]}…"
        click.echo(line)

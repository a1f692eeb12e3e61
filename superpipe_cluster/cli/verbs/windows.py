"""`spcluster windows`: hours in which batch jobs may run."""

from __future__ import annotations

import time

import click
from rich.text import Text

from superpipe_cluster.api.views import WindowView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import checked_size, open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.times import ahead
from superpipe_cluster.cli.words import note

_COLUMNS = (
    Column("NAME", narrow="shorten"),
    Column("DAYS", narrow="shorten"),
    Column("HOURS"),
    Column("TIMEZONE", narrow="shorten"),
    Column("INTERACTIVE", justify="right"),
    Column("NOW"),
)


@click.group("windows")
def command() -> None:
    """Show and set hours in which batch jobs run.

    A job that names a window in its `schedule` starts and grows only while it is open. Outside of it, its
    interactive floor is left to interactive jobs, on every device.

    \b
    Example:  spcluster windows list
    """


@command.command("list")
@output_option
def list_(as_json: bool) -> None:
    """List the windows, and whether they are open.

    \b
    Example:  spcluster windows list
    """
    with open_client() as client:
        windows = client.windows()
    if as_json:
        render.print_json([window.model_dump(mode="json") for window in windows])
    elif windows:
        _print(windows)
    else:
        note("no windows; `spcluster windows set` makes one")


@command.command("set")
@click.argument("name")
@click.option("--days", default="daily", show_default=True, help="Days it starts on: mon-fri, or sat,sun.")
@click.option("--start", required=True, metavar="HH:MM", help="When it opens.")
@click.option("--end", required=True, metavar="HH:MM", help="When it closes; may be on the next day.")
@click.option("--timezone", required=True, metavar="ZONE", help="Whose clock is meant: Europe/Berlin, UTC.")
@click.option(
    "--interactive-floor",
    metavar="SIZE",
    callback=checked_size,
    help="Bytes per device that are interactive jobs' while it is closed.",
)
def set_(name: str, days: str, start: str, end: str, timezone: str, interactive_floor: str | None) -> None:
    """Make a window, or change one. For admins.

    \b
    Example:  spcluster windows set night --start 22:00 --end 07:00 --timezone UTC
    """
    with open_client() as client:
        window = client.set_window(
            name, days=days, start=start, end=end, timezone=timezone, interactive_floor=interactive_floor
        )
    _print([window])


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Take a window away. For admins.

    \b
    Example:  spcluster windows remove nights
    """
    with open_client() as client:
        client.remove_window(name)
    click.echo(f"there is no window {name} any more")


def _print(windows: list[WindowView]) -> None:
    now = time.time()
    render.table(_COLUMNS, (_row(window, now) for window in windows))


def _row(window: WindowView, now: float) -> tuple[Text | str, ...]:
    turns_at = window.next_closing if window.is_open else window.next_opening
    turn = "" if turns_at is None else f", {'closes' if window.is_open else 'opens'} {ahead(turns_at, now)}"
    return (
        window.name,
        window.days,
        f"{window.start}-{window.end}",
        window.timezone,
        render.size(window.interactive_floor_bytes),
        Text(f"{'open' if window.is_open else 'closed'}{turn}", style="green" if window.is_open else ""),
    )

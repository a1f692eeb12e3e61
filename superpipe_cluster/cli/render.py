"""Tables, JSON and figures on stdout.

Owns how things look: columns that fit the terminal (80 columns where there is none), long names shortened
with an ellipsis, colour on a terminal only and never against NO_COLOR. Decides nothing about what is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from superpipe_cluster.api.views import JobView
from superpipe_cluster.planning.forecast import NO_SLOWDOWN
from superpipe_cluster.spec.units import format_bytes, format_duration

_STATE_COLOURS = {
    "RUNNING": "green",
    "STARTING": "green",
    "SUCCEEDED": "blue",
    "FAILED": "red",
    "CANCELLED": "magenta",
    "STOPPING": "yellow",
    "PAUSED": "yellow",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        heading: its name, in capitals.
        narrow: what happens when the terminal is too narrow: `keep` gives way last of all, `shorten` ends in
            an ellipsis, `fold` goes on in the next line.
        justify: where its text stands.
        widest: columns it takes at most, also when there is room.
    """

    heading: str
    narrow: Literal["keep", "shorten", "fold"] = "keep"
    justify: Literal["left", "right"] = "left"
    widest: int | None = None


def console() -> Console:
    """stdout, as rich sees it."""
    return Console(highlight=False, markup=False, emoji=False)


def table(columns: Sequence[Column], rows: Iterable[Sequence[Text | str]]) -> None:
    """Print a table within the width of the terminal."""
    show(layout(columns, rows))


def show(grid: Table) -> None:
    """Print what `layout` made."""
    target = console()
    if target.is_terminal:
        target.print(grid)
        return
    # rich fills every line with spaces up to its end, which only a terminal does not mind.
    with target.capture() as captured:
        target.print(grid)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def layout(columns: Sequence[Column], rows: Iterable[Sequence[Text | str]]) -> Table:
    """The table, to be printed or to be shown live."""
    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(
            column.heading,
            justify=column.justify,
            # rich narrows columns that may wrap first; whether their cells then do is said cell by cell.
            no_wrap=column.narrow == "keep",
            overflow="fold" if column.narrow == "fold" else "ellipsis",
            max_width=column.widest,
            min_width=len(column.heading),
        )
    for row in rows:
        grid.add_row(*(_cell(cell, column) for cell, column in zip(row, columns, strict=True)))
    return grid


def _cell(cell: Text | str, column: Column) -> Text:
    text = Text(cell) if isinstance(cell, str) else cell
    if column.narrow != "fold":
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print `label  value` lines; long values go on below themselves."""
    shown = [(label, value) for label, value in pairs if value]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in shown:
        grid.add_row(label, Text(value))
    show(grid)


def print_json(data: Any) -> None:
    """Print data as JSON, one that `jq` and people can read."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


# ---- figures --------------------------------------------------------------------------------------


def state(job: JobView) -> Text:
    """`running`, `queued: Resources`, `failed: oom`."""
    colour = _STATE_COLOURS.get(job.state, "")
    said = job.state.lower()
    reason = (
        job.reason
        if job.reason and job.reason not in ("ok", said) and not said.startswith(job.reason)
        else None
    )
    return Text(f"{said}: {reason}" if reason else said, style=colour)


def size(count_bytes: int | None) -> str:
    """`1.5 GiB`; a dash for nothing yet."""
    return format_bytes(count_bytes) if count_bytes else "-"


def span(low_bytes: int, high_bytes: int) -> str:
    """`1.0 GiB..2.0 GiB`, or one size when both ends are the same."""
    return size(low_bytes) if low_bytes == high_bytes else f"{size(low_bytes)}..{size(high_bytes)}"


def of(part: int | None, whole: int | None) -> str:
    """`5/14`; a question mark for what is not known."""
    if part is None and whole is None:
        return "-"
    return f"{'?' if part is None else part}/{'?' if whole is None else whole}"


def elapsed_s(job: JobView, now: float) -> float:
    """Seconds it has been running, or ran, or has been waiting so far."""
    start = job.started_at or job.queued_at or job.submitted_at
    if job.is_over:
        # A job that never started has no running time, whatever it waited.
        start = job.started_at or job.ended_at or now
    return max(0.0, (job.ended_at or now) - start)


def clock_time(at: float | None) -> str:
    """A point in time, in the zone of this machine."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def seconds(count_s: float) -> str:
    """`1.24 s`, `3.1 ms`; three digits of a measured or a forecast time."""
    return f"{count_s * 1000:.3g} ms" if count_s < 1 else f"{count_s:.3g} s"


def slowdown(ratio: float) -> str:
    """`no slowdown`, `1.4x the whole model's`."""
    return "no slowdown" if ratio <= NO_SLOWDOWN else f"{ratio:.2f}x the whole model's"


def duration(seconds: float | None) -> str:
    """`1h 05m`; nothing for None."""
    return "" if seconds is None else format_duration(seconds)

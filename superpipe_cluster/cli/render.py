"""Tables, JSON and figures on stdout.

Owns how things look: within the width of the terminal (80 columns where there is none), colour on a terminal only
and never against NO_COLOR. How columns share the width is in `grid`. Decides nothing about what is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from superpipe_cluster.api.views import JobView
from superpipe_cluster.cli import grid
from superpipe_cluster.cli.grid import Column
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


def console() -> Console:
    """stdout, as rich sees it."""
    return Console(highlight=False, markup=False, emoji=False)


def table(columns: Sequence[Column], rows: Iterable[Sequence[Text | str]]) -> None:
    """Print a table within the width of the terminal."""
    echo(layout(columns, rows))


def layout(columns: Sequence[Column], rows: Iterable[Sequence[Text | str]]) -> list[str]:
    """The lines of the table, coloured where stdout shows colours."""
    return _laid_out(columns, rows, headings=True)


def echo(lines: Sequence[str]) -> None:
    """Print lines that are laid out already."""
    if lines:
        # Whether there are codes in them has been decided; click would take them out for a reader that is no terminal.
        click.echo("\n".join(lines), color=True)


def ansi(text: Text, screen: Console) -> str:
    """One line of several colours, as a string with codes where `screen` shows colours."""
    with screen.capture() as captured:
        screen.print(text, end="", soft_wrap=True)
    return captured.get()


def live(lines: Sequence[str]) -> Text:
    """The same for a screen that rich keeps up to date."""
    return Text.from_ansi("\n".join(lines), no_wrap=True)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print `label  value` lines; long values go on below themselves."""
    shown = [(label, value) for label, value in pairs if value]
    columns = (Column("", style="dim"), Column("", narrow="fold"))
    echo(_laid_out(columns, shown, gap="  ", headings=False))


def _laid_out(
    columns: Sequence[Column], rows: Iterable[Sequence[Text | str]], *, gap: str = " ", headings: bool
) -> list[str]:
    screen = console()
    coloured = screen.color_system is not None and not screen.no_color
    return list(grid.lines(columns, rows, screen.width, gap=gap, headings=headings, coloured=coloured))


def print_json(data: Any) -> None:
    """Print data as JSON, one that `jq` and people can read."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


# ---- figures --------------------------------------------------------------------------------------


def shown_id(job: JobView) -> str:
    """`12`, or `12_4` for a task of an array."""
    return job.id if job.array is None else f"{job.array}_{job.array_index}"


def state(job: JobView) -> Text:
    """`running`, in its colour."""
    return Text(job.state.lower(), style=_STATE_COLOURS.get(job.state, ""))


def reason(job: JobView) -> str:
    """Why it waits, what is being done to it, or how it ended, in a word; empty when its state says all."""
    if job.state == "STOPPING":
        return job.stop_asked or ""
    if job.state in ("STARTING", "RUNNING", "PAUSED"):
        if job.state == "PAUSED":
            return "resuming" if job.pause_asked is None else "Window" if job.pause_asked == "window" else ""
        if job.pause_asked is not None:
            return "pausing"
        asked, has = job.budget_asked_bytes, job.budget_bytes or 0
        return "" if asked is None or asked == has else ("shrinking" if asked < has else "growing")
    said = job.state.lower()
    return "" if not job.reason or job.reason == "ok" or said.startswith(job.reason.lower()) else job.reason


def doing(job: JobView) -> Text:
    """State and reason: `running`, `queued: Resources`, `failed: oom`."""
    why = reason(job)
    return Text(
        f"{job.state.lower()}: {why}" if why else job.state.lower(), style=_STATE_COLOURS.get(job.state, "")
    )


def size(count_bytes: int | None) -> str:
    """`1.5 GiB`; a dash for nothing yet."""
    return format_bytes(count_bytes) if count_bytes else "-"


def span(low_bytes: int, high_bytes: int) -> str:
    """`1.0 GiB..2.0 GiB`, or one size when both ends are the same."""
    return size(low_bytes) if low_bytes == high_bytes else f"{size(low_bytes)}..{size(high_bytes)}"


def gib_hours(byte_s: float) -> str:
    """Device bytes times time, in GiB times hours: `12.5`."""
    used = byte_s / 2**30 / 3600
    return f"{used:,.0f}" if used >= 100 else f"{used:.2f}" if used >= 0.1 else f"{used:.4f}"


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

"""A device as a bar of characters: whose bytes, promised or held, foreign, free.

Owns the drawing. Readable without colours: every kind of byte has a character of its own, and a job's part begins
with its id where there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

HELD, PROMISED, FOREIGN, FREE = "█", "▒", "x", "·"
#: What the characters mean, for below the bars.
LEGEND = f"{HELD} held   {PROMISED} promised   {FOREIGN} not ours   {FREE} free"

_COLOURS = ("green", "cyan", "magenta", "yellow", "blue", "bright_green", "bright_cyan", "bright_magenta")


@dataclass(frozen=True, slots=True)
class Share:
    """A job's part of a device: `held_bytes` of the `promised_bytes` that count against it."""

    label: str
    promised_bytes: int
    held_bytes: int


def colour(position: int) -> str:
    """The colour of the job at this position among the device's, the same in its bar and in the list below."""
    return _COLOURS[position % len(_COLOURS)]


def bar(whole_bytes: int, foreign_bytes: int, shares: Sequence[Share], width: int) -> Text:
    """The device from left to right: its jobs, what is free, what is not ours; `width` characters in all.

    Args:
        whole_bytes: what the width stands for, foreign bytes included.
        foreign_bytes: bytes of processes that are not ours.
        shares: the jobs on it.
        width: characters.
    """
    drawn, at_bytes = Text(no_wrap=True, end=""), 0
    scale = width / max(whole_bytes, 1)
    for position, share in enumerate(shares):
        # Each end is rounded by itself, so that the parts add up to the whole.
        start = round(at_bytes * scale)
        held_end = round((at_bytes + min(share.held_bytes, share.promised_bytes)) * scale)
        at_bytes += share.promised_bytes
        end = min(round(at_bytes * scale), width)
        held_end = min(held_end, end)
        cells = HELD * (held_end - start) + PROMISED * (end - held_end)
        label = share.label if len(share.label) < len(cells) else ""
        drawn.append(label, style=f"{colour(position)} reverse")
        drawn.append(cells[len(label) :], style=colour(position))
    foreign = min(round(foreign_bytes * scale), width - len(drawn))
    drawn.append(FREE * (width - len(drawn) - foreign), style="dim")
    drawn.append(FOREIGN * foreign, style="red")
    return drawn

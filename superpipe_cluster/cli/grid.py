"""Columns of text within a width.

Owns how wide columns are, what gives way when there is no room, and the colour of cells. Plain strings, made row by row
without a library: a queue of ten thousand jobs is to be printed in a moment.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import click
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

_ELLIPSIS = "…"
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        heading: its name, in capitals.
        narrow: what happens when there is no room: `keep` gives way last of all, `shorten` ends in an ellipsis, `fold`
            goes on in the next line.
        justify: where its text stands.
        widest: columns it takes at most, also when there is room.
        style: of its cells, where they have none of their own.
    """

    heading: str
    narrow: Literal["keep", "shorten", "fold"] = "keep"
    justify: Literal["left", "right"] = "left"
    widest: int | None = None
    style: str = ""


def lines(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Text | str]],
    width: int,
    *,
    gap: str = " ",
    headings: bool = True,
    coloured: bool = False,
) -> Iterator[str]:
    """The table, line by line, without spaces at the ends of lines.

    Args:
        columns: what stands in each row.
        rows: the cells; a `Text` gives its one style.
        width: characters of the longest line.
        gap: what stands between two columns.
        headings: whether the first line names the columns.
        coloured: whether styles become ANSI codes.
    """
    table = [tuple(row) for row in rows]
    texts = [[_printable(str(cell)).rstrip() for cell in row] for row in table]
    widths = _widths(columns, texts, width - len(gap) * (len(columns) - 1))
    if headings:
        names = [[_cut(column.heading, size)] for column, size in zip(columns, widths, strict=True)]
        yield from _joined(columns, names, ["bold"] * len(widths), widths, gap, coloured)
    for row, cells in zip(table, texts, strict=True):
        parts = [
            _folded(text, size) if column.narrow == "fold" else [_cut(text, size)]
            for text, column, size in zip(cells, columns, widths, strict=True)
        ]
        styles = [
            str(cell.style) if isinstance(cell, Text) and cell.style else column.style
            for cell, column in zip(row, columns, strict=True)
        ]
        yield from _joined(columns, parts, styles, widths, gap, coloured)


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int) -> list[int]:
    """As wide as the widest cell, unless that is more than there is room for."""
    widths: list[int] = []
    for at, column in enumerate(columns):
        longest = max((_length(row[at]) for row in texts), default=0)
        most = longest if column.widest is None else min(longest, column.widest)
        widths.append(max(most, len(column.heading)))
    excess = sum(widths) - width
    yielding = [at for at, column in enumerate(columns) if column.narrow != "keep"]
    for group in (yielding, range(len(columns))):
        floors = {at: max(len(columns[at].heading), 1) for at in group}
        while excess > 0:
            at = max(floors, key=lambda each: widths[each] - floors[each], default=None)
            if at is None or widths[at] <= floors[at]:
                break
            widths[at] -= 1
            excess -= 1
    return widths


def _joined(
    columns: Sequence[Column],
    parts: Sequence[Sequence[str]],
    styles: Sequence[str],
    widths: Sequence[int],
    gap: str,
    coloured: bool,
) -> Iterator[str]:
    """One row, which folded cells make several lines of."""
    for line in zip_longest(*parts, fillvalue=""):
        cells: list[str] = []
        last = max((at for at, text in enumerate(line) if text), default=-1)
        for at, text in enumerate(line[: last + 1]):
            padding = " " * (widths[at] - _length(text))
            shown = _styled(text, styles[at]) if coloured and styles[at] and text else text
            right = columns[at].justify == "right"
            cells.append(padding + shown if right else shown if at == last else shown + padding)
        yield gap.join(cells)


def _styled(text: str, style: str) -> str:
    words = style.split()
    colour = next((word for word in words if word not in ("bold", "dim", "reverse")), None)
    return click.style(
        text,
        fg=colour,
        bold="bold" in words or None,
        dim="dim" in words or None,
        reverse="reverse" in words or None,
    )


def _printable(text: str) -> str:
    """Without what would move the cursor or colour the screen; a cell may hold a program's own words."""
    return text if text.isprintable() else _CONTROLS.sub("", text.replace("\t", " "))


def _length(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _cut(text: str, width: int) -> str:
    text = text.replace("\n", " ")
    if _length(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + _ELLIPSIS if width > 1 else _ELLIPSIS


def _folded(text: str, width: int) -> list[str]:
    if _length(text) <= width and "\n" not in text:
        return [text]
    folded: list[str] = []
    for line in text.split("\n"):
        for piece in textwrap.wrap(line, width, break_on_hyphens=False) or [""]:
            # `textwrap` counts characters, of which some take two columns.
            narrow = [piece] if _length(piece) <= width else filter(None, chop_cells(piece, width))
            folded += [_cut(part, width) for part in narrow]
    return folded

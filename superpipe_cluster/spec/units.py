"""Sizes, durations and points in time as people write them: `12GiB`, `10GiB..24GiB`, `1h30m`, `2026-11-22T22:00`.

Owns durations, points in time and ranges of sizes. Single sizes are in `superpipe_cluster.sizes`, for the streaming
runtime reads them too; they can be had from here. A number without its unit is refused, everywhere. Does not know job
files; errors are `BadInput` without a location.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from superpipe_cluster.errors import BadInput
from superpipe_cluster.sizes import (
    BYTES_PATTERN,
    LONGEST,
    MAX_BYTES,
    NUMBER,
    format_bytes,
    parse_bytes,
    shown,
    spell_bytes,
)

__all__ = [
    "BYTES_PATTERN",
    "BYTE_RANGE_PATTERN",
    "DURATION_PATTERN",
    "MAX_BYTES",
    "MAX_SECONDS",
    "MOMENT_PATTERN",
    "ByteRange",
    "format_bytes",
    "format_duration",
    "parse_bytes",
    "parse_duration",
    "parse_moment",
    "spell_bytes",
    "spell_duration",
    "spell_moment",
]

_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

#: Durations above this are typing errors (about a century).
MAX_SECONDS = 36_500 * 86_400

#: What `ByteRange.parse` takes.
BYTE_RANGE_PATTERN = rf"{BYTES_PATTERN[:-1]}( ?\.\. ?{NUMBER} ?([kKmMgGtT][iI]?)?[bB])?$"
#: What `parse_duration` takes.
DURATION_PATTERN = rf"^(?=[0-9])({NUMBER}d)? ?({NUMBER}h)? ?({NUMBER}m)? ?({NUMBER}s)?$"
#: What `parse_moment` takes.
MOMENT_PATTERN = (
    r"^2[0-9]{3}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?$"
)

_DURATION = re.compile(
    rf"(?:({NUMBER})\s*d)?\s*(?:({NUMBER})\s*h)?\s*(?:({NUMBER})\s*m)?\s*(?:({NUMBER})\s*s)?"
)


def parse_duration(text: object) -> float:
    """Read a duration in days, hours, minutes and seconds, `90m`, `1h30m` or `0.5s`, into seconds.

    Raises:
        BadInput: no unit, an unknown unit, or not a duration at all.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise BadInput(f"a duration needs a unit, got {text}", hint=_timed(str(text)))
    if isinstance(text, str) and len(text) <= LONGEST:
        stripped = text.strip()
        if re.fullmatch(NUMBER, stripped):
            raise BadInput(f"a duration needs a unit, got {stripped}", hint=_timed(stripped))
        found = _DURATION.fullmatch(stripped)
        if stripped and found is not None:
            parts = zip(found.groups(), _SECONDS.values(), strict=True)
            seconds = float(sum(Fraction(number) * factor for number, factor in parts if number))
            if seconds > MAX_SECONDS:
                raise BadInput(f"{text!r} is longer than a century", hint="check the unit")
            return seconds
    raise BadInput(
        f"{shown(text)} is not a duration", hint="write days, hours, minutes, seconds: 1d, 8h, 1h30m, 45s"
    )


def parse_moment(text: object) -> datetime:
    """Read a point in time in ISO 8601, `2026-11-22T22:00` or `2026-11-22 22:00:00+01:00`, to one with an offset.

    Without an offset it is local time, of the machine that reads it.

    Raises:
        BadInput: a day without the time, an impossible date, or no point in time at all.
    """
    if isinstance(text, datetime) and text.tzinfo is not None:
        return text
    stripped = text.strip() if isinstance(text, str) and len(text) <= LONGEST else ""
    if re.fullmatch(r"2[0-9]{3}-[0-9]{2}-[0-9]{2}", stripped):
        raise BadInput(f"{stripped} lacks the time of the day", hint=f"write {stripped}T22:00")
    if re.fullmatch(MOMENT_PATTERN, stripped) is None:
        raise BadInput(
            f"{shown(text)} is not a point in time",
            hint="write the date and the time, 2026-11-22T22:00, or with an offset: 2026-11-22T22:00+01:00",
        )
    try:
        found = datetime.fromisoformat(stripped)
        return found if found.tzinfo is not None else found.astimezone()
    except (ValueError, OverflowError) as error:
        raise BadInput(
            f"{stripped} is no point in time: {error}", hint="check the date and the time"
        ) from None


@dataclass(frozen=True, order=True)
class ByteRange:
    """Bytes from guaranteed to wanted, both inclusive; one size alone is a range of itself.

    Attributes:
        min_bytes: the job is not started with less.
        max_bytes: more than this is of no use to it.
    """

    min_bytes: int
    max_bytes: int

    def __post_init__(self) -> None:
        if self.min_bytes <= 0:
            raise BadInput("a memory size must be more than zero", hint="write a size like 12GiB, or auto")
        if self.max_bytes < self.min_bytes:
            low, high = spell_bytes(self.max_bytes), spell_bytes(self.min_bytes)
            raise BadInput("the range runs backwards", hint=f"write the smaller size first: {low}..{high}")

    @classmethod
    def parse(cls, text: object) -> ByteRange:
        """Read `10GiB..24GiB`, or one size.

        Raises:
            BadInput: an end is not a size, is zero, or they are in the wrong order.
        """
        if not isinstance(text, str) or ".." not in text:
            size_bytes = parse_bytes(text)
            return cls(size_bytes, size_bytes)
        low, _, high = (part.strip() for part in text.partition(".."))
        if not low or not high:
            raise BadInput(f"{shown(text)} lacks an end", hint="write both ends: 10GiB..24GiB, or one size")
        if re.fullmatch(NUMBER, low) and (unit := high.lstrip("0123456789. ")):
            raise BadInput(f"a size needs a unit, got {low}", hint=f"did you mean {low}{unit}..{high}?")
        return cls(parse_bytes(low), parse_bytes(high))

    def __str__(self) -> str:
        low, high = spell_bytes(self.min_bytes), spell_bytes(self.max_bytes)
        return low if low == high else f"{low}..{high}"


def spell_duration(seconds: float) -> str:
    """An exact spelling, `1h30m`: `parse_duration(spell_duration(x)) == x`."""
    if seconds != int(seconds):
        # The grammar of durations has no exponents, which a float's own spelling may have.
        return f"{Decimal(repr(seconds)):f}s"
    left = int(seconds)
    parts: list[str] = []
    for unit, factor in _SECONDS.items():
        count, left = divmod(left, factor)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def spell_moment(moment: datetime) -> str:
    """An exact spelling, `2026-11-22T22:00:00+01:00`: `parse_moment(spell_moment(x)) == x`."""
    return moment.isoformat()


def format_duration(seconds: float) -> str:
    """For reading, at most two units: `2d 3h`, `1h 05m`, `4m 10s`, `12s`, `0.4s`."""
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3_600}h {whole % 3_600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3_600}h"


def _timed(number: str) -> str:
    return f"write {number}s, {number}m or {number}h"

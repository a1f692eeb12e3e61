"""Sizes and durations as people write them: `12GiB`, `10GiB..24GiB`, `8h`, `1h30m`.

Owns the spelling in both directions. A number without its unit is refused, everywhere: nobody can tell
whether `memory: 12` is bytes, megabytes or gigabytes. Does not know job files; errors are `BadInput` without
a location.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from superpipe_cluster.errors import BadInput

_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_BYTES_BY_LOWER = {unit.lower(): factor for unit, factor in _BYTES.items()}
_BINARY = ("TiB", "GiB", "MiB", "KiB")
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}

#: Sizes above this are typing errors, and would not fit the store's 64-bit integers.
MAX_BYTES = 2**60
#: Durations above this are typing errors (about a century).
MAX_SECONDS = 36_500 * 86_400

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
#: What `parse_bytes` takes, as a JSON schema (ECMA) pattern.
BYTES_PATTERN = rf"^{_NUMBER} ?([kKmMgGtT][iI]?)?[bB]$"
#: What `ByteRange.parse` takes.
BYTE_RANGE_PATTERN = rf"{BYTES_PATTERN[:-1]}( ?\.\. ?{_NUMBER} ?([kKmMgGtT][iI]?)?[bB])?$"
#: What `parse_duration` takes.
DURATION_PATTERN = rf"^(?=[0-9])({_NUMBER}d)? ?({_NUMBER}h)? ?({_NUMBER}m)? ?({_NUMBER}s)?$"

_SIZE = re.compile(rf"({_NUMBER})\s*([A-Za-z]*)")
_DURATION = re.compile(
    rf"(?:({_NUMBER})\s*d)?\s*(?:({_NUMBER})\s*h)?\s*(?:({_NUMBER})\s*m)?\s*(?:({_NUMBER})\s*s)?"
)
_LONGEST = 64


def parse_bytes(text: object) -> int:
    """Read one size, `12GiB`, `1.5 GB` or `512B`; units in any case, a fraction of a byte is dropped.

    Raises:
        BadInput: no unit, an unknown unit, or not a size at all.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise BadInput(f"a size needs a unit, got {text}", hint=_sized(str(text)))
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) and len(text) <= _LONGEST else None
    if found is None:
        raise BadInput(f"{_shown(text)} is not a size", hint="write a number and a unit: 12GiB or 800MiB")
    number, unit = found.groups()
    if not unit:
        raise BadInput(f"a size needs a unit, got {number}", hint=_sized(number))
    factor = _BYTES_BY_LOWER.get(unit.lower())
    if factor is None:
        binary = f"{number}{unit[0].upper()}iB"
        hint = f"did you mean {binary}?" if unit[0].lower() in "kmgt" else f"use one of {', '.join(_BYTES)}"
        raise BadInput(f"{text!r} has an unknown unit {unit!r}", hint=hint)
    size_bytes = int(Fraction(number) * factor)
    if size_bytes > MAX_BYTES:
        raise BadInput(f"{text!r} is more than any machine has", hint="check the unit")
    return size_bytes


def parse_duration(text: object) -> float:
    """Read a duration in days, hours, minutes and seconds, `90m`, `1h30m` or `0.5s`, into seconds.

    Raises:
        BadInput: no unit, an unknown unit, or not a duration at all.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise BadInput(f"a duration needs a unit, got {text}", hint=_timed(str(text)))
    if isinstance(text, str) and len(text) <= _LONGEST:
        stripped = text.strip()
        if re.fullmatch(_NUMBER, stripped):
            raise BadInput(f"a duration needs a unit, got {stripped}", hint=_timed(stripped))
        found = _DURATION.fullmatch(stripped)
        if stripped and found is not None:
            parts = zip(found.groups(), _SECONDS.values(), strict=True)
            seconds = float(sum(Fraction(number) * factor for number, factor in parts if number))
            if seconds > MAX_SECONDS:
                raise BadInput(f"{text!r} is longer than a century", hint="check the unit")
            return seconds
    raise BadInput(
        f"{_shown(text)} is not a duration", hint="write days, hours, minutes, seconds: 1d, 8h, 1h30m, 45s"
    )


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
            raise BadInput(f"{_shown(text)} lacks an end", hint="write both ends: 10GiB..24GiB, or one size")
        if re.fullmatch(_NUMBER, low) and (unit := high.lstrip("0123456789. ")):
            raise BadInput(f"a size needs a unit, got {low}", hint=f"did you mean {low}{unit}..{high}?")
        return cls(parse_bytes(low), parse_bytes(high))

    def __str__(self) -> str:
        low, high = spell_bytes(self.min_bytes), spell_bytes(self.max_bytes)
        return low if low == high else f"{low}..{high}"


def spell_bytes(size_bytes: int) -> str:
    """The shortest exact spelling: `parse_bytes(spell_bytes(n)) == n` for every `n` up to `MAX_BYTES`."""
    for unit in _BINARY:
        if size_bytes and size_bytes % _BYTES[unit] == 0:
            return f"{size_bytes // _BYTES[unit]}{unit}"
    return f"{size_bytes}B"


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


def format_bytes(size_bytes: int) -> str:
    """For reading, rounded: `12.0 GiB`, `512 B`."""
    for unit in _BINARY:
        # Rounding comes before choosing the unit, so that 1023.99 MiB reads 1.0 GiB and not 1024.0 MiB.
        if round(abs(size_bytes) / _BYTES[unit], 1) >= 1.0:
            return f"{size_bytes / _BYTES[unit]:.1f} {unit}"
    return f"{size_bytes} B"


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


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _sized(number: str) -> str:
    # Nobody means a million GiB; whoever writes that much counts bytes.
    if number.isdecimal() and 10**6 <= int(number) <= MAX_BYTES:
        unit = next(unit for unit in _BINARY if int(number) >= _BYTES[unit])
        return f"write {number}B, or {round(int(number) / _BYTES[unit], 1):g}{unit}"
    return f"write {number}GiB or {number}MiB"


def _timed(number: str) -> str:
    return f"write {number}s, {number}m or {number}h"

"""Sizes as people write them: `12GiB`, `1.5 GB`, `512B`.

Owns the spelling in both directions, for job files and for `stream(budget="8GiB")` alike. A number without its unit is
refused wherever text is read: nobody can tell whether `memory: 12` is bytes, megabytes or gigabytes. Ranges of sizes
and durations are job files' own: see `spec.units`.
"""

from __future__ import annotations

import re
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

#: Sizes above this are typing errors, and would not fit the store's 64-bit integers.
MAX_BYTES = 2**60

#: A number as people write it, without sign or exponent.
NUMBER = r"[0-9]+(?:\.[0-9]+)?"
#: What `parse_bytes` takes, as a JSON schema (ECMA) pattern.
BYTES_PATTERN = rf"^{NUMBER} ?([kKmMgGtT][iI]?)?[bB]$"

_SIZE = re.compile(rf"({NUMBER})\s*([A-Za-z]*)")
#: Longer texts are no sizes, and are cut when shown.
LONGEST = 64


def parse_bytes(text: object) -> int:
    """Read one size, `12GiB`, `1.5 GB` or `512B`; units in any case, a fraction of a byte is dropped.

    Raises:
        BadInput: no unit, an unknown unit, or not a size at all.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise BadInput(f"a size needs a unit, got {text}", hint=_sized(str(text)))
    found = _SIZE.fullmatch(text.strip()) if isinstance(text, str) and len(text) <= LONGEST else None
    if found is None:
        raise BadInput(f"{shown(text)} is not a size", hint="write a number and a unit: 12GiB or 800MiB")
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


def bytes_of(size: int | str) -> int:
    """Bytes meant by a size in a program, where a plain number is bytes: `8 << 30` or `"8GiB"`.

    Raises:
        BadInput: not a size.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    if isinstance(size, str):
        return parse_bytes(size)
    raise BadInput(f"{shown(size)} is not a size", hint='write "12GiB", or a whole number of bytes')


def spell_bytes(size_bytes: int) -> str:
    """The shortest exact spelling: `parse_bytes(spell_bytes(n)) == n` for every `n` up to `MAX_BYTES`."""
    for unit in _BINARY:
        if size_bytes and size_bytes % _BYTES[unit] == 0:
            return f"{size_bytes // _BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def format_bytes(size_bytes: int) -> str:
    """For reading, rounded: `12.0 GiB`, `512 B`."""
    for unit in _BINARY:
        # Rounding comes before choosing the unit, so that 1023.99 MiB reads 1.0 GiB and not 1024.0 MiB.
        if round(abs(size_bytes) / _BYTES[unit], 1) >= 1.0:
            return f"{size_bytes / _BYTES[unit]:.1f} {unit}"
    return f"{size_bytes} B"


def shown(value: object) -> str:
    """`repr(value)`, cut if it is long, for error messages."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _sized(number: str) -> str:
    # Nobody means a million GiB; whoever writes that much counts bytes.
    if number.isdecimal() and 10**6 <= int(number) <= MAX_BYTES:
        unit = next(unit for unit in _BINARY if int(number) >= _BYTES[unit])
        return f"write {number}B, or {round(int(number) / _BYTES[unit], 1):g}{unit}"
    return f"write {number}GiB or {number}MiB"

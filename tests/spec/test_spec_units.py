"""Sizes and durations: what is read, what is refused, and that spelling loses nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec import units
from superpipe_cluster.spec.units import ByteRange

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("12GiB", 12 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("512b", 512),
        ("800MB", 800_000_000),
        ("3 tib", 3 * 2**40),
        (" 1kB ", 1000),
        ("0.3B", 0),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, size_bytes: int) -> None:
    assert units.parse_bytes(text) == size_bytes
    if text == text.strip():
        assert re.search(units.BYTES_PATTERN, text), "the schema accepts what the parser does"


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        (12, "a size needs a unit, got 12", "write 12GiB or 12MiB"),
        ("12", "a size needs a unit, got 12", "write 12GiB or 12MiB"),
        (0.5, "a size needs a unit, got 0.5", "write 0.5GiB or 0.5MiB"),
        (999_999, "a size needs a unit, got 999999", "write 999999GiB or 999999MiB"),
        (1_000_000, "a size needs a unit, got 1000000", "write 1000000B, or 976.6KiB"),
        ("12884901888", "a size needs a unit, got 12884901888", "write 12884901888B, or 12GiB"),
        ("12G", "'12G' has an unknown unit 'G'", "did you mean 12GiB?"),
        ("12Gbit", "'12Gbit' has an unknown unit 'Gbit'", "did you mean 12GiB?"),
        ("3 apples", "'3 apples' has an unknown unit 'apples'", "use one of B, kB"),
        ("-1GiB", "'-1GiB' is not a size", "write a number and a unit"),
        ("much", "'much' is not a size", "write a number and a unit"),
        ("", "'' is not a size", "write a number and a unit"),
        (True, "True is not a size", "write a number and a unit"),
        (None, "None is not a size", "write a number and a unit"),
        ("1" * 90 + "GiB", "is not a size", "write a number and a unit"),
        ("99999999TiB", "more than any machine has", "check the unit"),
    ],
)
def test_anything_else_is_refused_with_a_hint(value: object, message: str, hint: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        units.parse_bytes(value)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("12GiB", 12, 12), ("10GiB..24GiB", 10, 24), ("10GiB .. 24GiB", 10, 24), ("10GiB..10GiB", 10, 10)],
)
def test_a_range_is_guaranteed_to_wanted(text: str, low: int, high: int) -> None:
    assert ByteRange.parse(text) == ByteRange(low * GIB, high * GIB)
    assert re.search(units.BYTE_RANGE_PATTERN, text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("24GiB..10GiB", "10GiB..24GiB"),
        ("10..24GiB", "did you mean 10GiB..24GiB?"),
        ("10GiB..", "write both ends"),
        ("..24GiB", "write both ends"),
        ("10GiB..24", "write 24GiB or 24MiB"),
        ("0B", "or auto"),
        (7, "write 7GiB"),
    ],
)
def test_a_wrong_range_says_how_to_write_it(text: object, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        ByteRange.parse(text)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28_800),
        ("90m", 5_400),
        ("1h30m", 5_400),
        ("1d 2h", 93_600),
        ("0.5s", 0.5),
        ("45 s", 45),
        ("1.5h", 5_400),
    ],
)
def test_a_duration_is_read_into_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value", [90, "90", "", " ", "h", "90x", "1m2h", "1:30", "-5s", True, None, "9" * 60 + "d"]
)
def test_a_duration_without_its_unit_is_refused(value: object) -> None:
    with pytest.raises(BadInput) as caught:
        units.parse_duration(value)
    assert caught.value.hint


@settings(deadline=None)
@given(st.integers(0, units.MAX_BYTES))
def test_spelled_sizes_read_back_exactly(size_bytes: int) -> None:
    assert units.parse_bytes(units.spell_bytes(size_bytes)) == size_bytes
    assert re.search(units.BYTES_PATTERN, units.spell_bytes(size_bytes))


@settings(deadline=None)
@given(st.integers(1, units.MAX_BYTES), st.integers(1, units.MAX_BYTES))
def test_spelled_ranges_read_back_exactly(one: int, other: int) -> None:
    memory = ByteRange(min(one, other), max(one, other))
    assert ByteRange.parse(str(memory)) == memory
    assert re.search(units.BYTE_RANGE_PATTERN, str(memory))


@settings(deadline=None)
@given(st.floats(1e-9, units.MAX_SECONDS) | st.integers(0, units.MAX_SECONDS).map(float))
def test_spelled_durations_read_back_exactly(seconds: float) -> None:
    assert units.parse_duration(units.spell_duration(seconds)) == seconds
    assert re.search(units.DURATION_PATTERN, units.spell_duration(seconds))


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (2**20 - 1, "1.0 MiB"),
        (12 * GIB, "12.0 GiB"),
        (-3 * GIB, "-3.0 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_for_reading(size_bytes: int, text: str) -> None:
    assert units.format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (0.42, "0.4s"),
        (9.97, "10s"),
        (59.7, "1m 00s"),
        (250, "4m 10s"),
        (3_900, "1h 05m"),
        (183_600, "2d 3h"),
        (-5, "-5.0s"),
    ],
)
def test_durations_for_reading(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text

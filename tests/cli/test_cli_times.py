"""Times as they are typed and as they are shown: short forms, the next 22:30, in 12 min."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from superpipe_cluster.cli import times
from superpipe_cluster.errors import BadInput

#: A Saturday afternoon in Berlin, the day before nothing special; and the eve of the end of summer time there.
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC).timestamp()
EVE = datetime(2026, 10, 24, 21, 30, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "now", "spelled"),
    [
        ("22:30", NOON, "2026-11-21T22:30:00+01:00"),
        ("13:00", NOON, "2026-11-22T13:00:00+01:00"),
        ("9:05", NOON, "2026-11-22T09:05:00+01:00"),
        ("2h", NOON, "2026-11-21T15:00:00+01:00"),
        ("1h30m", NOON, "2026-11-21T14:30:00+01:00"),
        ("23:15", EVE, "2026-10-25T23:15:00+01:00"),  # the night is 25 hours long
        ("2026-12-01T06:00", NOON, "2026-12-01T06:00:00+01:00"),
        ("2026-12-01T06:00+00:00", NOON, "2026-12-01T06:00:00+00:00"),
    ],
)
def test_a_time_to_begin_is_the_next_one_meant(text: str, now: float, spelled: str) -> None:
    assert times.moment(text, now).isoformat() == spelled


@pytest.mark.parametrize("text", ["soon", "24:00", "2026-12-01", "", "-2h", "22"])
def test_anything_else_is_refused_with_the_short_forms(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        times.moment(text, NOON)
    assert "22:30 and 2h" in (caught.value.hint or "")


def test_how_far_back() -> None:
    assert times.since("7d", NOON) == NOON - 7 * 86_400
    assert times.since("2026-11-21T12:00", NOON) == NOON - 3600
    with pytest.raises(BadInput):
        times.since("yesterday", NOON)


@pytest.mark.parametrize(
    ("ahead_s", "shown"),
    [
        (-5, "now"), (0, "now"), (1, "in 1 s"), (45, "in 45 s"), (59.7, "in 1 min"), (61, "in 1 min"),
        (720, "in 12 min"), (5399, "in 90 min"), (5400, "in 2 h"), (100_000, "in 28 h"), (129_600, "in 2 d"),
        (10 * 86_400, "in 10 d"),
    ],
)  # fmt: skip
def test_ahead_is_as_rough_as_it_is_known(ahead_s: float, shown: str) -> None:
    assert times.ahead(NOON + ahead_s, NOON) == shown


def test_a_clock_names_the_day_when_it_is_another() -> None:
    assert times.day_and_clock(NOON, NOON) == "13:00"
    assert times.day_and_clock(NOON + 86_400, NOON) == "Sun 13:00"
    assert times.day_and_clock(NOON + 30 * 86_400, NOON) == "2026-12-21 13:00"

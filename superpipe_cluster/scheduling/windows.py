"""Hours of the week in which jobs may run: when one is open, opens next, closes next.

Owns the arithmetic of days, clocks and daylight saving; pure, the time is an argument. What a closed window means
for a job is decided in `running.py` and `gates.py`.

[Note: a window's hours] A window belongs to the day it starts on: `mon-fri`, 22:00 to 07:00, ends on Saturday
morning. Its hours are what a clock on the wall in its time zone shows, turned into points in time once per day: the
interval from one point to the other. So it opens and closes once a day on every day of the year. A time that the clock
shows twice in autumn is the first of the two; one that it jumps over in spring is the moment of the jump.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from superpipe_cluster.errors import BadInput
from superpipe_cluster.sizes import shown

#: As `days` spells them; Monday is 0, as in `datetime`.
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

#: Days looked ahead: a window that opens at all opens within a week, one that is open on none of these never closes.
_AHEAD = 9


@dataclass(frozen=True, slots=True)
class Window:
    """Hours that come back. See [Note: a window's hours].

    Attributes:
        name: as jobs name it.
        days: the days it starts on: `mon-fri`, `sat,sun`, `mon-thu,sun`, `daily`.
        start: when it opens, `22:00`.
        end: when it closes, `07:00`; on the next day if that is not after `start`.
        timezone: whose clock is meant, `Europe/Berlin`.
        interactive_floor_bytes: on each device, bytes that only interactive jobs may take while it is closed.
    """

    name: str
    days: str
    start: str
    end: str
    timezone: str
    interactive_floor_bytes: int = 0

    def __post_init__(self) -> None:
        """Raises BadInput for days, times or a time zone that do not exist."""
        _days(self.days)
        _time(self.start)
        _time(self.end)
        _zone(self.timezone)
        if self.interactive_floor_bytes < 0:
            raise BadInput(f"{self.interactive_floor_bytes} bytes cannot be kept for interactive jobs")

    def is_open(self, wall: float) -> bool:
        """Whether it is open at `wall` (unix seconds by the wall clock)."""
        return any(opens <= wall < closes for opens, closes in self._around(wall))

    def next_opening(self, wall: float) -> float | None:
        """The first moment after `wall` at which it goes from closed to open; None when it never closes."""
        return min((opens for opens, _ in self._around(wall) if opens > wall), default=None)

    def next_closing(self, wall: float) -> float | None:
        """The first moment after `wall` at which it goes from open to closed; None when it never closes."""
        around = self._around(wall)
        always = len(around) == 1 and around[0][1] - wall > timedelta(days=7).total_seconds()
        return None if always else min((closes for _, closes in around if closes > wall), default=None)

    def says(self, at: float) -> str:
        """A moment (unix seconds) as its clock shows it: `Mon 22:00`."""
        there = datetime.fromtimestamp(at, _zone(self.timezone))
        return f"{DAYS[there.weekday()].capitalize()} {there:%H:%M}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Window:
        """The window that `to_json` wrote; keys of a newer version are left out.

        Raises:
            BadInput: a value is missing or impossible.
        """
        missing = [name for name in ("name", "days", "start", "end", "timezone") if name not in stored]
        if missing:
            raise BadInput(f"a window needs {', '.join(missing)}")
        try:
            return cls(**{name: stored[name] for name in cls.__dataclass_fields__ if name in stored})
        except TypeError:
            raise BadInput(f"{shown(dict(stored))} is not a window") from None

    def _around(self, wall: float) -> tuple[tuple[float, float], ...]:
        """Its hours from two days before `wall` on, as points in time; those that touch are one."""
        return _hours(self, datetime.fromtimestamp(wall, _zone(self.timezone)).date())


@lru_cache(maxsize=64)
def _hours(window: Window, today: date) -> tuple[tuple[float, float], ...]:
    zone, days = _zone(window.timezone), _days(window.days)
    start, end = _time(window.start), _time(window.end)
    hours: list[tuple[float, float]] = []
    for ahead in range(-2, _AHEAD):
        day = today + timedelta(days=ahead)
        if day.weekday() not in days:
            continue
        last = day if end > start else day + timedelta(days=1)
        opens, closes = _moment(day, start, zone), _moment(last, end, zone)
        if hours and hours[-1][1] >= opens:
            hours[-1] = (hours[-1][0], max(hours[-1][1], closes))
        elif closes > opens:
            hours.append((opens, closes))
    return tuple(hours)


def _moment(day: date, at: time, zone: ZoneInfo) -> float:
    """When a clock there shows `at` on `day`, unix seconds. See [Note: a window's hours]."""
    local = datetime.combine(day, at, tzinfo=zone)
    late = local.timestamp()
    if datetime.fromtimestamp(late, zone).time() == at:
        return late
    # The clock jumps over it. The offsets before and after the jump put it on the two sides of the jump.
    low, high = round(local.replace(fold=1).timestamp()), round(late)
    before = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return float(high)


def _days(text: object) -> frozenset[int]:
    """The days meant by `mon-fri,sun` or `daily`, Monday is 0."""
    days: set[int] = set()
    for part in str(text).lower().replace("daily", "mon-sun").split(","):
        first, _, last = part.strip().partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise BadInput(f"{shown(text)} are no days", hint="write mon-fri, or sat,sun, or daily")
        start, end = DAYS.index(first), DAYS.index(last or first)
        days.update((start + ahead) % 7 for ahead in range((end - start) % 7 + 1))
    return frozenset(days)


def _time(text: object) -> time:
    try:
        return datetime.strptime(str(text), "%H:%M").time()  # noqa: DTZ007 - a time of day, in no zone yet
    except ValueError:
        raise BadInput(f"{shown(text)} is not a time of day", hint="write 22:00") from None


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(str(name))
    except (KeyError, ValueError, OSError):  # unknown, unspeakable, a directory
        raise BadInput(
            f"{shown(name)} is not a time zone", hint="write one like Europe/Berlin or UTC"
        ) from None


class Hours:
    """All windows at one moment.

    Args:
        windows: by name.
        wall: unix seconds by the wall clock.
    """

    def __init__(self, windows: Mapping[str, Window], wall: float) -> None:
        self._windows = windows
        self._wall = wall
        self._open = {name: window.is_open(wall) for name, window in windows.items()}
        self._openings: dict[str, tuple[float, str] | None] = {}
        #: The closed window that keeps the most bytes for interactive jobs; None when none keeps any.
        self.keeper = max(
            (one for name, one in windows.items() if not self._open[name] and one.interactive_floor_bytes),
            key=lambda window: (window.interactive_floor_bytes, window.name),
            default=None,
        )

    def is_open(self, name: str | None) -> bool:
        """Whether a job with this window may start and grow; one without a window always may."""
        return name is None or self._open.get(name, False)

    def has_closed(self, name: str | None) -> bool:
        """Whether a running job's window is over. A window that nobody knows any more ends nothing."""
        return name is not None and not self._open.get(name, True)

    def opening(self, name: str) -> tuple[float, str] | None:
        """In how many seconds a closed window opens, and that moment as its clock shows it; None if it is unknown."""
        if name not in self._openings:
            window = self._windows.get(name)
            at = window.next_opening(self._wall) if window is not None else None
            self._openings[name] = (
                None if window is None or at is None else (at - self._wall, window.says(at))
            )
        return self._openings[name]

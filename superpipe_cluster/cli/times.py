"""Points in time as people type and read them: `22:30`, `2h`, `2026-11-22T22:00`; `in 12 min`.

Owns these short forms, which are for command lines: a job file has whole dates (`spec.units`). The present is an
argument.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec.units import parse_duration, parse_moment

_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")


def moment(text: str, now: float) -> datetime:
    """Read when something is to begin: a time of the day (the next one), a while from now, or a whole date.

    Raises:
        BadInput: it is none of these.
    """
    clock = _CLOCK.fullmatch(text.strip())
    if clock is not None:
        local = datetime.fromtimestamp(now, UTC).astimezone()
        today = local.replace(tzinfo=None, hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        # By the calendar and not by 24 hours: the night of a clock change is another length.
        return next(
            day for day in (today.astimezone(), (today + timedelta(days=1)).astimezone()) if day > local
        )
    if re.fullmatch(r"[0-9.]+\s*[dhms].*", text.strip()):
        return datetime.fromtimestamp(now + parse_duration(text), UTC).astimezone()
    try:
        return parse_moment(text)
    except BadInput as error:
        hint = f"{error.hint}; 22:30 and 2h (from now) do too" if error.hint else None
        raise BadInput(error.message, hint=hint) from None


def since(text: str, now: float) -> float:
    """Read how far back to look, `7d` or a date; unix seconds.

    Raises:
        BadInput: it is neither.
    """
    if re.fullmatch(r"[0-9.]+\s*[dhms].*", text.strip()):
        return now - parse_duration(text)
    return parse_moment(text).timestamp()


def ahead(at: float, now: float) -> str:
    """How far ahead a forecast time is, as roughly as it is known: `now`, `in 45 s`, `in 12 min`, `in 3 h`."""
    left_s = at - now
    if left_s < 1:
        return "now"
    if left_s < 59.5:
        return f"in {left_s:.0f} s"
    if left_s < 5400:
        return f"in {left_s / 60:.0f} min"
    if left_s < 129_600:
        return f"in {left_s / 3600:.0f} h"
    return f"in {left_s / 86_400:.0f} d"


def day_and_clock(at: float, now: float) -> str:
    """A point in time in the zone of this machine: `21:45`, `Mon 21:45` within a week, else the date."""
    local, today = time.localtime(at), time.localtime(now)
    if local[:3] == today[:3]:
        return time.strftime("%H:%M", local)
    return time.strftime("%a %H:%M" if abs(at - now) < 6 * 86_400 else "%Y-%m-%d %H:%M", local)

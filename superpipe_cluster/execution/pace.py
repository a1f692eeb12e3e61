"""How long a job's steps take: the median of the latest ones.

Owns the arithmetic. The first steps are left out: the runtime learns the order in them, and what lives long appears.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_FIRST_STEPS, _KEPT = 3, 50


class Pace:
    """Fed with (step, moment) at the end of steps."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None
        self._seen = 0
        self._seconds: deque[float] = deque(maxlen=_KEPT)

    def at(self, step: int, now_s: float) -> None:
        """`step` steps were done at `now_s`."""
        if self._last is not None and step > self._last[0]:
            self._seen += 1
            if self._seen > _FIRST_STEPS:
                self._seconds.append((now_s - self._last[1]) / (step - self._last[0]))
        self._last = (step, now_s)

    @property
    def step_s(self) -> float | None:
        """Seconds of a step; None before enough of them."""
        return median(self._seconds) if self._seconds else None

"""Virtual time: an ordered list of what is to happen, and the clocks that read it.

Owns the order of events and nothing else. Two events at one moment happen in the order in which they were announced, so
that a seed has one trace.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

#: Unix seconds at which every simulation begins: a Friday, 08:00 UTC, in winter.
BEGINNING = 1_800_000_000.0

Action = Callable[[], None]


class Loop:
    """What happens when.

    Attributes:
        now_s: seconds since the beginning. Never goes back: it is the monotonic clock.
        wall_shift_s: how far the wall clock has been set forward (or back) by somebody.
        done: events that have happened.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.wall_shift_s = 0.0
        self.done = 0
        self._number = 0
        self._events: list[tuple[float, int, str, Action]] = []

    def monotonic(self) -> float:
        """Seconds that nobody can set."""
        return self.now_s

    def wall(self) -> float:
        """Unix seconds as the machine believes them to be."""
        return BEGINNING + self.now_s + self.wall_shift_s

    def after(self, seconds: float, what: str, action: Action) -> None:
        """Let `action` happen in so many seconds. `what` is its line in the trace."""
        self._number += 1
        heapq.heappush(self._events, (self.now_s + seconds, self._number, what, action))

    @property
    def next_up(self) -> str | None:
        """What happens next; None when nothing ever will."""
        return self._events[0][2] if self._events else None

    def run_next(self) -> None:
        """Go to the next moment at which something happens, and let it."""
        at_s, _, _, action = heapq.heappop(self._events)
        self.now_s = max(self.now_s, at_s)
        self.done += 1
        action()

"""When the head's loop goes round: at once when it is woken, seldom when nothing happens.

Owns the arithmetic of [Note: two rhythms] in `tick`; the waiting itself is the loop's.
"""

from __future__ import annotations

from collections.abc import Callable

#: Seconds between two looks at the workers, while there are any.
WATCH_EVERY_S = 0.5
#: Seconds between two whole rounds that nothing has called for: some things change by time alone. Where a round takes
#: long, they are further apart, so that they cost no more than this share of a core.
LOOK_EVERY_S = 5.0
_LOOK_SHARE = 0.01
#: After a whole round the loop rests for this many times what the round took, and at least and at most so many
#: seconds: a flood of submissions is looked at together, and leaves most of a core to those who answer them. Woken
#: after a while of peace, it goes round at once.
_REST_FACTOR = 9.0
_SHORTEST_REST_S = 0.05
_LONGEST_REST_S = 1.0


class Rhythm:
    """Used by the loop's thread.

    Args:
        monotonic: a clock of seconds that never goes back.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._due_s = float("-inf")
        self._has_workers = True

    @property
    def is_due(self) -> bool:
        """Whether it is time for a whole round, woken or not."""
        return self._monotonic() >= self._due_s

    def went_round(self, began_s: float, *, has_workers: bool) -> float:
        """A whole round that began then is over. Returns the seconds to rest, deaf to being woken."""
        now_s = self._monotonic()
        self._due_s = now_s + max(LOOK_EVERY_S, (now_s - began_s) / _LOOK_SHARE)
        self._has_workers = has_workers
        return min(_LONGEST_REST_S, max(_SHORTEST_REST_S, _REST_FACTOR * (now_s - began_s)))

    def failed(self) -> None:
        """A round did not come to its end: the next one is a whole one, and soon."""
        self._due_s = float("-inf")
        self._has_workers = True

    def wait_s(self) -> float:
        """How long to wait to be woken."""
        if self._has_workers:
            return WATCH_EVERY_S
        return max(0.0, self._due_s - self._monotonic())

"""The head's clock: the store's, without its jumps.

Owns one rule. [Note: steady time] Time limits, deadlines, usage and the order of events must not change because
somebody sets a wall clock by an hour. So time goes on at the speed of this machine's monotonic clock, and follows the
store's clock slowly: by at most one second in a hundred, so that no duration is ever wrong by more than that. The
offset between the two clocks is kept in a file for as long as the machine runs, so that the next head goes on with the
same time. Nights and working hours are the wall clock's, and are not asked for here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from superpipe_cluster.execution.layout import write_atomically
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store.cached_store import CachedStore, StoreBelow

#: Seconds between two looks at the store's clock.
LOOK_EVERY_S = 5.0
#: Seconds by which time may be put right, per second that passes.
_SLEW = 0.01
#: An offset that has changed by less is not worth a write.
_KEPT_TO_S = 0.05

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SteadyClock:
    """Unix seconds that never jump and never go back. Safe to use from several threads.

    Args:
        read: the clock to follow.
        monotonic: seconds since this machine was started.
        kept: file that the offset between the two is kept in; None to keep it nowhere.
        boot_id: names this run of the machine, outside of which the offset means nothing.
    """

    def __init__(
        self,
        read: Callable[[], float],
        monotonic: Callable[[], float],
        kept: Path | None = None,
        boot_id: str | None = None,
    ) -> None:
        self._read = read
        self._monotonic = monotonic
        self._kept = kept
        self._boot_id = boot_id if boot_id is not None else _this_boot()
        self._mutex = threading.Lock()
        self._offset_s: float | None = self._remembered()
        self._kept_offset_s = self._offset_s
        self._looked_s: float | None = None
        self._latest = float("-inf")

    def __call__(self) -> float:
        """Now. Raises what `read` raises, when it is time to look at that clock."""
        looked_s = self._looked_s
        if looked_s is None or self._monotonic() - looked_s >= LOOK_EVERY_S:
            read_s = (
                self._read()
            )  # by nobody who keeps others waiting: it may take seconds when the store hangs
            with self._mutex:
                self._follow(self._monotonic(), read_s)
        with self._mutex:
            assert self._offset_s is not None
            self._latest = max(self._latest, self._monotonic() + self._offset_s)
            return self._latest

    def _follow(self, now_s: float, read_s: float) -> None:
        error_s = 0.0 if self._offset_s is None else read_s - (now_s + self._offset_s)
        if self._offset_s is None:
            self._offset_s = read_s - now_s
        elif self._looked_s is not None:
            most_s = _SLEW * (now_s - self._looked_s)
            self._offset_s += max(-most_s, min(most_s, error_s))
        self._looked_s = now_s
        if self._kept_offset_s is None or abs(self._offset_s - self._kept_offset_s) >= _KEPT_TO_S:
            self._keep(self._offset_s)

    def _remembered(self) -> float | None:
        if self._kept is None or self._boot_id is None:
            return None
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
            if kept["boot_id"] == self._boot_id:
                return float(kept["offset_s"])
        return None

    def _keep(self, offset_s: float) -> None:
        self._kept_offset_s = offset_s
        if self._kept is not None and self._boot_id is not None:
            with suppress(OSError):  # a full disk costs the next head a little accuracy
                write_atomically(self._kept, json.dumps({"boot_id": self._boot_id, "offset_s": offset_s}))


class SteadyStore(CachedStore):
    """A store whose clock is steady. See [Note: steady time].

    Args:
        store: where everything really is.
        clock: what `now` says.
    """

    def __init__(self, store: StoreBelow, clock: Callable[[], float]) -> None:
        super().__init__(store)
        self._clock = clock

    def now(self) -> float:
        """See `JobStore.now`."""
        return self._clock()

    def submit_all(
        self, records: Sequence[JobRecord], *, idempotency_key: str | None = None
    ) -> list[JobRecord]:
        """See `JobStore.submit_all`. Submitted now by this clock, and not by the server's."""
        now = self.now()
        timed = [one.model_copy(update={"submitted_at": one.submitted_at or now}) for one in records]
        return super().submit_all(timed, idempotency_key=idempotency_key)


def _this_boot() -> str | None:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None

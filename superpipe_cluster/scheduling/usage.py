"""How much of the devices everybody has used lately, in byte-seconds that fade.

Owns the decay, and the sums by user, once over all records (`decayed`) and kept up to date (`UsageBook`). What a
single job has used is in its record, see [Note: usage] in `lifecycle/step.py`.

[Note: spread] A record tells how many byte-seconds were used, and until when, but not at which moments. They are taken
to have been used evenly in the time just before, at the budget the job has (or, without one, in the seconds that it
ran). So a job of three days does not count as if it had used everything at its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from superpipe_cluster.lifecycle.record import JobRecord


def decayed(records: Iterable[JobRecord], now: float, half_life_s: float) -> dict[str, float]:
    """Byte-seconds by user as they count at `now`; the running part included.

    Args:
        records: every job there is or was, as far as anybody remembers.
        now: unix seconds by the store's clock.
        half_life_s: after this long, what was used counts half.
    """
    totals: dict[str, float] = {}
    for record in records:
        counted = _finished(record, now, half_life_s) + _running(record, now, half_life_s)
        if counted:
            totals[record.user] = totals.get(record.user, 0.0) + counted
    return totals


class UsageBook:
    """The same sums without reading every record again: for the head, which sees each change of a record.

    Args:
        records: every job there is or was, at `now`.
        now: unix seconds by the store's clock.
        half_life_s: after this long, what was used counts half.
    """

    def __init__(self, records: Iterable[JobRecord], now: float, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._at = now
        self._totals: dict[str, float] = {}
        for record in records:
            self._add(record.user, _finished(record, now, half_life_s))

    def changed(self, before: JobRecord | None, after: JobRecord, now: float) -> None:
        """Take in what the change from `before` to `after` has charged; None: the job is new."""
        charged = after.used_byte_s - (before.used_byte_s if before is not None else 0.0)
        if charged <= 0.0:
            return
        self._move_to(now)
        since = before.used_until if before is not None else None
        until = max(since or now, after.used_until or after.changed_at)
        length_s = until - since if since is not None else 0.0
        self._add(after.user, charged * _faded(now - until, length_s, self._half_life_s))

    def totals(self, running: Iterable[JobRecord], now: float) -> dict[str, float]:
        """What `decayed` gives: byte-seconds by user at `now`, with those that `running` jobs have not been charged."""
        self._move_to(now)
        totals = dict(self._totals)
        for record in running:
            counted = _running(record, now, self._half_life_s)
            if counted:
                totals[record.user] = totals.get(record.user, 0.0) + counted
        return totals

    def _add(self, user: str, byte_s: float) -> None:
        if byte_s:
            self._totals[user] = self._totals.get(user, 0.0) + byte_s

    def _move_to(self, now: float) -> None:
        """Let what is in the book fade until `now`; a clock that stepped back changes nothing."""
        if now <= self._at:
            return
        factor = 0.5 ** ((now - self._at) / self._half_life_s)
        self._totals = {user: byte_s * factor for user, byte_s in self._totals.items()}
        self._at = now


def _finished(record: JobRecord, now: float, half_life_s: float) -> float:
    """What the record has been charged, as it counts at `now`. See [Note: spread]."""
    if not record.used_byte_s:
        return 0.0
    until = record.used_until or record.ended_at or record.changed_at
    holds = record.promised_bytes
    length_s = record.used_byte_s / holds if holds else record.ran_s
    return record.used_byte_s * _faded(now - until, length_s, half_life_s)


def _running(record: JobRecord, now: float, half_life_s: float) -> float:
    """What it has used since it was last charged, as it counts at `now`."""
    if record.used_until is None or not record.state.holds_device or now <= record.used_until:
        return 0.0
    length_s = now - record.used_until
    return record.promised_bytes * length_s * _faded(0.0, length_s, half_life_s)


def _faded(ago_s: float, length_s: float, half_life_s: float) -> float:
    """What one byte-second counts that was used evenly in the `length_s` before `ago_s` ago: 0..1."""
    rate = math.log(2.0) / half_life_s
    spread = -math.expm1(-rate * length_s) / (rate * length_s) if length_s > 0.0 else 1.0
    return math.exp(-rate * max(0.0, ago_s)) * spread

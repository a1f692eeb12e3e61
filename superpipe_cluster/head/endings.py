"""The end of an attempt: the event is written, and what it used is charged to its owner.

Owns the order of the two. Charging comes second: a head that dies in between forgets a charge, and never
takes one twice.
"""

from __future__ import annotations

from superpipe_cluster.lifecycle.events import Event
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.store.interface import JobStore
from superpipe_cluster.store.writes import advance


def end_attempt(store: JobStore, record: JobRecord, event: Event) -> JobRecord:
    """Let `event` end the attempt that `record` is in.

    Raises:
        StaleWrite: the job is in another epoch by now.
        InvalidTransition: the attempt has ended already.
    """
    after = advance(store, record.id, event, epoch=record.epoch)
    if record.started_at is not None and record.device is not None and record.budget_bytes:
        held_s = max(0.0, after.changed_at - record.started_at)
        store.add_usage(record.user, record.device, record.budget_bytes * held_s)
    return after

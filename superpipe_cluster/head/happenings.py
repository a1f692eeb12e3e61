"""Letting an event happen to the attempt that a record is in.

Owns what it means when that fails: somebody was faster, and whoever wanted the event drops its effects.
"""

from __future__ import annotations

from superpipe_cluster.errors import NotFound, StaleWrite
from superpipe_cluster.lifecycle.events import Event
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.step import InvalidTransition
from superpipe_cluster.store.interface import JobStore
from superpipe_cluster.store.writes import advance


def happen(store: JobStore, record: JobRecord, event: Event) -> JobRecord | None:
    """The record after `event` happened to the job in the epoch of `record`; None when it cannot happen any more."""
    try:
        return advance(store, record.id, event, epoch=record.epoch)
    except (InvalidTransition, StaleWrite, NotFound):
        return None

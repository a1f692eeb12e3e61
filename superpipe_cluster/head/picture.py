"""The picture that decisions are made from: taken of the store, the machine and the clocks.

Owns the `Snapshot`'s making, and what must be remembered to make it quickly: the jobs of the last one, the usage of
everybody, and what others hold of the devices. All of it may be forgotten; the first picture of a new head reads
everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from superpipe_cluster.errors import BadInput, NotFound
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.machine import Device
from superpipe_cluster.scheduling.host_books import promised
from superpipe_cluster.scheduling.policy import DEFAULT, Policy
from superpipe_cluster.scheduling.queued import Queued
from superpipe_cluster.scheduling.snapshot import (
    DeviceView,
    Quota,
    Snapshot,
    named_by,
)
from superpipe_cluster.scheduling.usage import UsageBook
from superpipe_cluster.scheduling.windows import Window
from superpipe_cluster.store.interface import JobStore

_log = logging.getLogger(__name__)

#: Bytes that processes which are not ours hold on a device, given the jobs that are on it.
Foreign = Callable[[Device, Sequence[JobRecord]], int]


class Camera:
    """Takes pictures. Used by one thread.

    Args:
        store: where jobs and settings are.
        devices: of this cluster.
        host_usable_bytes: tells how much RAM all host copies together may take.
        foreign: tells what others hold of a device.
        wall: unix seconds by the wall clock, which windows go by.
        policy: the numbers to decide by.
    """

    def __init__(
        self,
        store: JobStore,
        devices: Sequence[Device],
        host_usable_bytes: Callable[[], int],
        foreign: Foreign,
        wall: Callable[[], float],
        policy: Policy = DEFAULT,
    ) -> None:
        self._store = store
        self._devices = tuple(devices)
        self._host_usable_bytes = host_usable_bytes
        self._foreign = foreign
        self._wall = wall
        self._policy = policy
        self._book: UsageBook | None = None
        #: The jobs of the last picture, by the identity of their records, and sorted out.
        self._seen: dict[int, JobRecord] = {}
        self._queued = Queued.of(())
        self._others: dict[str, JobRecord] = {}
        self._foreign_bytes = dict.fromkeys((device.id for device in devices), 0)

    def look_around(self, holders: Sequence[JobRecord]) -> bool:
        """Read what others hold of the devices; whether that has changed."""
        before = self._foreign_bytes
        self._foreign_bytes = {
            device.id: self._foreign(device, [record for record in holders if record.device == device.id])
            for device in self._devices
        }
        for device_id, foreign_bytes in self._foreign_bytes.items():
            if foreign_bytes != before[device_id]:
                _log.info("%s: other processes hold %d bytes", device_id, foreign_bytes)
        return before != self._foreign_bytes

    def take(self, active: Sequence[JobRecord]) -> Snapshot:
        """The picture of this moment; `active` are all jobs that have not ended."""
        now = self._store.now()
        self._take_in(active, now)
        others = dict(self._others)
        named = named_by(self._queued, others.values()) - others.keys()
        for job_id in named.difference(self._queued.ids):
            with suppress(NotFound):
                others[job_id] = self._store.get(job_id)
        settings = self._store.settings()
        return Snapshot(
            now=now,
            queued=self._queued,
            others=tuple(others.values()),
            devices=tuple(map(self._view, self._devices)),
            host_free_bytes=self._host_usable_bytes()
            - promised(one for one in others.values() if one.state.holds_device),
            usage=self._book.totals(self._others.values(), now) if self._book is not None else {},
            quotas=quotas(settings),
            windows=windows(settings),
            wall=self._wall(),
            policy=self._policy,
        )

    def _take_in(self, active: Sequence[JobRecord], now: float) -> None:
        """Bring what is remembered up to date. A record is never changed, so those that are the same are not read."""
        listed = dict(zip(map(id, active), active, strict=True))
        new = {record.id: record for key, record in listed.items() if key not in self._seen}
        gone = {record.id: record for key, record in self._seen.items() if key not in listed}
        # What asks the store comes first: where it does not answer, nothing has been taken in yet.
        if self._book is None:
            self._book = UsageBook(self._store.list_jobs(), now, self._policy.half_life_s)
            charged = []
        else:
            # Every job that was given a device was in the picture before, as waiting.
            charged = [(gone.get(job_id), record) for job_id, record in new.items()]
            for job_id in gone.keys() - new.keys():  # these have ended
                with suppress(NotFound):
                    charged.append((gone[job_id], self._store.get(job_id)))
        for before, after in charged:
            self._book.changed(before, after, now)
        self._queued = self._queued.changed(
            [record for record in gone.values() if record.state is JobState.QUEUED],
            [record for record in new.values() if record.state is JobState.QUEUED],
        )
        for job_id in gone:
            self._others.pop(job_id, None)
        self._others.update((job_id, one) for job_id, one in new.items() if one.state is not JobState.QUEUED)
        self._seen = listed

    def _view(self, device: Device) -> DeviceView:
        foreign_bytes = self._foreign_bytes[device.id]
        capacity_bytes = max(0, device.capacity_bytes - foreign_bytes)
        return DeviceView(device.id, capacity_bytes, device.link_bytes_per_s, foreign_bytes)


def quotas(settings: Mapping[str, Any]) -> dict[str, Quota]:
    """The quotas among what admins have set, by user."""
    found: dict[str, Quota] = {}
    for user, value in _named(settings, "quota:"):
        with suppress(TypeError, KeyError):  # see `windows`
            fields = {
                name: value[name] for name in ("guaranteed_bytes", "limit_bytes", "weight") if name in value
            }
            found[user] = Quota(user, **fields)
    return found


def windows(settings: Mapping[str, Any]) -> dict[str, Window]:
    """The windows among what admins have set, by name."""
    found: dict[str, Window] = {}
    for name, value in _named(settings, "window:"):
        with suppress(
            BadInput, TypeError, KeyError
        ):  # a newer version's may mean nothing here; the queue goes on
            found[name] = Window.from_json({"name": name, **value})
    return found


def _named(settings: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    return [(name.removeprefix(prefix), value) for name, value in settings.items() if name.startswith(prefix)]

"""The head as the HTTP API sees it: `api.service.Service` over the store.

Owns the answers that are read off the records; each one reads them anew. Taking jobs in is `submission`, what owners
do to them `changes`, what was used `accounting`, what admins set `rules`. What to start and stop is left to the tick,
which is woken when there is something for it to do.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from superpipe_cluster import __version__
from superpipe_cluster.api.service import LogChunk, OwnCode, Verb
from superpipe_cluster.api.views import (
    ChangeRequest,
    ClusterView,
    DeviceJobView,
    DevicesView,
    DeviceView,
    HostView,
    QuotaRequest,
    QuotaView,
    TopView,
    UsageView,
    WindowRequest,
    WindowView,
)
from superpipe_cluster.errors import BadInput, NotFound, SpclusterError
from superpipe_cluster.head import accounting
from superpipe_cluster.head.changes import Changes
from superpipe_cluster.head.home import ClusterFile, Home
from superpipe_cluster.head.outlook import Outlook
from superpipe_cluster.head.picture import Foreign
from superpipe_cluster.head.plans import Planner, Plans
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.rules import Rules, quota_views, window_views
from superpipe_cluster.head.submission import Submission
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.machine import HostMemory
from superpipe_cluster.scheduling.host_books import promised
from superpipe_cluster.scheduling.policy import DEFAULT
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.store.interface import JobStore, StoredEvent, User, hash_token

#: Events that one answer holds, the oldest first; a job has a handful per attempt.
_EVENTS_LIMIT = 1000


@dataclass(slots=True)
class Pulse:
    """How the loop is doing: set by its thread, read by the service."""

    ticked_at: float | None = None
    trouble: str | None = "the head has just started"


class HeadService:
    """Implements `api.service.Service`.

    Args:
        store: where jobs are.
        home: where their folders are.
        cluster: the parts that run.
        presence: what was heard of the workers.
        pulse: how the loop is doing.
        planner: finds out what a model takes.
        host_memory: reads the RAM of this machine.
        started_at: unix seconds at which this head started.
        wake: makes the tick look at once.
        outlook: when those who wait are likely to start; None: nobody can tell.
        foreign: tells what processes that are not ours hold of a device; None: nothing.
        wall: unix seconds by the wall clock, which windows go by.
    """

    def __init__(
        self,
        store: JobStore,
        home: Home,
        cluster: ClusterFile,
        presence: Presence,
        pulse: Pulse,
        planner: Planner,
        host_memory: Callable[[], HostMemory],
        started_at: float,
        wake: Callable[[], None],
        *,
        outlook: Outlook | None = None,
        foreign: Foreign | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._home = home
        self._cluster = cluster
        self._pulse = pulse
        self._host_memory = host_memory
        self._started_at = started_at
        self._wake = wake
        self._outlook = outlook if outlook is not None else Outlook()
        self._foreign = foreign if foreign is not None else lambda *_: 0
        self._foreign_lock = threading.Lock()
        self._wall = wall
        self._links = accounting.Links()
        total_bytes = host_memory().total_bytes
        self._rules = Rules(store, cluster.devices)
        self._changes = Changes(store, presence, cluster.devices, total_bytes, self._rules)
        self._submission = Submission(
            store, home, cluster.devices, total_bytes, Plans(planner), self._rules, self.job, self._outlook
        )

    def trouble(self) -> str | None:
        """See `Service.trouble`."""
        if self._pulse.trouble is not None:
            return self._pulse.trouble
        try:
            self._store.ping()
        except SpclusterError as error:
            return error.message
        return None

    def authenticate(self, token: str) -> User | None:
        """See `Service.authenticate`."""
        return self._store.user_by_token(hash_token(token))

    # ---- jobs ------------------------------------------------------------------------------------------

    def submit(
        self, user: User, spec: JobSpec, code: OwnCode | None, idempotency_key: str | None
    ) -> JobRecord:
        """See `Service.submit`."""
        record = self._submission.submit(user, spec, code, idempotency_key)
        self._wake()
        return record

    def jobs(self, user: User, *, ended: bool, of_user: str | None) -> Sequence[JobRecord]:
        """See `Service.jobs`."""
        return self._store.list_jobs(active_only=not ended, user=of_user)

    def expected_start_at(self, job_id: str) -> float | None:
        """See `Service.expected_start_at`."""
        return self._outlook.expected_start_at(job_id)

    def job(self, user: User, ref: str) -> JobRecord:
        """See `Service.job`."""
        if ref.isdecimal():
            try:
                return self._store.get(ref)
            except (NotFound, BadInput, ValueError):
                pass  # a job may be named 2026
        for of_user in (user.name, None):
            named = [record for record in self._store.list_jobs(user=of_user) if record.name == ref]
            if named:
                return named[-1]
        task = re.fullmatch(r"([0-9]+)_([0-9]+)", ref)
        for record in self._store.list_jobs() if task is not None else ():
            if task is not None and record.array == task[1] and record.array_index == int(task[2]):
                return record
        raise NotFound(f"there is no job `{ref}`", hint="`spcluster queue -a` lists all jobs")

    def tasks(self, user: User, record: JobRecord) -> Sequence[str]:
        """See `Service.tasks`."""
        if record.array is None:
            return ()
        own = self._store.list_jobs(user=record.user)
        return [other.id for other in own if other.array == record.array]

    def events(self, user: User, job_id: str) -> Sequence[StoredEvent]:
        """See `Service.events`."""
        return self._store.events(job_id, limit=_EVENTS_LIMIT)

    def news(self, user: User, *, after: str, limit: int) -> Sequence[StoredEvent]:
        """See `Service.news`."""
        return self._store.events(after=after, limit=limit)

    def latest(self, user: User, *, count: int) -> Sequence[StoredEvent]:
        """See `Service.latest`."""
        return self._store.latest_events(count)

    def logs(self, user: User, job_id: str, *, offset: int, limit: int) -> LogChunk:
        """See `Service.logs`. Read from the file that the job itself writes to."""
        try:
            with self._home.job(job_id).log.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                file.seek(offset)
                return LogChunk(file.read(limit), size_bytes)
        except FileNotFoundError:
            return LogChunk(b"", 0)

    def door(self, job_id: str) -> Path:
        """See `Service.door`."""
        return self._home.job(job_id).door

    def cancel(self, user: User, job_id: str, *, force: bool) -> JobRecord:
        """See `Service.cancel`."""
        return self._woken(self._changes.cancel(job_id, force=force))

    def act(self, user: User, job_id: str, verb: Verb) -> JobRecord:
        """See `Service.act`."""
        return self._woken(self._changes.act(job_id, verb))

    def change(self, user: User, job_id: str, wishes: ChangeRequest) -> JobRecord:
        """See `Service.change`."""
        return self._woken(self._changes.change(job_id, wishes))

    def _woken(self, record: JobRecord) -> JobRecord:
        self._wake()
        return record

    # ---- devices and their use -------------------------------------------------------------------------

    def devices(self, user: User) -> DevicesView:
        """See `Service.devices`. The ledger is the sum over the records, so it can never drift from them."""
        holders = self._holders()
        views: list[DeviceView] = []
        for device in self._cluster.devices:
            here = [record for record in holders if record.device == device.id]
            used_bytes = sum(record.promised_bytes for record in here)
            jobs = tuple(
                DeviceJobView(
                    id=record.id,
                    name=record.name,
                    user=record.user,
                    budget_bytes=record.budget_bytes or 0,
                    held_bytes=record.held_bytes,
                )
                for record in here
            )
            views.append(
                DeviceView(
                    id=device.id,
                    name=device.name,
                    kind=device.kind,
                    capacity_bytes=device.capacity_bytes,
                    used_bytes=used_bytes,
                    free_bytes=device.capacity_bytes - used_bytes,
                    link_bytes_per_s=device.link_bytes_per_s,
                    jobs=jobs,
                )
            )
        return DevicesView(devices=tuple(views), host=self._host(holders))

    def top(self, user: User) -> TopView:
        """See `Service.top`."""
        active = self._store.list_jobs(active_only=True)
        holders = [record for record in active if record.state.holds_device]
        now = self._store.now()
        with self._foreign_lock:  # it is made for one thread
            foreign = {
                device.id: self._foreign(device, [one for one in holders if one.device == device.id])
                for device in self._cluster.devices
            }
        return accounting.top(
            self._cluster.devices,
            holders,
            foreign=foreign,
            speeds=self._links.speeds(holders, now),
            queued=len(active) - len(holders),
            host=self._host(holders),
            now=now,
        )

    def usage(self, user: User, *, of_user: str | None, since: float | None) -> UsageView:
        """See `Service.usage`."""
        records, now = self._store.list_jobs(), self._store.now()
        return accounting.usage(records, now, DEFAULT.half_life_s, of_user=of_user, since=since)

    def _holders(self) -> list[JobRecord]:
        return [record for record in self._store.list_jobs(active_only=True) if record.state.holds_device]

    def _host(self, holders: Sequence[JobRecord]) -> HostView:
        memory = self._host_memory()
        return HostView(
            total_bytes=memory.total_bytes,
            available_bytes=memory.available_bytes,
            used_by_jobs_bytes=promised(holders),
        )

    # ---- rules -----------------------------------------------------------------------------------------

    def quotas(self, user: User) -> Sequence[QuotaView]:
        """See `Service.quotas`."""
        return quota_views(self._rules.quotas())

    def put_quota(self, user: User, name: str, quota: QuotaRequest | None) -> None:
        """See `Service.put_quota`."""
        self._rules.put_quota(name, quota)
        self._wake()

    def windows(self, user: User) -> Sequence[WindowView]:
        """See `Service.windows`."""
        return window_views(self._rules.windows(), self._wall())

    def put_window(self, user: User, name: str, window: WindowRequest | None) -> None:
        """See `Service.put_window`."""
        self._rules.put_window(name, window)
        self._wake()

    # ---- the cluster -----------------------------------------------------------------------------------

    def cluster(self, user: User) -> ClusterView:
        """See `Service.cluster`."""
        return ClusterView(
            version=__version__,
            url=self._cluster.url,
            pid=os.getpid(),
            started_at=self._started_at,
            ticked_at=self._pulse.ticked_at,
            store=_without_password(self._cluster.redis_url),
            store_embedded=self._cluster.redis_pid is not None,
            ray=self._cluster.ray.address,
            jobs=dict(Counter(str(record.state) for record in self._store.list_jobs())),
        )

    def add_user(self, user: User, name: str, role: str) -> str:
        """See `Service.add_user`."""
        token = secrets.token_urlsafe(32)
        self._store.add_user(name, role, hash_token(token))
        return token

    def users(self, user: User) -> Sequence[User]:
        """See `Service.users`."""
        return self._store.users()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url.split("?", 1)[0]
    return f"{parts.scheme}://***@{parts.netloc.rpartition('@')[2]}{parts.path}"

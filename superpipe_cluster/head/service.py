"""The head as the HTTP API sees it: `api.service.Service` over the store.

Owns the answers. Every method reads the store anew; what to start and stop is left to the tick, which is
woken when there is something for it to do.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from superpipe_cluster import __version__
from superpipe_cluster.api.service import Code, LogChunk
from superpipe_cluster.api.views import ClusterView, DeviceJobView, DevicesView, DeviceView, HostView
from superpipe_cluster.errors import BadInput, Conflict, NotFound, SpclusterError
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.head.home import ClusterFile, Home
from superpipe_cluster.head.presence import Presence
from superpipe_cluster.head.submission import Planner, Submission
from superpipe_cluster.lifecycle.events import StopAsked
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import EndReason
from superpipe_cluster.lifecycle.step import InvalidTransition
from superpipe_cluster.machine import HostMemory
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.store.interface import JobStore, StoredEvent, User, hash_token
from superpipe_cluster.store.writes import advance

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
    ) -> None:
        self._store = store
        self._home = home
        self._cluster = cluster
        self._presence = presence
        self._pulse = pulse
        self._host_memory = host_memory
        self._started_at = started_at
        self._wake = wake
        self._submission = Submission(
            store, home, cluster.devices, host_memory().total_bytes, planner, self.job
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

    def submit(self, user: User, spec: JobSpec, code: Code | None, idempotency_key: str | None) -> JobRecord:
        """See `Service.submit`."""
        record = self._submission.submit(user, spec, code, idempotency_key)
        self._wake()
        return record

    def jobs(self, user: User, *, ended: bool, of_user: str | None) -> Sequence[JobRecord]:
        """See `Service.jobs`."""
        return self._store.list_jobs(active_only=not ended, user=of_user)

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
        raise NotFound(f"there is no job `{ref}`", hint="`spcluster queue -a` lists all jobs")

    def events(self, user: User, job_id: str) -> Sequence[StoredEvent]:
        """See `Service.events`."""
        return self._store.events(job_id, limit=_EVENTS_LIMIT)

    def logs(self, user: User, job_id: str, *, offset: int, limit: int) -> LogChunk:
        """See `Service.logs`. Read from the file that the job itself writes to."""
        try:
            with self._home.job(job_id).log.open("rb") as file:
                size_bytes = os.fstat(file.fileno()).st_size
                file.seek(offset)
                return LogChunk(file.read(limit), size_bytes)
        except FileNotFoundError:
            return LogChunk(b"", 0)

    def cancel(self, user: User, job_id: str, *, force: bool) -> JobRecord:
        """See `Service.cancel`."""
        record = self._store.get(job_id)
        if force:
            self._presence.force(Worker(record.id, record.epoch))
        if record.stop_asked != EndReason.CANCELLED or record.state.is_terminal:
            try:
                record = advance(self._store, job_id, StopAsked(EndReason.CANCELLED))
            except InvalidTransition:
                ended = self._store.get(job_id)
                raise Conflict(
                    f"job {job_id} has ended already ({ended.state})",
                    hint=f"`spcluster show {job_id}` says how",
                ) from None
        self._wake()
        return record

    # ---- the cluster -----------------------------------------------------------------------------------

    def devices(self, user: User) -> DevicesView:
        """See `Service.devices`. The ledger is the sum over the records, so it can never drift from them."""
        holders = [record for record in self._store.list_jobs(active_only=True) if record.state.holds_device]
        views: list[DeviceView] = []
        for device in self._cluster.devices:
            here = [record for record in holders if record.device == device.id]
            used_bytes = sum(record.budget_bytes or 0 for record in here)
            views.append(
                DeviceView(
                    id=device.id,
                    name=device.name,
                    kind=device.kind,
                    capacity_bytes=device.capacity_bytes,
                    used_bytes=used_bytes,
                    free_bytes=device.capacity_bytes - used_bytes,
                    link_bytes_per_s=device.link_bytes_per_s,
                    jobs=tuple(
                        DeviceJobView(
                            id=record.id,
                            name=record.name,
                            user=record.user,
                            budget_bytes=record.budget_bytes or 0,
                            held_bytes=record.held_bytes,
                        )
                        for record in here
                    ),
                )
            )
        memory = self._host_memory()
        host = HostView(
            total_bytes=memory.total_bytes,
            available_bytes=memory.available_bytes,
            used_by_jobs_bytes=sum(record.host_bytes for record in holders),
        )
        return DevicesView(devices=tuple(views), host=host)

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

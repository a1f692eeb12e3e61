"""Following what happens in the cluster, by the numbers of events.

Owns the waiting for news, and what others may see of a job's events. Like a log, news are followed from a place that
the last answer named, see [Note: follow by offset] in `logs.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from superpipe_cluster.api.access import is_admin
from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.service import Service
from superpipe_cluster.api.views import ClusterEventView, EventsView
from superpipe_cluster.errors import NotFound
from superpipe_cluster.store.interface import FIRST_EVENT, StoredEvent, User

router = APIRouter(tags=["cluster"])

#: How often a waiting request looks for news, seconds.
POLL_S = 0.2


@router.get("/v1/events", summary="What happens in the cluster", response_model=EventsView)
async def events(
    request: Request,
    user: AUser,
    service: AService,
    after: Annotated[str, Query(max_length=40, description="`next` of the answer before.")] = FIRST_EVENT,
    last: Annotated[
        int | None, Query(ge=0, le=1000, description="Begin with this many of the latest, not at `after`.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most events to answer with.")] = 500,
    wait_s: Annotated[
        float, Query(ge=0, le=20, description="Wait this long for news when there are none.")
    ] = 0,
) -> EventsView:
    """The events of all jobs; of other people's, what happened and not the details."""
    if last is not None:
        return await run_in_threadpool(_latest, service, user, last, after)
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        found = await run_in_threadpool(service.news, user, after=after, limit=limit)
        late = asyncio.get_running_loop().time() >= deadline
        if found or late or await request.is_disconnected():
            return await run_in_threadpool(_view, service, user, found, after)
        await asyncio.sleep(POLL_S)


def _latest(service: Service, user: User, count: int, after: str) -> EventsView:
    # One at least: the place from which to go on is the end, also for those who want to see nothing of before.
    found = service.latest(user, count=max(count, 1))
    seen = found if count else ()
    return _view(service, user, seen, found[-1].seq if found else after)


def _view(service: Service, user: User, found: Sequence[StoredEvent], after: str) -> EventsView:
    own: dict[str, bool] = {}
    views: list[ClusterEventView] = []
    for event in found:
        if event.job_id not in own:
            own[event.job_id] = is_admin(user) or _owner(service, user, event.job_id) == user.name
        data = dict(event.data) if own[event.job_id] else {}
        views.append(
            ClusterEventView(seq=event.seq, at=event.at, job_id=event.job_id, kind=event.kind, data=data)
        )
    return EventsView(events=tuple(views), next=found[-1].seq if found else after)


def _owner(service: Service, user: User, job_id: str) -> str | None:
    try:
        return service.job(user, job_id).user
    except NotFound:  # an event of a job that Redis lost with its last second
        return None

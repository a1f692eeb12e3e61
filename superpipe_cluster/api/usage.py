"""Routes about what the cluster's bytes are used for: over time, and right now. For everybody.

Owns the HTTP side only; the figures come from the service.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.views import TopView, UsageView
from superpipe_cluster.spec.fields import NAME_PATTERN

router = APIRouter(tags=["cluster"])


@router.get("/v1/usage", summary="Who has used how much", response_model=UsageView)
def usage(
    user: AUser,
    service: AService,
    of_user: Annotated[
        str | None, Query(alias="user", pattern=NAME_PATTERN, description="Only this user's.")
    ] = None,
    since: Annotated[
        float | None,
        Query(ge=0, le=2**40, description="Unix seconds: only jobs that ran or waited then or later."),
    ] = None,
) -> UsageView:
    """Device bytes times seconds, link bytes, waiting and slowdown: by user and by job."""
    return service.usage(user, of_user=of_user, since=since)


@router.get("/v1/top", summary="The devices right now", response_model=TopView)
def top(user: AUser, service: AService) -> TopView:
    """Every device with its jobs: bytes, k/n, seconds of a step beside the forecast, the use of the link."""
    return service.top(user)

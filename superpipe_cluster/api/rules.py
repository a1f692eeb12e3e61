"""Routes about the rules for everybody: quotas and windows. Everybody reads them, admins set them.

Owns the HTTP side only; what a rule may be, the service knows.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from superpipe_cluster.api.access import require_admin
from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.views import (
    QuotaList,
    QuotaRequest,
    QuotaView,
    WindowList,
    WindowRequest,
    WindowView,
)
from superpipe_cluster.spec.fields import NAME_PATTERN

router = APIRouter(prefix="/v1", tags=["rules"])

Name = Annotated[str, Path(pattern=NAME_PATTERN)]


@router.get("/quotas", summary="Who may hold how much", response_model=QuotaList)
def quotas(user: AUser, service: AService) -> QuotaList:
    """The quotas, by user."""
    return QuotaList(quotas=tuple(service.quotas(user)))


@router.put("/quotas/{name}", summary="Set a user's quota", response_model=QuotaView)
def put_quota(name: Name, body: QuotaRequest, user: AUser, service: AService) -> QuotaView:
    """Set or replace the quota of a user. For admins."""
    require_admin(user)
    service.put_quota(user, name, body)
    return QuotaView(user=name, guaranteed_bytes=body.guaranteed, limit_bytes=body.limit, weight=body.weight)


@router.delete("/quotas/{name}", summary="Take a user's quota away", response_model=QuotaList)
def delete_quota(name: Name, user: AUser, service: AService) -> QuotaList:
    """From now on the user has no guarantee, no limit and weight 1. Answers what is left. For admins."""
    require_admin(user)
    service.put_quota(user, name, None)
    return quotas(user, service)


@router.get("/windows", summary="The windows", response_model=WindowList)
def windows(user: AUser, service: AService) -> WindowList:
    """The windows, and when each opens and closes next."""
    return WindowList(windows=tuple(service.windows(user)))


@router.put("/windows/{name}", summary="Set a window", response_model=WindowView)
def put_window(name: Name, body: WindowRequest, user: AUser, service: AService) -> WindowView:
    """Set or replace a window. For admins."""
    require_admin(user)
    service.put_window(user, name, body)
    return next(window for window in service.windows(user) if window.name == name)


@router.delete("/windows/{name}", summary="Take a window away", response_model=WindowList)
def delete_window(name: Name, user: AUser, service: AService) -> WindowList:
    """Remove a window that no job is to run in. Answers what is left. For admins."""
    require_admin(user)
    service.put_window(user, name, None)
    return windows(user, service)

"""Routes about the cluster itself: its health, its devices, its parts.

Owns the HTTP side only; the figures come from the service.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from superpipe_cluster import __version__
from superpipe_cluster.api.access import require_admin
from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.views import ClusterView, DevicesView, HealthView

router = APIRouter(tags=["cluster"])


@router.get(
    "/v1/health",
    summary="Whether the head works",
    response_model=HealthView,
    responses={503: {"model": HealthView, "description": "The head answers, but cannot work."}},
)
def health(service: AService, response: Response) -> HealthView:
    """For health checks: needs no token and says nothing about anybody's work."""
    trouble = service.trouble()
    if trouble is not None:
        response.status_code = 503
    return HealthView(status="ok" if trouble is None else "degraded", version=__version__, trouble=trouble)


@router.get("/v1/devices", summary="The devices and who holds them", response_model=DevicesView)
def devices(user: AUser, service: AService) -> DevicesView:
    """Every device with its ledger, and the memory of the host."""
    return service.devices(user)


@router.get("/v1/cluster", summary="The parts of the cluster", response_model=ClusterView)
def cluster(user: AUser, service: AService) -> ClusterView:
    """What `spcluster doctor` shows of a running cluster. For admins."""
    require_admin(user)
    return service.cluster(user)

"""Routes that change a job which is there: hold, release, pause, resume, requeue, and new values.

Owns the HTTP side; what makes sense for a job where it is, the service knows.
"""

from __future__ import annotations

from fastapi import APIRouter

from superpipe_cluster.api.access import require_touch
from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.jobs import Ref
from superpipe_cluster.api.service import Service, Verb
from superpipe_cluster.api.views import ChangeRequest, JobView, job_view
from superpipe_cluster.store.interface import User

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post("/{ref}/hold", summary="Keep a waiting job from starting", response_model=JobView)
def hold(ref: Ref, user: AUser, service: AService) -> JobView:
    """Take a waiting job out of the line, until it is released."""
    return _act(service, user, ref, "hold")


@router.post("/{ref}/release", summary="Put a held job back in line", response_model=JobView)
def release(ref: Ref, user: AUser, service: AService) -> JobView:
    """Let a held job wait for its turn again."""
    return _act(service, user, ref, "release")


@router.post("/{ref}/pause", summary="Have a running job stand still", response_model=JobView)
def pause(ref: Ref, user: AUser, service: AService) -> JobView:
    """Stop a running job at its next step. It keeps its device bytes."""
    return _act(service, user, ref, "pause")


@router.post("/{ref}/resume", summary="Have a paused job go on", response_model=JobView)
def resume(ref: Ref, user: AUser, service: AService) -> JobView:
    """Let a job that its owner paused go on."""
    return _act(service, user, ref, "resume")


@router.post("/{ref}/requeue", summary="Have a running job save and wait again", response_model=JobView)
def requeue(ref: Ref, user: AUser, service: AService) -> JobView:
    """Have a running job save, give its device back and wait for its turn again."""
    return _act(service, user, ref, "requeue")


@router.patch("/{ref}", summary="Change what a job asks for", response_model=JobView)
def change(ref: Ref, body: ChangeRequest, user: AUser, service: AService) -> JobView:
    """Set new values, also of a running job. What is left out stays as it is."""
    record = service.job(user, ref)
    require_touch(user, record)
    return job_view(service.change(user, record.id, body))


def _act(service: Service, user: User, ref: str, verb: Verb) -> JobView:
    record = service.job(user, ref)
    require_touch(user, record)
    return job_view(service.act(user, record.id, verb))

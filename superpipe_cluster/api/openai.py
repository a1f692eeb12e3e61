"""OpenAI's routes: the models that are served now, and questions to them. For the `openai` client, as it is.

Owns finding the job that serves a model, and errors in OpenAI's shape. The worker reads the question and writes the
answer (`serving.app`); how both travel is in `upstream`. The client's `api_key` is the cluster's token. A model is
called as its job is (an id will do), and whoever has a token may ask any model: who serves one, shares it. These
routes are not in `/openapi.json`: OpenAI's own reference describes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.service import Service
from superpipe_cluster.api.upstream import pass_on
from superpipe_cluster.errors import SpclusterError
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.serving.connection import Gone
from superpipe_cluster.serving.faults import Fault
from superpipe_cluster.store.interface import User

#: Seconds after which a model whose job does not run yet is worth another try.
_STARTS_AFTER_S = 10


class _Route(APIRoute):
    """A route whose errors are of OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_refuse(request: Request) -> Response:
            try:
                return await handle(request)
            except Gone:
                return Response(status_code=499)  # there is nobody to read it
            except Fault as error:
                fault = error
            except SpclusterError as error:
                fault = Fault.of(error)
            except HTTPException as error:
                fault = Fault(error.status_code, str(error.detail), code="bad_request")
            return JSONResponse(fault.body, fault.status, fault.headers)

        return handle_or_refuse


router = APIRouter(prefix="/v1", tags=["openai"], route_class=_Route, include_in_schema=False)


@router.get("/models", summary="The models that are served")
def models(user: AUser, service: AService) -> dict[str, Any]:
    """Every model that answers now, one for each name."""
    served = [record for record in _serving(service, user) if record.state == JobState.RUNNING]
    names = {record.name: _model(record) for record in served}  # the last of a name is the one that is asked
    return {"object": "list", "data": list(names.values())}


@router.get("/models/{model}", summary="A model that is served")
def model(model: str, user: AUser, service: AService) -> dict[str, Any]:
    """The model that answers to this name."""
    return _model(_find(service, user, model))


@router.post("/chat/completions", summary="Continue a conversation")
async def chat_completions(request: Request, user: AUser, service: AService) -> Response:
    """As OpenAI's `POST /v1/chat/completions`, by the tokenizer's chat template; with `stream`, as events."""
    return await _ask(request, user, service)


@router.post("/completions", summary="Continue texts")
async def completions(request: Request, user: AUser, service: AService) -> Response:
    """As OpenAI's `POST /v1/completions`, for one prompt or several, as texts or tokens."""
    return await _ask(request, user, service)


@router.post("/embeddings", summary="Vectors of texts")
async def embeddings(request: Request, user: AUser, service: AService) -> Response:
    """As OpenAI's `POST /v1/embeddings`: the mean of the last hidden states, of length one."""
    return await _ask(request, user, service)


async def _ask(request: Request, user: User, service: Service) -> Response:
    name = _name_in(await request.body())
    record = await run_in_threadpool(_find, service, user, name)
    return await pass_on(request, service.door(record.id), name)


def _name_in(body: bytes) -> str:
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Fault(400, "the body is not JSON", code="invalid_json") from None
    name = asked.get("model") if isinstance(asked, dict) else None
    if not isinstance(name, str):
        raise Fault(
            400, "name the model: the name of a job of kind `serve`", code="invalid_value", param="model"
        )
    return name


def _find(service: Service, user: User, name: str) -> JobRecord:
    """The running job that answers to `name`: the user's own before others', the newest first.

    Raises:
        Fault: 404, nobody serves it; 503, its job does not run yet, or not just now.
    """
    named = [record for record in _serving(service, user) if name in (record.name, record.id)]
    if not named:
        message = f"no model `{name}` is served here: `/v1/models` lists those that are"
        raise Fault(404, message, code="model_not_found", param="model")
    best = named[-1]
    if best.state != JobState.RUNNING:
        message = f"the job {best.id} that serves `{name}` is {str(best.state).lower()}"
        raise Fault(503, message, code="model_not_ready", retry_after_s=_STARTS_AFTER_S)
    return best


def _serving(service: Service, user: User) -> list[JobRecord]:
    """All jobs that serve a model or will, those that are to be preferred last."""
    records = [record for record in service.jobs(user, ended=False, of_user=None) if record.kind == "serve"]
    return sorted(records, key=lambda record: (record.state == JobState.RUNNING, record.user == user.name))


def _model(record: JobRecord) -> dict[str, Any]:
    created = int(record.started_at or record.submitted_at)
    return {"id": record.name, "object": "model", "created": created, "owned_by": record.user}

"""The HTTP application: routes put together, and every error as the same JSON.

Owns `build_app`. The server that runs it (uvicorn, in the head) and the service behind it are the head's.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request

from superpipe_cluster import __version__
from superpipe_cluster.api import changes, jobs, logs, machines, news, openai, rules, usage, users
from superpipe_cluster.api.faults import ErrorBody, ErrorView, to_view
from superpipe_cluster.api.limits import BodyLimit
from superpipe_cluster.api.listing import Listing
from superpipe_cluster.api.service import Service
from superpipe_cluster.errors import BadInput, NotFound, SpclusterError

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorView, "description": "No token, or nobody's."},
    403: {"model": ErrorView, "description": "Somebody else's job, or a matter for admins."},
    404: {"model": ErrorView, "description": "No such job or route."},
    409: {"model": ErrorView, "description": "Does not fit the present state."},
    413: {"model": ErrorView, "description": "The request body is too large."},
    422: {
        "model": ErrorView,
        "description": "Something in the request cannot be used, or the job can never run.",
    },
    503: {"model": ErrorView, "description": "Redis does not answer; nothing was changed."},
}


def build_app(service: Service) -> FastAPI:
    """The API over a service. The OpenAPI document is at `/openapi.json`, readable pages at `/docs`."""
    app = FastAPI(
        title="superpipe_cluster",
        version=__version__,
        description="The queue in front of the lab's GPU. Every error is an `ErrorView`.",
        responses=_ERRORS,
        generate_unique_id_function=_operation_id,
    )
    app.state.service = service
    app.state.listing = Listing()
    app.add_middleware(BodyLimit)
    app.add_exception_handler(SpclusterError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    for part in (jobs, changes, logs, news, machines, usage, rules, users, openai):
        app.include_router(part.router)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _answer(status: int, view: ErrorView, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(view.model_dump(mode="json"), status, headers)


def _known(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SpclusterError)
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else None
    return _answer(error.http_status, to_view(error), headers)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = tuple(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
    body = ErrorBody(
        code=BadInput.code,
        message="the request is not as the API wants it",
        hint="`/openapi.json` describes every request",
        problems=tuple(_printable(problem) for problem in problems),
    )
    return _answer(422, ErrorView(error=body))


def _refused(request: Request, error: Exception) -> JSONResponse:
    """What the framework refuses by itself: unknown routes, wrong methods, bodies it cannot read."""
    assert isinstance(error, HTTPException)
    message, hint = str(error.detail), None
    if error.status_code in (404, 405):
        message = f"there is no {request.method} {_printable(request.url.path)[:200]}"
        hint = "`/openapi.json` lists what there is"
    code = NotFound.code if error.status_code == 404 else BadInput.code
    body = ErrorBody(code=code, message=message, hint=hint)
    return _answer(error.status_code, ErrorView(error=body), dict(error.headers or {}))


def _broken(_: Request, error: Exception) -> JSONResponse:
    """A bug. The server logs its traceback; the user learns its kind and nothing of the inside."""
    known = SpclusterError(
        f"the head failed on this request ({type(error).__name__})",
        hint="its log has the details; `spcluster doctor` checks the parts",
    )
    return _answer(500, to_view(known))


def _printable(text: str) -> str:
    # What the user sent may be in here, half surrogate pairs included.
    return text.encode("utf-8", "replace").decode("utf-8")

"""Errors on the wire, both ways: an error to the body of an answer, and that body back to the error.

Owns the model of an error and the mapping by `code`; the head's API uses the one direction and the client the
other. Knows nothing of HTTP libraries.
"""

from __future__ import annotations

from pydantic import ConfigDict, Field, ValidationError

from superpipe_cluster.api.views import View
from superpipe_cluster.errors import BadInput, JobFileError, NotRunning, SpclusterError, Unauthorized


class ErrorBody(View):
    """What is wrong. Switch on `code`; `message` and `hint` are for people."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "code": "not_found",
                    "message": "there is no job `42`",
                    "hint": "`spcluster queue -a` lists all jobs",
                    "problems": [],
                }
            ]
        }
    )

    code: str
    message: str
    hint: str | None = None
    problems: tuple[str, ...] = Field(
        default=(), description="Every single mistake, when there is more than one."
    )


class ErrorView(View):
    """The body of every answer that is not a success."""

    error: ErrorBody


def to_view(error: SpclusterError) -> ErrorView:
    """What the API answers for an error."""
    problems = error.problems if isinstance(error, JobFileError) else ()
    return ErrorView(
        error=ErrorBody(code=error.code, message=error.message, hint=error.hint, problems=tuple(problems))
    )


def from_answer(status: int, body: bytes) -> SpclusterError:
    """The error that an answer of this HTTP status and body stands for.

    An answer that is not of this API (a proxy's page, an error of a newer head) becomes the nearest error
    there is.
    """
    try:
        said = ErrorView.model_validate_json(body).error
    except ValidationError:
        return _foreign(status)
    kind = _KINDS.get(said.code, BadInput if 400 <= status < 500 else SpclusterError)
    if issubclass(kind, JobFileError):
        return kind(said.message, hint=said.hint, problems=said.problems)
    message = said.message
    if said.problems:
        message = "\n".join([f"{message}:", *(f"  {problem}" for problem in said.problems)])
    return kind(message, hint=said.hint)


def _foreign(status: int) -> SpclusterError:
    hint = "is SPCLUSTER_URL (or cluster.json) the address of a cluster? `spcluster doctor` checks"
    if status == 401:
        return Unauthorized("the server wants another kind of login", hint=hint)
    if status in (502, 503, 504):
        return NotRunning(f"the way to the cluster is closed (HTTP {status})", hint=hint)
    return SpclusterError(f"the answer (HTTP {status}) does not come from a spcluster head", hint=hint)


def _by_code(kind: type[SpclusterError]) -> dict[str, type[SpclusterError]]:
    kinds = {kind.code: kind}
    for child in kind.__subclasses__():
        kinds.update(_by_code(child))
    return kinds


_KINDS = _by_code(SpclusterError)

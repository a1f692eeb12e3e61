"""Errors as OpenAI's clients want them: `{"error": {"message", "type", "param", "code"}}`.

Owns the shape, and what is said of the cluster's own errors in it. Loads nothing: the worker and the head's door both
answer with it.
"""

from __future__ import annotations

from typing import Any

from superpipe_cluster.errors import SpclusterError

#: OpenAI's word for the kind of error, by status.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class Fault(Exception):
    """A request that is not answered, or not to its end.

    Args:
        status: of HTTP.
        message: what is wrong and what to do about it.
        code: stable name, for programs.
        param: the field of the request that is to be mended.
        retry_after_s: whole seconds after which it may work; the clients wait so long by themselves.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, error: SpclusterError) -> Fault:
        """What an error of the cluster's is here."""
        message = error.message if error.hint is None else f"{error.message} ({error.hint})"
        status = error.http_status
        return cls(status, message, code=error.code, retry_after_s=5 if status == 503 else None)

    @property
    def body(self) -> dict[str, Any]:
        """The answer as JSON."""
        kind = _TYPES.get(self.status, "server_error")
        said = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": said}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers

"""How much a request may carry: bytes of its body, depth of its JSON, only text that can be written again.

Owns the limits and their checks; what the fields mean is the business of `views.py` and of `spec`.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from superpipe_cluster.api.views import MAX_BODY_BYTES
from superpipe_cluster.errors import BadInput

#: Deeper than any job file; far above what recursive code downstream can take.
MAX_JSON_DEPTH = 32


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `max_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its bytes counted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        # The server has already refused a length that is not a number.
        too_large = int(announced) > self.max_bytes
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            if too_large:
                raise self._refusal()
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.max_bytes:
                raise self._refusal()
            return message

        await self.app(scope, counted, send)

    def _refusal(self) -> HTTPException:
        return HTTPException(413, f"the request is larger than {self.max_bytes} bytes")


def check_json(value: Any, where: str, depth: int = 0) -> None:
    """Refuse JSON that this program could read but not write again, or not walk.

    Raises:
        BadInput: nested too deeply; NaN or infinity (Python reads them, JSON has none); half a surrogate
            pair.
    """
    if depth > MAX_JSON_DEPTH:
        raise BadInput(f"{where}: nested more than {MAX_JSON_DEPTH} levels deep")
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{where}: `{value}` is not a number that JSON can carry")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key, where)
            check_json(item, f"{where}.{key}" if depth < 4 else where, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_json(item, where, depth + 1)


def check_text(text: str, where: str) -> None:
    """Refuse text that has no UTF-8.

    Raises:
        BadInput: it contains half a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"{where}: contains characters that are not valid Unicode text") from None

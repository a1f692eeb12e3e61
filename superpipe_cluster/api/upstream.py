"""Passing a request on to the worker that serves a model, and its answer back, as it comes.

Owns the connection to the worker's socket, and what is said when the worker is not there or goes in the middle. What
is asked and answered goes through unread.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from superpipe_cluster.serving.connection import short_name, while_waited_for
from superpipe_cluster.serving.faults import Fault

#: Seconds to reach a worker on this machine; how long it then takes to answer is between it and who asks.
_PATIENCE = httpx.Timeout(None, connect=5.0)
#: httpx wants one, and reads the machine's certificates if it gets none. Nothing here is encrypted.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: Headers of a worker's answer that are the client's to see.
_PASSED_ON = ("content-type", "retry-after")
#: Seconds after which a worker that was lost may be there again.
_BACK_AFTER_S = 5


async def pass_on(request: Request, door: Path, model: str) -> Response:
    """The worker's answer, as a stream if it is one. A client that goes away is gone for the worker too.

    Raises:
        Fault: 503, the worker is not there, or went before it had answered.
        Gone: the client did not wait.
    """
    body = await request.body()
    async with AsyncExitStack() as stack:
        try:
            answer = await while_waited_for(request, _send(stack, door, request.url.path, body))
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                whole = await while_waited_for(request, answer.aread())
                return Response(whole, answer.status_code, _headers(answer))
        except (httpx.TransportError, OSError):
            raise _lost(model) from None
        return StreamingResponse(_pieces(answer, stack.pop_all(), model), headers=_headers(answer))


async def _send(stack: AsyncExitStack, door: Path, path: str, body: bytes) -> httpx.Response:
    with short_name(door) as name:  # a name to connect by, and no longer
        transport = httpx.AsyncHTTPTransport(uds=name, verify=_NO_TLS)
        client = httpx.AsyncClient(transport=transport, timeout=_PATIENCE, trust_env=False)
        await stack.enter_async_context(client)
        return await stack.enter_async_context(client.stream("POST", f"http://worker{path}", content=body))


def _headers(answer: httpx.Response) -> dict[str, str]:
    return {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}


async def _pieces(answer: httpx.Response, stack: AsyncExitStack, model: str) -> AsyncIterator[bytes]:
    async with stack:
        try:
            async for piece in answer.aiter_raw():
                yield piece
        except httpx.TransportError:
            # The status has been sent long ago; an event is what OpenAI's clients raise as an error here.
            yield f"data: {json.dumps(_lost(model).body)}\n\n".encode()


def _lost(model: str) -> Fault:
    return Fault(
        503,
        f"the worker of {model} does not answer: it is loading its model, or was lost and is started again",
        code="model_not_ready",
        retry_after_s=_BACK_AFTER_S,
    )

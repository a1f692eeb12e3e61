"""The way between the head's door and a served model: a unix socket in the job's folder, which its owner alone enters.

Owns where the socket is found, and noticing that somebody no longer waits for an answer. [Note: long paths] The name of
a unix socket has 107 bytes, and folders are deeper than that; a descriptor of the folder makes any of them short.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from starlette.requests import Request

Answer = TypeVar("Answer")


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of this file that any socket call takes, for as long as the block runs."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """A socket that listens at `path`, in the place of one that an earlier attempt left there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    with short_name(path) as name:
        listener.bind(name)
    path.chmod(0o600)
    listener.listen(512)
    return listener


class Gone(Exception):
    """Whoever asked has closed the connection."""


async def while_waited_for(request: Request, answer: Awaitable[Answer]) -> Answer:
    """The answer, unless the client goes before it is there: then it is cancelled. The body has been read.

    Raises:
        Gone: the client did not wait.
    """
    work = asyncio.ensure_future(answer)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise Gone
    finally:
        for task in (work, left):
            task.cancel()
            with suppress(BaseException):  # its end is awaited, whatever it is: it may hold a connection
                await task


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

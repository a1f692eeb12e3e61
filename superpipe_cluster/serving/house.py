"""The worker's HTTP server: a thread beside the one that computes, listening at the job's door."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from superpipe_cluster.serving.connection import listen

#: Seconds in which what has been answered is still sent when the job ends.
_LAST_WORDS_S = 2


@contextmanager
def open_house(door: Path, app: ASGIApp) -> Iterator[None]:
    """Answer at `door` while the block runs."""
    listener = listen(door)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_LAST_WORDS_S
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        door.unlink(missing_ok=True)
        server.should_exit = True
        thread.join(_LAST_WORDS_S + 1)
        listener.close()

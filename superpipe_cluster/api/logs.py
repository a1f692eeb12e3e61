"""Reading a job's log over HTTP: by byte offset, whole characters only, waiting a while for more.

Owns the cutting of bytes into text and the waiting; the bytes come from the service. [Note: follow by offset]
An answer names the offset that follows its last byte. Whoever follows asks from there, so whatever happens in
between (the head restarted, the answer got lost) nothing is missed and nothing comes twice.
"""

from __future__ import annotations

import asyncio
import codecs
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from superpipe_cluster.api.access import require_touch
from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.jobs import Ref
from superpipe_cluster.api.service import Service
from superpipe_cluster.api.views import LogView
from superpipe_cluster.store.interface import User

router = APIRouter(tags=["jobs"])

#: How often a waiting request looks for more, seconds.
POLL_S = 0.2
#: Bytes read at once when looking for the last lines.
TAIL_BLOCK_BYTES = 64 * 1024
#: The last lines are looked for in this much of the log's end, and no further.
TAIL_REACH_BYTES = 8 * 2**20


@router.get("/v1/jobs/{ref}/logs", summary="A piece of a job's log", response_model=LogView)
async def logs(
    request: Request,
    ref: Ref,
    user: AUser,
    service: AService,
    offset: Annotated[int, Query(ge=0, le=2**53, description="Byte to begin at.")] = 0,
    tail: Annotated[
        int | None,
        Query(ge=0, le=100_000, description="Begin this many lines before the end, not at `offset`."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=2**20, description="Most bytes to answer with.")] = 2**18,
    wait_s: Annotated[
        float, Query(ge=0, le=10, description="Wait this long for more when there is none.")
    ] = 0,
) -> LogView:
    """The log from a byte offset on; with `wait_s`, answers as soon as there is more or the job is over."""
    record = await run_in_threadpool(service.job, user, ref)
    require_touch(user, record)
    if tail is not None:
        offset = await run_in_threadpool(_tail_offset, service, user, record.id, tail)
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        view = await run_in_threadpool(_piece, service, user, record.id, offset, limit)
        late = asyncio.get_running_loop().time() >= deadline
        if view.text or view.ended or late or await request.is_disconnected():
            return view
        await asyncio.sleep(POLL_S)


def _piece(service: Service, user: User, job_id: str, offset: int, limit: int) -> LogView:
    # The state is read before the bytes: what a terminal job has written is all in the file by then, so "over
    # and nothing more" cannot be said too early.
    over = service.job(user, job_id).state.is_terminal
    # Four bytes are the longest character; with less, an answer could be empty for ever.
    chunk = service.logs(user, job_id, offset=offset, limit=max(limit, 4))
    at_end = offset + len(chunk.data) >= chunk.size_bytes
    text, used = whole_characters(chunk.data, final=over and at_end)
    next_offset = offset + used
    return LogView(
        text=text,
        next_offset=next_offset,
        size=chunk.size_bytes,
        ended=over and next_offset >= chunk.size_bytes,
    )


def whole_characters(data: bytes, *, final: bool) -> tuple[str, int]:
    """The text of `data` and how many of its bytes that is.

    A character cut off at the end is left for the next time, unless `final`; bytes that are no UTF-8 become
    U+FFFD.
    """
    return codecs.utf_8_decode(data, "replace", final)


def _tail_offset(service: Service, user: User, job_id: str, lines: int) -> int:
    """Where the last `lines` lines begin; a last line without its line end counts."""
    end = start = service.logs(user, job_id, offset=0, limit=1).size_bytes
    missing = lines
    while missing > 0 and start > max(0, end - TAIL_REACH_BYTES):
        size = min(TAIL_BLOCK_BYTES, start)
        block = service.logs(user, job_id, offset=start - size, limit=size).data
        start -= size
        at = len(block)
        if start + at == end and block.endswith(b"\n"):
            at -= 1  # the end of the last line, not of one before it
        while missing > 0:
            at = block.rfind(b"\n", 0, at)
            if at < 0:
                break
            missing -= 1
            if missing == 0:
                return start + at + 1
    return end if lines == 0 else start

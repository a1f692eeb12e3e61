"""Routes about jobs: submit, list, show, cancel.

Owns the HTTP side: what is taken, who may, what is answered. Planning, naming and all state belong to the
service; what else may be asked of a job is in `changes.py`.

[Note: submits wait apart] A submit may plan for seconds. In threads of their own, however many there are, they keep
nobody from looking at the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from superpipe_cluster.api.access import may_touch, require_touch
from superpipe_cluster.api.auth import AService, AUser
from superpipe_cluster.api.limits import check_json, check_text
from superpipe_cluster.api.listing import Listing
from superpipe_cluster.api.service import Code, CodeFile, OwnCode
from superpipe_cluster.api.views import (
    CancelRequest,
    CodeUpload,
    FileUpload,
    JobDetail,
    JobList,
    JobView,
    SubmitRequest,
    View,
    job_detail,
    job_view,
)
from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec import JobSpec, ScriptJob, parse
from superpipe_cluster.spec.fields import NAME_PATTERN

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

# An id or a name has no slash and no leading dot, so it can never be a path.
Ref = Annotated[
    str, Path(pattern=NAME_PATTERN, description="Id of a job, or a name: the newest job of that name.")
]

#: See [Note: submits wait apart]. So many are taken in at once; how many of them plan at once, the head decides.
_submits = ThreadPoolExecutor(8, thread_name_prefix="submit")


@router.post("", status_code=201, summary="Put a job in the queue", response_model=JobDetail)
async def submit(
    body: SubmitRequest,
    user: AUser,
    service: AService,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r"^[!-~]{1,200}$",
            description="The same key again answers the same job and makes no second.",
        ),
    ] = None,
) -> Response:
    """Validate and plan a job, and queue it. What can never run is refused with the reason.

    Of an array, the first task is answered, and `tasks` names all.
    """

    def work() -> Response:
        check_json(body.spec, "spec")
        spec = parse(body.spec)
        record = service.submit(user, spec, _code(spec, body.code, body.files), idempotency_key)
        made = job_detail(record, tasks=service.tasks(user, record))
        return _written(made, 201, {"Location": f"/v1/jobs/{record.id}"})

    return await asyncio.get_running_loop().run_in_executor(_submits, work)


def _written(view: View, status: int, headers: dict[str, str]) -> Response:
    """The answer as bytes: FastAPI would validate once more what has just been built."""
    return Response(view.model_dump_json(), status, headers, "application/json")


def _code(spec: JobSpec, upload: CodeUpload | None, files: Sequence[FileUpload]) -> OwnCode | None:
    if files:
        return _files(spec, files)
    if (upload is None) != (spec.own_program is None):
        came = "no program" if upload is None else "a program"
        raise BadInput(
            f"the job's worker is `{spec.worker}`, and {came} came with it",
            hint="`code` holds the text of the program that `worker` names by a path, and nothing else",
        )
    if upload is None:
        return None
    check_text(upload.text, "code.text")
    check_text(upload.name, "code.name")
    return Code(name=upload.name, text=upload.text)


def _files(spec: JobSpec, uploads: Sequence[FileUpload]) -> tuple[CodeFile, ...]:
    if not isinstance(spec, ScriptJob):
        raise BadInput("files travel with a script only", hint="other programs are one file each: `code`")
    paths = [upload.path for upload in uploads]
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    for path in paths:
        check_text(path, "files.path")
        if path in folders or paths.count(path) > 1:
            raise BadInput(f"files: {path} is there twice", hint="a path names one file, or a folder")
    return tuple(CodeFile(one.path, one.content, one.executable) for one in uploads)


@router.get("", summary="The queue", response_model=JobList)
def jobs(
    request: Request,
    user: AUser,
    service: AService,
    ended: Annotated[bool, Query(alias="all", description="Also the jobs that are over.")] = False,
    of_user: Annotated[
        str | None, Query(alias="user", pattern=NAME_PATTERN, description="Only this user's.")
    ] = None,
) -> Response:
    """Everybody's jobs, oldest first."""
    records = service.jobs(user, ended=ended, of_user=of_user)
    listing: Listing = request.app.state.listing
    text = listing.text(
        (record, may_touch(user, record), service.expected_start_at(record.id)) for record in records
    )
    return Response(text, media_type="application/json")


@router.get("/{ref}", summary="All about a job", response_model=JobDetail)
def job(ref: Ref, user: AUser, service: AService) -> JobDetail:
    """The job with its spec, plan and events."""
    record = service.job(user, ref)
    require_touch(user, record)
    return job_detail(
        record,
        service.events(user, record.id),
        tasks=service.tasks(user, record),
        expected_start_at=service.expected_start_at(record.id),
    )


@router.post("/{ref}/cancel", summary="Stop a job", response_model=JobView)
def cancel(ref: Ref, user: AUser, service: AService, body: CancelRequest | None = None) -> JobView:
    """Stop a job. A waiting one is over at once; a running one saves first, unless forced."""
    record = service.job(user, ref)
    require_touch(user, record)
    return job_view(service.cancel(user, record.id, force=body is not None and body.force))

"""The job that this process runs for: `superpipe_cluster.current_job()`, and `stream()` with its budget.

Owns finding it. A worker program's process has it from the start; a process that a script starts borrows it (see
`lending`), by what its environment says. torch and the job file's types are imported only where they are needed:
outside a job, `stream` wants torch alone.
"""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from superpipe_cluster.errors import BadInput, SpclusterError, StaleWrite
from superpipe_cluster.sizes import bytes_of, format_bytes

if TYPE_CHECKING:
    import torch

    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.streaming import Streamer, VirtualDevice

#: Names of the variables that tell a process whose job it runs for: the job's folder, and the attempt's epoch.
JOB_FOLDER = "SPCLUSTER_JOB_FOLDER"
EPOCH = "SPCLUSTER_EPOCH"

_job: Job | None = None
_looked = False


def current_job() -> Job | None:
    """The job that this process runs for; None outside a job, and where another process of the job has it already.

    Raises:
        StaleWrite: the attempt that started this process is over.
    """
    global _job, _looked
    if not _looked:
        _looked = True
        _job = _borrowed()
    return _job


def enter(job: Job) -> None:
    """From now on, `job` is what this process runs for."""
    global _job, _looked
    _job, _looked = job, True


def stream(
    model: torch.nn.Module,
    budget: int | str | None = None,
    device: str | torch.device | VirtualDevice | None = None,
    **options: Any,
) -> Streamer:
    """Stream `model`: it stays the same object and is used as before, with only a part of it on the device.

    Inside a job, the device, the budget and whatever is not among the options are the job's: `stream(model)` is all.

    Args:
        model: any module.
        budget: device bytes, or a size like `"8GiB"`, for everything; inside a job, a part of the job's budget.
        device: `"cuda:0"`, `"cpu"` (the default) or a `VirtualDevice`; inside a job it is the job's.
        options: of `superpipe_cluster.streaming.stream`: `k`, `k_prime`, `policy`, `activations`, `host`, `weights`...

    Raises:
        BadInput: more is asked for than the job has, or as `superpipe_cluster.streaming.stream` says.
        BudgetTooSmall: the model cannot be streamed in so few bytes; the message names how many it needs.
    """
    job = current_job()
    if job is None:
        from superpipe_cluster.streaming import stream as stream_anywhere

        return stream_anywhere(model, budget, "cpu" if device is None else device, **options)
    asked_bytes = None if budget is None else bytes_of(budget)
    if asked_bytes is not None and asked_bytes > job.budget_bytes:
        raise BadInput(
            f"stream() asks for {format_bytes(asked_bytes)}, and job {job.id} has {format_bytes(job.budget_bytes)}",
            hint="leave the budget out for all of the job's, or write more in resources.gpu_memory",
        )
    return job.stream(model, budget=asked_bytes, **options)


def _borrowed() -> Job | None:
    if JOB_FOLDER not in os.environ:
        return None
    from superpipe_cluster.execution.attempt import Attempt
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.execution.layout import JobFolder
    from superpipe_cluster.execution.lending import borrow

    folder = JobFolder(Path(os.environ[JOB_FOLDER]))
    attempt = Attempt.read(folder.attempt)
    try:
        borrowed = borrow(folder.root) if str(attempt.epoch) == os.environ.get(EPOCH) else None
    except OSError as error:
        raise StaleWrite(f"the attempt of job {attempt.id} that this process belongs to is over") from error
    if borrowed is None:
        return None
    line, budget_bytes = borrowed
    job = Job.of(replace(attempt, budget_bytes=budget_bytes), folder, line)
    atexit.register(job.flush)
    _tell_failures(job)
    return job


def _tell_failures(job: Job) -> None:
    """Have an exception that ends this process end the job for its reason, and not for an exit code alone."""
    from superpipe_cluster.execution.failure import print_error, reason_of, sentence_of

    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, SpclusterError):
            print_error(error)
        else:
            usual(kind, error, trace)
        job.tell_failure(str(reason_of(error)), sentence_of(error))

    sys.excepthook = hook

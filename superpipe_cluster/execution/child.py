"""The child process of one attempt: `python -m superpipe_cluster.execution.child <job folder> <epoch>`.

Owns loading the program by its path, calling its `main(job)`, and telling how that ended. What the program
may do is `job`'s; when the child is stopped or killed, the supervisor's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from superpipe_cluster.errors import BadInput, SpclusterError, StaleWrite
from superpipe_cluster.execution import current
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.checkpoints import Checkpoints
from superpipe_cluster.execution.control import PARENT_PID, ChildLine
from superpipe_cluster.execution.failure import print_error, reason_of, sentence_of
from superpipe_cluster.execution.job import Job
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.lifecycle.states import EndReason

#: Seconds to wait for the previous attempt's child to be gone. It is dead already when the head starts a new
#: one; this covers the kernel's freeing of a large memory.
_LOCK_PATIENCE_S = 30.0
_PR_SET_PDEATHSIG = 1
#: The program's module name: no importable module can have it, so it shadows nothing.
_PROGRAM_MODULE = "spcluster:program"


def main(root: Path, epoch: int) -> int:
    """Run the attempt; the process's exit code."""
    _die_with_parent(int(os.environ.pop(PARENT_PID)))
    line = ChildLine.inherited()
    folder = JobFolder(root)
    job: Job | None = None
    try:
        with _only_writer(folder):
            attempt = Attempt.read(folder.attempt)
            if attempt.epoch != epoch:
                raise StaleWrite(f"epoch {attempt.epoch} of job {attempt.id} has begun, after {epoch}")
            Checkpoints(folder, attempt.id, epoch).tidy()
            job = Job.of(attempt, folder, line)
            current.enter(job)
            program_main = _load(Path(attempt.program))
            line.send({"type": "progress", "running": True})
            program_main(job)
        reason, message, exit_code = job.stopped_for or EndReason.OK, None, 0
    except SystemExit as left:
        reason, message, exit_code = _left(left)
    except BaseException as error:
        reason, message, exit_code = _failed(error)
    if job is not None:
        with contextlib.suppress(Exception):  # statistics of a streamer that has failed
            job.flush()
    line.send({"type": "end", "reason": str(reason), "message": message})
    return exit_code


def _die_with_parent(parent: int) -> None:
    """Be killed when the actor goes (see [Note: who dies with whom] in `supervisor`)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel knew
        os._exit(1)


@contextlib.contextmanager
def _only_writer(folder: JobFolder) -> Iterator[None]:
    """Hold the job folder's lock: two attempts never write together, whatever else has gone wrong."""
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # A forked helper of the program would share the lock and keep it after this process's death.
    os.register_at_fork(after_in_child=lambda: _close_quietly(descriptor))
    deadline_s = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise StaleWrite("another attempt of this job still holds its folder") from None
            time.sleep(0.05)
    yield
    # Not released here: the lock goes with the process, after everything that might still write.


def _close_quietly(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _load(program: Path) -> Callable[[Job], Any]:
    """The `main` of the program. It is run by path and never as part of a package."""
    found = importlib.util.spec_from_file_location(_PROGRAM_MODULE, program)
    if found is None or found.loader is None:
        raise BadInput(f"not a Python program: {program.name}", hint="a worker program is a .py file")
    module = importlib.util.module_from_spec(found)
    sys.modules[_PROGRAM_MODULE] = module  # dataclasses and pickle look a class's module up by name
    found.loader.exec_module(module)
    program_main = getattr(module, "main", None)
    if not callable(program_main):
        raise BadInput(f"{program.name} has no main(job)", hint="define main(job): that is what is called")
    return program_main


def _left(error: SystemExit) -> tuple[EndReason, str | None, int]:
    """The program called `sys.exit`."""
    if error.code is None or error.code == 0:
        return EndReason.OK, None, 0
    if isinstance(error.code, int):
        notes: list[str] = getattr(error, "__notes__", [])
        words = ": ".join([f"the program left with exit code {error.code}", *notes])
        return EndReason.ERROR, words, error.code & 0xFF
    return EndReason.ERROR, str(error.code), 1


def _failed(error: BaseException) -> tuple[EndReason, str, int]:
    """The reason, the sentence and the exit code of an exception that reached the top."""
    print_error(error)
    exit_code = error.exit_code if isinstance(error, SpclusterError) else 1
    return reason_of(error), sentence_of(error), exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))

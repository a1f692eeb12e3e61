"""Run a user's command in the job's name: any program, any language, in the output folder.

One flat program: read it from `main` down. The command finds the job in its environment: `superpipe_cluster.stream` and
`superpipe_cluster.current_job()` in it use the job's device, budget and checkpoints. A command that knows nothing of
the cluster runs as it is, and hears of a stop by SIGTERM, when the grace period is over.
"""

from __future__ import annotations

import difflib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from superpipe_cluster.errors import BadInput, DeviceOutOfMemory, NeverFits, SpclusterError, StaleWrite
from superpipe_cluster.execution.environment import environment
from superpipe_cluster.spec import ScriptJob
from superpipe_cluster.spec.commands import argv, inside

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job

#: What the log of the command is read by, to say how it ended.
LOG = Path("/proc/self/fd/2")
#: The errors that end a job for a reason of their own.
ERRORS: dict[str, type[SpclusterError]] = {
    "oom": DeviceOutOfMemory,
    "never_fits": NeverFits,
    "bad_input": BadInput,
    "worker_lost": StaleWrite,
}


def main(job: Job) -> None:
    """Start the command, wait for it, end as it did."""
    asked = job.spec
    assert isinstance(asked, ScriptJob)
    words = argv(asked.run, lambda word: copy_of(word, job.code))
    signals: list[int] = []
    # The command is in our process group and gets the signal as well: we have to outlive it, to tell how it ended.
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    variables = {**os.environ, **environment(asked.venv, asked.pip)}
    # For `python -m`, and for modules that are not beside the program.
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(job.code), variables.get("PYTHONPATH")]))
    begun_at = log_size()
    with job.lend() as (loan, of_job):
        command = started(words, {**variables, **of_job})
        code = command.wait()
    if (signals or (loan.stopping and code == 0)) and job.should_stop:
        return  # for the reason that it was stopped for
    if code < 0:
        die_by(signal.Signals(-code))
    if code != 0 and loan.failure is not None and loan.failure[0] in ERRORS:
        reason, message = loan.failure
        raise ERRORS[reason](message)
    if code != 0:
        left = SystemExit(code)
        left.add_note(loan.failure[1] if loan.failure is not None else last_line(begun_at))
        raise left


def die_by(number: signal.Signals) -> None:
    """End as the command did: whether a signal was the machine's fault is for others to say."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def copy_of(word: str, code: Path) -> str | None:
    """The copy, among the files that came with the job, of what a word of the command names."""
    path = inside(word)
    return str(code / path) if path is not None and (code / path).is_file() else None


def started(words: list[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The command's process.

    Raises:
        BadInput: there is no such program.
    """
    path = variables["PATH"]
    if shutil.which(words[0], path=path) is None:
        near = difflib.get_close_matches(words[0], programs(path), n=1)
        raise BadInput(
            f"run: there is no program {words[0]!r} here",
            hint=f"did you mean {near[0]}?" if near else "install it, or name it by an absolute path",
        )
    try:
        return subprocess.Popen(words, env=variables)
    except OSError as error:  # no program after all, or not for us
        raise BadInput(
            f"run: cannot start {words[0]!r}: {error.strerror}",
            hint="a program's first line is `#!/bin/sh` or its like",
        ) from error


def programs(path: str) -> list[str]:
    """The names of all programs that could be run."""
    return [
        one.name
        for folder in path.split(os.pathsep)
        if os.path.isdir(folder)
        for one in Path(folder).iterdir()
    ]


def log_size() -> int:
    """Bytes in the log by now."""
    return LOG.stat().st_size


def last_line(begun_at: int) -> str:
    """The last words of the command, from byte `begun_at` of the log on."""
    with LOG.open("rb") as log:
        log.seek(max(begun_at, log_size() - 4096))
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing"

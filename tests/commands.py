"""Running `spcluster` in tests: as a process of its own, or, many times faster, the same program in this process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from serving import Head
from superpipe_cluster.cli.main import run

PROGRAM = (sys.executable, "-m", "superpipe_cluster")
ROOT = Path(__file__).resolve().parents[1]

#: Everything that could reach another cluster, or change how things look.
_DROPPED = (
    "SPCLUSTER_URL",
    "SPCLUSTER_TOKEN",
    "SPCLUSTER_HOME",
    "SPCLUSTER_REDIS_URL",
    "SPCLUSTER_RAY_ADDRESS",
    "NO_COLOR",
    "FORCE_COLOR",
    "TERM",
    "COLUMNS",
)


@dataclass(frozen=True)
class Said:
    """How a command line ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what tests must not depend on, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "SPCLUSTER_HOME": "/nonexistent/home", "COLUMNS": "80", **changes}


def spcluster(*arguments: str, **changes: str) -> Said:
    """Run one command line to its end in this process; `changes` are environment variables."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment(**changes), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = run(arguments)
    return Said(code, out.getvalue(), err.getvalue())


def process(*arguments: str, **changes: str) -> Said:
    """Run one command line as users do: as a process."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def ask(head: Head, *arguments: str, who: str = "alice", **changes: str) -> Said:
    """Run one command line as a user of this head."""
    return spcluster(*arguments, **head.environment(who), **changes)

"""Running `spcluster` in tests, as a user does: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = (sys.executable, "-m", "superpipe_cluster")
ROOT = Path(__file__).resolve().parents[1]

#: Everything that could reach another cluster, or change how things look.
_DROPPED = (
    "SPCLUSTER_URL",
    "SPCLUSTER_TOKEN",
    "SPCLUSTER_HOME",
    "NO_COLOR",
    "FORCE_COLOR",
    "TERM",
    "COLUMNS",
)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what tests must not depend on, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if name not in _DROPPED}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": path, "SPCLUSTER_HOME": "/nonexistent/home", "COLUMNS": "80", **changes}


def spcluster(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run one command line to its end; `changes` are environment variables."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )

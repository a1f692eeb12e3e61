"""Small worker programs and the attempts that run them, for the tests of this folder and of tests/head."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.machine import parse_device


def prepare(root: Path, program: str, **changes: Any) -> JobFolder:
    """A job folder with an attempt that runs `program`."""
    folder = JobFolder(root)
    folder.code.mkdir(parents=True, exist_ok=True)
    path = folder.code / "mine.py"
    path.write_text(dedent(program))
    values: dict[str, Any] = {
        "id": "7",
        "attempt": 1,
        "epoch": 1,
        "job": {"kind": "train", "name": "tiny", "worker": str(path), "params": {"n": 3}},
        "device": parse_device("cpu:1GiB@1GB/s"),
        "budget_bytes": 2**20,
        "program": str(path),
        "output": str(folder.output),
    }
    Attempt(**{**values, **changes}).write(folder)
    return folder

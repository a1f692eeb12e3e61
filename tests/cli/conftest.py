"""A running head and a job file for the tests of the command line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Head, serving

JOB_FILE = """\
kind: train
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: ["python-stdlib:"]}
train: {steps: 10}
"""


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """A suite that a shell started in the background ignores SIGINT, and so would every program it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    folder = tmp_path / "logs"
    folder.mkdir()
    with serving(folder) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(JOB_FILE, encoding="utf-8")
    return path

"""A running head and a job file for the tests of the command line."""

from __future__ import annotations

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

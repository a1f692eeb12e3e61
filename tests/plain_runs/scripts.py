"""The page for people who bring a training script: the script as it was, and with the five lines of ours."""

from __future__ import annotations

import contextlib
import re
import runpy
import sys
import warnings
from pathlib import Path
from unittest import mock

import torch

_PAGE = Path(__file__).parents[2] / "docs" / "five_lines.md"


def five_lines() -> tuple[str, str]:
    """Both programs of the page."""
    plain, changed, *_ = re.findall(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    return plain, changed


def trained(script: str, steps: int, folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a script leaves which knows nothing of us."""
    (folder / "plain.py").write_text(script)
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", ["plain.py", str(steps)]),
        warnings.catch_warnings(action="ignore", category=ResourceWarning),  # it leaves a file to be closed
    ):
        runpy.run_path("plain.py")
    return torch.load(folder / "model.pt")

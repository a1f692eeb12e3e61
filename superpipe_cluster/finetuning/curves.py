"""Curves of a training where people look at them: TensorBoard event files, Weights & Biases.

Owns opening the libraries that are asked for, and nothing of theirs is written by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from superpipe_cluster.errors import BadInput


class Curves:
    """What numbers are reported to; a context that closes it.

    Args:
        report_to: `tensorboard`, `wandb`.
        folder: where their files go.
        name: of the run, for those who have several.
        run: an id, the same for every attempt, so that a resumed job goes on with its own curves.

    Raises:
        BadInput: a library that is asked for is not installed.
    """

    def __init__(self, report_to: Sequence[str], folder: Path, *, name: str, run: str) -> None:
        self._open = ExitStack()
        self._tensorboard: Any = None
        self._wandb: Any = None
        if "tensorboard" in report_to:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise _missing("tensorboard", '"superpipe_cluster[tensorboard]"') from error
            self._tensorboard = self._open.enter_context(SummaryWriter(folder / "tensorboard"))
        if "wandb" in report_to:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise _missing("wandb", "wandb") from error
            self._wandb = self._open.enter_context(
                wandb.init(name=name, id=run, resume="allow", dir=str(folder))
            )

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def add(self, step: int, **numbers: float) -> None:
        """Points of several curves at a step. A step that is made again replaces nothing: it has the same numbers."""
        if self._tensorboard is not None:
            for name, value in numbers.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)


def _missing(library: str, package: str) -> BadInput:
    return BadInput(
        f"finetune.report_to: {library} is not installed here", hint=f"pip install {package}, or leave it out"
    )

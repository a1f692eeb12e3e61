"""Curves go where they are asked to go, and a library that is missing is named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from superpipe_cluster.errors import BadInput
from superpipe_cluster.finetuning import Curves


class Run:
    """A run of Weights & Biases, as far as it is used."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.is_over = False

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.is_over = True


def test_every_attempt_goes_on_with_the_same_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run, asked = Run(), []

    def init(**options: Any) -> Run:
        asked.append(options)
        return run

    wandb = ModuleType("wandb")
    wandb.init = init  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
        with Curves(["wandb"], tmp_path, name="mine", run="mine-7") as curves:
            curves.add(step, loss=0.5)
        assert run.is_over
    assert run.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})]
    assert asked == [{"name": "mine", "id": "mine-7", "resume": "allow", "dir": str(tmp_path)}] * 2


def test_nothing_is_opened_that_was_not_asked_for(tmp_path: Path) -> None:
    with Curves([], tmp_path, name="mine", run="mine-7") as curves:
        curves.add(1, loss=0.5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("library", "module", "hint"),
    [
        ("wandb", "wandb", "pip install wandb"),
        ("tensorboard", "torch.utils.tensorboard", 'pip install "superpipe_cluster[tensorboard]"'),
    ],
)
def test_a_missing_library_is_named(
    library: str, module: str, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=f"finetune.report_to: {library} is not installed") as caught:
        Curves([library], tmp_path, name="mine", run="mine-7")
    assert caught.value.hint is not None
    assert hint in caught.value.hint

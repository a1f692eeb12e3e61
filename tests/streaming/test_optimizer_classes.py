"""Every class of `torch.optim`: exact on the device and on the host, or refused; and the README says which."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import superpipe_cluster.streaming
from streaming.twins import Blocks, assert_same_run, batch, train
from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming import stream

CLASSES = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
}
_README = Path(superpipe_cluster.streaming.__file__).with_name("README.md")


class Looks(nn.Module):
    """Tables whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Sequential(nn.Embedding(9, 8, sparse=True)) for _ in range(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([table(x) for table in self.tables]).sum(0)


class Matrices(Blocks):
    """Without vectors."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.bias = None


def _says() -> dict[str, str]:
    """The README's table: class -> exact or refused."""
    return dict(re.findall(r"^\| `(\w+)` \| (\w+)", _README.read_text(encoding="utf-8"), re.MULTILINE))


def test_the_readme_has_every_class() -> None:
    assert set(CLASSES) <= set(_says())
    assert set(_says().values()) <= {"exact", "refused"}


@pytest.mark.parametrize("where", ["on_device", "on_host"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class(name: str, where: str) -> None:
    kind = CLASSES[name]
    if _says()[name] == "refused":
        with stream(Blocks(), k=2) as streamer, pytest.raises(Unstreamable, match=name):
            streamer.optimizer(kind, where=where)  # type: ignore[arg-type]
        return
    sparse = name == "SparseAdam"
    build = Looks if sparse else Matrices if name == "Muon" else Blocks
    options: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}

    def loss_of(model: nn.Module, step: int) -> torch.Tensor:
        x = torch.randint(9, (7,), generator=torch.Generator().manual_seed(step)) if sparse else batch(step)
        return (model(x) - 1).square().mean()

    def program(model, make_optimizer):
        is_streamed = make_optimizer.__name__ == "optimizer"
        optimizer = make_optimizer(kind, **options, **({"where": where} if is_streamed else {}))
        losses = train(model, optimizer, 4, loss_of)
        state = optimizer.state_dict()["state"]
        return losses, [[value.clone() for value in one.values() if isinstance(value, torch.Tensor)]
                        for one in state.values()]  # fmt: skip

    stats = assert_same_run(program, build)
    assert stats.loads > stats.units

"""Runs one program on a plain model and on its streamed twin, and compares everything that can be seen of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from superpipe_cluster.streaming import StreamStats, stream

#: `program(model, make_optimizer)` returns any nest of tensors. `make_optimizer(kind, params=None, **options)`.
Program = Callable[[nn.Module, Callable[..., torch.optim.Optimizer]], Any]


class Blocks(nn.Module):
    """Eight units: an input layer, six residual blocks, an output layer. The model where any will do."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inside = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))
                for _ in range(6)
            ]
        )
        self.outside = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.outside(x)


def batch(seed: int = 0, rows: int = 3, width: int = 16) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def mean_square(model: nn.Module, seed: int) -> torch.Tensor:
    return model(batch(seed)).square().mean()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 3,
    loss_of: Callable[[nn.Module, int], torch.Tensor] = mean_square,
) -> list[torch.Tensor]:
    losses = []
    for step in range(steps):
        loss = loss_of(model, step)
        loss.backward()
        losses.append(loss.detach().clone())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def assert_same_run(
    program: Program, build: Callable[[], nn.Module] = Blocks, k: int | None = 2, **options: Any
) -> StreamStats:
    """Results, weights, buffers and gradients are equal bit for bit, while streamed and after; k is kept."""
    torch.manual_seed(0)
    original = build()
    plain, streamed = copy.deepcopy(original), copy.deepcopy(original)

    def plain_optimizer(
        kind: type[torch.optim.Optimizer], params: Any = None, **settings: Any
    ) -> torch.optim.Optimizer:
        return kind(
            [p for p in plain.parameters() if p.requires_grad] if params is None else params, **settings
        )

    torch.manual_seed(1)
    expected = [program(plain, plain_optimizer), *_seen(plain)]
    torch.manual_seed(1)
    with stream(streamed, k=k, poison=True, **options) as streamer:
        actual = [program(streamed, streamer.optimizer), *_seen(streamed)]
        assert_equal(expected, actual)
        stats = streamer.stats()
        assert k is None or stats.peak_units <= k
    assert_equal(expected[1:], _seen(streamed), "closed")
    return stats


def _seen(model: nn.Module) -> list[Any]:
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return [weights, gradients]


def assert_equal(one: Any, other: Any, where: str = "result") -> None:
    if isinstance(one, torch.Tensor):
        assert (one.shape, one.dtype, one.layout) == (other.shape, other.dtype, other.layout), where
        one, other = one.detach(), other.detach()
        if one.layout is not torch.strided:
            one, other = one.to_dense(), other.to_dense()
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for at, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{where}[{at}]")
    else:
        assert one == other, where

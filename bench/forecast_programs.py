"""The programs whose forecasts `forecast.py` checks: some compute on the processor, some on a device of declared speed.

Owns the models and their steps; nothing here knows a budget or a forecast.

[Note: declared] A virtual device's link takes the time that its declared speed allows. The products of the declared
programs do the same with a declared speed of computation: the time passes, and the result is zeros. All else in a step
is real, and small beside them: other operators, the optimizer, autograd, every decision of the runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from superpipe_cluster.planning import Probe
from superpipe_cluster.streaming.streamer import Activations


@dataclass(frozen=True)
class Program:
    """A model, a batch and a phase, on a device behind a link.

    Attributes:
        name: for people.
        build: makes the model.
        shape: of the batch.
        train: whether a step goes backward and updates; else it is one forward.
        link_bytes_per_s: declared speed of each direction.
        activations: as in `stream`.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    train: bool
    link_bytes_per_s: float
    activations: Activations = "keep"

    def probe(self) -> Probe:
        """The program, ready to run."""
        model = self.build().train(self.train)
        batch = torch.zeros(self.shape)

        def step() -> None:
            with torch.set_grad_enabled(self.train):
                loss = model(batch).square().mean()
            if self.train:
                loss.backward()

        return Probe(model, step, (lambda own: torch.optim.AdamW(own)) if self.train else None)


# ---- on the processor -----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(x))))


class Mlp(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


class Convolutions(nn.Module):
    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels)
                )
                for _ in range(depth)
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = x + stage(x)
        return x


ON_THE_PROCESSOR = [
    Program("mlp, 128 rows, forward", lambda: Mlp(512, 8), (128, 512), False, 1.5e9),
    Program("mlp, 512 rows, forward", lambda: Mlp(512, 8), (512, 512), False, 1.0e9),
    Program("mlp, 128 rows, train", lambda: Mlp(384, 8), (128, 384), True, 1.0e9),
    Program("mlp, 512 rows, train", lambda: Mlp(384, 8), (512, 384), True, 0.5e9),
    Program("transformer, 2x64, forward", lambda: Transformer(384, 8), (2, 64, 384), False, 1.0e9),
    Program("transformer, 4x128, train", lambda: Transformer(256, 6), (4, 128, 256), True, 0.5e9),
    Program("convolutions, 2 images, train", lambda: Convolutions(128, 8), (2, 128, 24, 24), True, 0.2e9),
]


# ---- on a device of declared speed ------------------------------------------------------------------------

PRODUCT = "bench::product"
PRODUCT_FLOPS_PER_S = 2e9

_library = torch.library.Library("bench", "DEF")
_library.define("product(Tensor a, Tensor b) -> Tensor")
_small = torch.ones(64, 64)


def _flops(a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    ends = time.perf_counter() + _flops(a.shape, b.shape) / PRODUCT_FLOPS_PER_S
    made, unused = a.new_zeros(a.shape[0], b.shape[1]), torch.empty_like(_small)
    while time.perf_counter() < ends:  # a sleep ends late
        torch.mm(_small, _small, out=unused)  # the threads of the link have their turns meanwhile
    return made


_library.impl("product", _product, "CPU")
_library.impl("product", lambda a, b: a.new_empty(a.shape[0], b.shape[1]), "Meta")
product = torch.ops.bench.product
register_flop_formula(product)(_flops)


class _Times(torch.autograd.Function):
    """`x @ weight.T`, whose backward are the two products that it is for a matrix product."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight.t())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        x, weight = ctx.saved_tensors
        back = product(gradients[0], weight) if ctx.needs_input_grad[0] else None
        return back, product(gradients[0].t(), x)


class Declared(nn.Module):
    """A linear layer on a device of declared speed."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outside, inside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Times.apply(x, self.weight)


class DeclaredBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.widen, self.narrow = Declared(width, hidden), Declared(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(self.widen(x))


class DeclaredStack(nn.Module):
    """Blocks one after the other, `rounds` times over.

    Args:
        hidden: width inside of each block; unequal ones are units of unequal bytes and seconds.
        rounds: how often a step goes through all of them.
    """

    def __init__(self, hidden: list[int], rounds: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([DeclaredBlock(128, one) for one in hidden])
        self.rounds = rounds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.rounds):
            for block in self.blocks:
                x = block(x)
        return x


def _equal() -> nn.Module:
    return DeclaredStack([512] * 8)


def _unequal() -> nn.Module:
    return DeclaredStack([128, 256, 512, 1024, 512, 256, 128, 768])


def _twice() -> nn.Module:
    return DeclaredStack([512] * 5, rounds=2)


DECLARED = [
    Program("declared equal, 64 rows, forward", _equal, (64, 128), False, 50e6),
    Program("declared equal, 128 rows, forward", _equal, (128, 128), False, 25e6),
    Program("declared unequal, 128 rows, forward", _unequal, (128, 128), False, 25e6),
    Program("declared twice, 64 rows, forward", _twice, (64, 128), False, 50e6),
    Program("declared equal, 64 rows, train", _equal, (64, 128), True, 120e6),
    Program("declared equal, 128 rows, train", _equal, (128, 128), True, 60e6),
    Program("declared unequal, 64 rows, train", _unequal, (64, 128), True, 80e6),
    Program("declared twice, 64 rows, train", _twice, (64, 128), True, 100e6),
    Program("declared equal, 128 rows, recompute", _equal, (128, 128), True, 60e6, "recompute"),
    Program("declared equal, 128 rows, offload", _equal, (128, 128), True, 60e6, "offload"),
]

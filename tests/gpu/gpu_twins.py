"""Runs one program on a plain model on the GPU and on its streamed twin, and compares all that can be seen of them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from streaming.twins import Program, assert_equal
from superpipe_cluster.streaming import StreamStats, stream
from superpipe_cluster.streaming.devices.cuda_memory import gpu_memory

MIB = 1 << 20
CUDA = torch.device("cuda", 0)


class Wide(nn.Module):
    """Ten units of 16 MiB and two small ones: large enough for the allocator to treat them as it does real ones."""

    def __init__(self, blocks: int = 10, width: int = 1024) -> None:
        super().__init__()
        self.inside = nn.Linear(64, width)
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
                for _ in range(blocks)
            ]
        )
        self.outside = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.outside(x)


def rows(seed: int, count: int = 32) -> torch.Tensor:
    return torch.randn(count, 64, generator=torch.Generator().manual_seed(seed)).to(CUDA)


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    return model(rows(seed)).float().square().mean()


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> list[torch.Tensor]:
    losses = []
    for step in range(steps):
        loss = loss_of(model, step)
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def budget_with(room_bytes: int) -> int:
    """The budget that leaves `room_bytes` beside the context."""
    return gpu_memory(0).context.nbytes + room_bytes


def assert_same_on_gpu(
    program: Program,
    build: Callable[[], nn.Module] = Wide,
    *,
    k: int | None = None,
    budget: int | None = None,
    **options: Any,
) -> StreamStats:
    """Results, weights, buffers and gradients are equal bit for bit; streaming happened; k and budget are kept."""
    torch.manual_seed(0)
    streamed = build()
    expected = _run_plain(program, copy.deepcopy(streamed).to(CUDA))
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(1)
    with stream(streamed, budget, device=CUDA, k=k, poison=True, **options) as streamer:
        actual = _on_host([program(streamed, streamer.optimizer), _seen(streamed)])
        stats = streamer.stats()
        if budget is not None:
            assert gpu_memory(0).context.nbytes + torch.cuda.max_memory_reserved() <= budget
            assert stats.peak_bytes <= budget
    assert_equal(expected, actual)
    assert_equal(expected[1], _on_host(_seen(streamed)), "closed")
    assert k is None or stats.peak_units <= k
    assert stats.loads > stats.units or (k is not None and k >= stats.units), "it streamed"
    return stats


def _run_plain(program: Program, model: nn.Module) -> Any:
    def optimizer(
        kind: type[torch.optim.Optimizer], params: Any = None, **settings: Any
    ) -> torch.optim.Optimizer:
        chosen = [p for p in model.parameters() if p.requires_grad] if params is None else params
        return kind(chosen, **settings)

    torch.manual_seed(1)
    return _on_host([program(model, optimizer), _seen(model)])


def _seen(model: nn.Module) -> list[Any]:
    # One by one to the host: copies on the device would not fit the budget.
    weights = {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}
    gradients = {
        name: None if p.grad is None else p.grad.to("cpu", copy=True) for name, p in model.named_parameters()
    }
    return [weights, gradients]


def _on_host(values: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda one: one.detach().cpu(), values)

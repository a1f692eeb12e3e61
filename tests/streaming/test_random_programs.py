"""Programs drawn at random, under random budgets: every result, kept tensor and weight is that of the plain model."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

from streaming.twins import Blocks, assert_equal, batch, mean_square
from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory
from superpipe_cluster.streaming import stream

_PROGRAMS_PER_TEST, _LENGTH = 6, 40


class _Program:
    """Draws one operation after the other; two of the same seed, on two models, do the same."""

    def __init__(self, seed: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._draw = random.Random(seed)
        self._model, self._optimizer = model, optimizer
        self._parameters = list(model.parameters())
        self._kept: list[torch.Tensor] = []

    def step(self) -> Any:
        """One operation's result."""
        one, two, three = self._draw.choices(self._parameters, k=3)
        operation = self._draw.choice(
            [self._read, self._combine, self._over_lists, self._join, self._write, self._train, self._train,
             self._ask, self._keep, self._let_go]
        )  # fmt: skip
        with torch.no_grad():
            return operation(one, two, three)

    def _read(self, one: nn.Parameter, *_: nn.Parameter) -> Any:
        return one.t().sum(0), None if one.grad is None else one.grad.sum(), self._moment(one).sum()

    def _combine(self, one: nn.Parameter, *_: nn.Parameter) -> Any:
        return torch.addcmul(one, one if one.grad is None else one.grad, self._moment(one))

    def _over_lists(self, *some: nn.Parameter) -> Any:
        torch._foreach_lerp_(list(some), [one.detach() * 2 for one in some], 0.01)
        return torch._foreach_norm(list(some))

    def _join(self, *some: nn.Parameter) -> Any:
        return torch.cat([one.view(-1) for one in some])

    def _write(self, one: nn.Parameter, *_: nn.Parameter) -> Any:
        return one.mul_(0.99).sum()

    def _train(self, *_: nn.Parameter) -> Any:
        with torch.enable_grad():
            loss = mean_square(self._model, self._draw.randrange(100))
            loss.backward()
        if self._draw.random() < 0.7:
            self._optimizer.step()
        if self._draw.random() < 0.5:
            self._optimizer.zero_grad()
        return loss

    def _ask(self, *_: nn.Parameter) -> Any:
        return self._model(batch(self._draw.randrange(100)))

    def _keep(self, one: nn.Parameter, *_: nn.Parameter) -> Any:
        if one.grad is not None:
            self._kept.append(one.grad)
        return list(self._kept)

    def _let_go(self, *_: nn.Parameter) -> Any:
        self._kept.clear()

    def _moment(self, one: nn.Parameter) -> torch.Tensor:
        return self._optimizer.state[one]["exp_avg"] if one in self._optimizer.state else one


@pytest.mark.parametrize("policy", ["optimal", "sliding", "naive"])
@pytest.mark.parametrize("limited_by", ["k", "budget"])
def test_random_programs(policy: Any, limited_by: str) -> None:
    ran = 0
    for seed in range(_PROGRAMS_PER_TEST):
        torch.manual_seed(seed)
        plain, draw = Blocks(), random.Random(seed)
        model = copy.deepcopy(plain)
        limit = {"k": draw.randint(1, 5)} if limited_by == "k" else {"budget": draw.randint(40_000, 90_000)}
        program = _Program(seed, plain, torch.optim.AdamW(plain.parameters(), lr=0.01))
        expected = [_still(program.step()) for _ in range(_LENGTH)]
        with stream(model, poison=True, policy=policy, **limit) as streamer:
            program = _Program(seed, model, streamer.optimizer(torch.optim.AdamW, lr=0.01))
            try:
                for result in expected:
                    assert_equal(result, program.step(), f"seed {seed}")
                    _squeeze(draw, limit.get("budget"))
            except (BudgetTooSmall, DeviceOutOfMemory):
                continue  # what it keeps, or reads together, is more than that
            assert streamer.stats().peak_units <= limit.get("k", 8)
            assert streamer.stats().peak_bytes <= limit.get("budget", 1 << 40)
            ran += streamer.stats().loads > 8
        assert_equal(list(plain.parameters()), list(model.parameters()), f"seed {seed}, closed")
    assert ran > _PROGRAMS_PER_TEST // 3


def _still(value: Any) -> Any:
    """`value` as it is now."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return [_still(one) for one in value] if isinstance(value, (list, tuple)) else value


def _squeeze(draw: random.Random, budget: int | None) -> None:
    """Ask for memory that may not be there, so that all goes that can go."""
    if budget is not None and draw.random() < 0.3:
        try:
            torch.empty(draw.randint(100, budget), dtype=torch.uint8)
        except DeviceOutOfMemory:
            return

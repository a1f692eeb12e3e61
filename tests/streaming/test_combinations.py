"""Every feature with every other: random settings, random programs, always the bits of the plain twin.

The device itself refuses any byte beyond the budget in force, and what was evicted reads as NaN.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from streaming.twins import assert_equal, batch
from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory
from superpipe_cluster.streaming import Streamer, stream
from superpipe_cluster.streaming.activations import offload
from superpipe_cluster.streaming.watching.guard import GUARD

#: Device bytes; more than anything here can use.
_WHOLE = 400_000
#: Enough for the largest unit with its gradients, but not for every step of every program.
_LITTLE = 25_000


class Mixed(nn.Module):
    """A frozen half, a tied weight, dropout, a buffer that forward writes, a norm in single precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inside = nn.Linear(16, 16)
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 16))
                for _ in range(6)
            ]
        )
        self.outside = nn.Linear(16, 16)
        self.outside.weight = self.inside.weight
        self.to(dtype)
        self.norm = nn.BatchNorm1d(16)
        self.layers[:3].requires_grad_(False)
        self.layers[1][3].bias.requires_grad_(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x.to(self.inside.weight.dtype))
        for layer in self.layers:
            x = x + layer(x)
        return self.outside(self.norm(x.float()).to(x.dtype)).float()


class PlainRecipe:
    """`kind` over a plain model; with masters, the usual recipe written out. A master is made by its first step."""

    def __init__(
        self, model: nn.Module, kind: Any, options: dict[str, Any], master: torch.dtype | None
    ) -> None:
        self._targets: dict[nn.Parameter, nn.Parameter] = {}
        for p in model.parameters():
            wants = master is not None and p.dtype != master
            self._targets[p] = nn.Parameter(p.detach().to(master)) if wants else p
        self._made: set[nn.Parameter] = set()
        self.optimizer = kind(list(self._targets.values()), **options)

    @torch.no_grad()
    def step(self) -> None:
        masters = [(p, target) for p, target in self._targets.items() if target is not p]
        for parameter, master in masters:
            master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
            if master.grad is not None and parameter not in self._made:
                self._made.add(parameter)
                master.copy_(parameter)
        self.optimizer.step()
        for parameter, master in masters:
            if master.grad is not None:
                parameter.copy_(master)

    def save(self) -> Any:
        numbered = enumerate(self._targets.items())
        masters = {number: master.detach().clone() for number, (p, master) in numbered if p in self._made}
        return masters, copy.deepcopy(self.optimizer.state_dict())

    @torch.no_grad()
    def load(self, saved: Any) -> None:
        parameters = list(self._targets)
        self._made = {parameters[number] for number in saved[0]}
        for number, value in saved[0].items():
            self._targets[parameters[number]].copy_(value)
        self.optimizer.load_state_dict(saved[1])


class StreamedRecipe:
    """The same of a streamed model."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.step = optimizer.step

    def save(self) -> Any:
        return copy.deepcopy(self.optimizer.state_dict())

    def load(self, saved: Any) -> None:
        self.optimizer.load_state_dict(saved)


@dataclass(frozen=True)
class Setting:
    """How the model is streamed and trained."""

    host: Literal["pinned", "shared", "disk"]
    activations: Literal["keep", "recompute", "offload"]
    where: Literal["on_device", "on_host"]
    masters: bool
    policy: Literal["optimal", "sliding", "naive"]
    limit: tuple[int | None, int | None]  # bytes, k
    dtype: torch.dtype
    kind: Any

    @property
    def master(self) -> torch.dtype | None:
        return torch.float32 if self.masters else None

    @property
    def options(self) -> dict[str, Any]:
        return {"lr": 0.01} | ({"momentum": 0.9} if self.kind is torch.optim.SGD else {})


_LIMITS = st.one_of(
    st.just((None, None)),
    st.tuples(st.none(), st.integers(1, 6)),
    st.tuples(st.integers(_LITTLE, _WHOLE), st.one_of(st.none(), st.integers(2, 6))),
)
_SETTINGS = st.builds(
    Setting,
    host=st.sampled_from(["pinned", "shared", "disk"]),
    activations=st.sampled_from(["keep", "recompute", "offload"]),
    where=st.sampled_from(["on_device", "on_host"]),
    masters=st.booleans(),
    policy=st.sampled_from(["optimal", "optimal", "sliding", "naive"]),
    limit=_LIMITS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kind=st.sampled_from([torch.optim.AdamW, torch.optim.SGD]),
)
_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("train"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("many"), st.integers(2, 5)),
        st.tuples(st.just("backward"), st.integers(0, 9)),
        st.tuples(st.just("resize_within"), st.integers(0, 9), _LIMITS, _LIMITS),
        st.tuples(st.just("update")),
        st.tuples(st.just("clip"), st.booleans()),
        st.tuples(st.just("zero"), st.booleans()),
        st.tuples(st.just("ask"), st.sampled_from([torch.no_grad, torch.inference_mode]), st.booleans()),
        st.tuples(st.just("resize"), _LIMITS),
        st.tuples(st.just("save")),
        st.tuples(st.just("load"), st.booleans()),
        st.tuples(st.just("reload")),
        st.tuples(st.just("toggle"), st.integers(0, 31)),
        st.tuples(st.just("write"), st.integers(0, 31)),
        st.tuples(st.just("look")),
        st.tuples(st.just("again"), _SETTINGS),
    ),
    min_size=4,
    max_size=24,
)


@dataclass
class Twins:
    """A plain model and its streamed twin; each action is done to both, and what is seen is compared."""

    setting: Setting
    refused: int = 0
    saved: list[tuple[Any, Any]] = field(default_factory=list)
    surely_streamed: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.models = Mixed(self.setting.dtype), Mixed(self.setting.dtype)
        self.models[1].load_state_dict(self.models[0].state_dict())
        self.plain = PlainRecipe(self.models[0], self.setting.kind, self.setting.options, self.setting.master)
        self.streamer, self.streamed = self._open(self.setting)

    def _open(self, how: Setting) -> tuple[Streamer, StreamedRecipe]:
        budget, k = how.limit
        streamer = stream(
            self.models[1],
            budget,
            k=k,
            policy=how.policy,
            poison=True,
            activations=how.activations,
            host=how.host,
        )
        self.setting = how
        optimizer = streamer.optimizer(
            how.kind, self.models[1].parameters(), where=how.where, master_weights=how.master, **how.options
        )
        return streamer, StreamedRecipe(optimizer)

    def run(self, actions: list[tuple[Any, ...]]) -> None:
        for at, (name, *arguments) in enumerate(actions):
            getattr(self, name)(*arguments)
            self._check_limits()
            if at % 5 == 4:
                self.compare()
        self.compare()
        self.streamer.close()
        self.compare()

    def compare(self) -> None:
        """All weights, buffers and gradients, one at a time: nothing else has to fit the budget."""
        one, other = self.models
        assert_equal(one.state_dict(), other.state_dict(), "state_dict")
        for (name, left), right in zip(one.named_parameters(), other.parameters(), strict=True):
            assert_equal([left, left.grad], [right, right.grad], name)

    def _check_limits(self) -> None:
        stats = self.streamer.stats()
        budget = self.streamer._engine.device.budget_bytes
        assert budget is None or stats.held_bytes <= budget

    def both(self, work: Callable[[nn.Module, int], Any]) -> None:
        """`work(model, 0 or 1)` on both; a budget that it does not fit is put aside, and the bits are right still."""
        seed = int(torch.randint(1 << 30, ()))
        with GUARD.own_work():  # the plain twin is not in the budget
            expected = work(self.models[0], seed)
        try:
            assert_equal(expected, work(self.models[1], seed))
        except (BudgetTooSmall, DeviceOutOfMemory):
            self.refused += 1
            self.streamer.resize()
            for model in self.models:
                model.zero_grad()
            assert_equal(*(list(model.parameters()) for model in self.models))
            for one, other in zip(*(model.buffers() for model in self.models), strict=True):
                other.copy_(one)

    # ---- actions --------------------------------------------------------------------------------------

    def backward(self, number: int) -> None:
        self.both(lambda model, seed: _loss(model, number, seed, lambda: None))

    def resize_within(self, number: int, first: Any, second: Any) -> None:
        def work(model: nn.Module, seed: int) -> Any:
            def now(limit: Any) -> None:
                if model is self.models[1]:
                    self.resize(limit)

            hook = model.layers[4].register_full_backward_hook(lambda *_: now(second))
            try:
                return _loss(model, number, seed, lambda: now(first))
            finally:
                hook.remove()

        self.both(work)

    def update(self) -> None:
        with GUARD.own_work():
            self.plain.step()
        try:
            self.streamed.step()
        except (BudgetTooSmall, DeviceOutOfMemory):
            # Part of it is done. A plain step would be as well, so only its end can be compared: go on from there.
            self.refused += 1
            self.streamer.resize()
            with torch.no_grad():
                self.models[1].load_state_dict(self.models[0].state_dict())
            self.again(self.setting, state=False)

    def train(self, number: int, to_none: bool) -> None:
        self.backward(number)
        self.update()
        self.zero(to_none)

    def many(self, count: int) -> None:
        for number in range(count):
            self.train(number, True)

    def clip(self, foreach: bool) -> None:
        self.both(
            lambda model, _: nn.utils.clip_grad_norm_(model.parameters(), 0.05, foreach=foreach).clone()
        )

    def zero(self, to_none: bool) -> None:
        self.models[0].zero_grad(to_none)
        try:
            self.models[1].zero_grad(to_none)
        except (BudgetTooSmall, DeviceOutOfMemory):
            self.refused += 1
            self.streamer.resize()
            self.models[1].zero_grad(to_none)

    def ask(self, mode: Any, train: bool) -> None:
        def work(model: nn.Module, seed: int) -> Any:
            torch.manual_seed(seed)
            model.train(train)
            try:
                with mode():
                    return model(batch(seed, rows=4)).clone()
            finally:
                model.train()

        self.both(work)

    def resize(self, limit: tuple[int | None, int | None]) -> None:
        budget, k = limit
        try:
            self.streamer.resize(budget, k=k)
        except BudgetTooSmall as error:
            self.streamer.resize(error.needed_bytes, k=k)
        stats = self.streamer.stats()
        assert budget is None or stats.held_bytes <= max(
            budget, self.streamer._engine.device.budget_bytes or 0
        )

    def save(self) -> None:
        with GUARD.own_work():
            expected = copy.deepcopy(self.models[0].state_dict()), self.plain.save()
        actual = copy.deepcopy(self.models[1].state_dict()), self.streamed.save()
        assert_equal(expected[0], actual[0])
        self.saved.append((expected, actual))

    def load(self, optimizer_first: bool) -> None:
        if self.saved:
            # (Copied: a plain optimizer goes on with the very tensors that it is given.)
            for model, recipe, (weights, state) in zip(
                self.models, (self.plain, self.streamed), copy.deepcopy(self.saved[-1]), strict=True
            ):
                with GUARD.own_work() if recipe is self.plain else nullcontext():
                    if optimizer_first:
                        recipe.load(state)
                    model.load_state_dict(weights)
                    if not optimizer_first:
                        recipe.load(state)

    def reload(self) -> None:
        """A state dict of now, that the optimizer goes on from after a step."""
        for recipe in (self.plain.optimizer, self.streamed.optimizer):
            before = recipe.state_dict()
            recipe.load_state_dict(before)

    def toggle(self, number: int) -> None:
        for model in self.models:
            one = list(model.parameters())[number % len(list(model.parameters()))]
            one.requires_grad_(not one.requires_grad)

    def write(self, number: int) -> None:
        for model in self.models:
            with torch.no_grad():
                list(model.parameters())[number % len(list(model.parameters()))].mul_(0.5)

    def look(self) -> None:
        self.compare()

    def again(self, how: Setting, *, state: bool = True) -> None:
        how = Setting(
            how.host, how.activations, how.where, self.setting.masters, how.policy, how.limit, self.setting.dtype,
            self.setting.kind,
        )  # fmt: skip
        self.streamer.close()
        before = self.streamed.optimizer
        self.streamer, self.streamed = self._open(how)
        if state:
            self.streamed.optimizer.load_state_dict(before.state_dict())
        else:
            self.plain = PlainRecipe(self.models[0], how.kind, how.options, how.master)
            self.saved.clear()


def _loss(model: nn.Module, number: int, seed: int, between: Callable[[], None]) -> torch.Tensor:
    torch.manual_seed(seed)
    loss = model(batch(number, rows=4)).square().mean()
    between()
    if loss.requires_grad:
        loss.backward()
    return loss.detach().clone()


@pytest.fixture(autouse=True, scope="module")
def everything_offloaded():
    """Models for tests are small; offload whatever they save."""
    before, offload.SMALLEST_BYTES = offload.SMALLEST_BYTES, 1
    yield
    offload.SMALLEST_BYTES = before


_PROFILE: Any = {
    "deadline": None, "print_blob": True, "suppress_health_check": list(HealthCheck), "derandomize": False,
}  # fmt: skip


def _run(setting: Setting, actions: list[tuple[Any, ...]]) -> None:
    twins = Twins(setting)
    try:
        twins.run(actions)
    finally:
        twins.streamer.close()
    assert not GUARD.guards_anything


@given(setting=_SETTINGS, actions=_ACTIONS)
@settings(max_examples=12, **_PROFILE)
def test_any_program_in_any_setting(setting: Setting, actions: list[tuple[Any, ...]]) -> None:
    _run(setting, actions)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@given(setting=_SETTINGS, actions=_ACTIONS)
@settings(max_examples=1500, **_PROFILE)
def test_any_program_in_any_setting_for_long(setting: Setting, actions: list[tuple[Any, ...]]) -> None:
    _run(setting, actions)

"""Misuse: one clear error, nothing changed, and the model goes on as if it had not happened."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from streaming.twins import Blocks, assert_equal, batch, mean_square, train
from superpipe_cluster.errors import BadInput, BudgetTooSmall, Unstreamable
from superpipe_cluster.streaming import stream

AdamW = torch.optim.AdamW


class Scaled(Blocks):
    """A part with no parameter, a part with a buffer alone, and a part whose parameter always stays on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.bend = nn.Tanh()
        self.centre = nn.BatchNorm1d(4, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.centre(self.bend(super().forward(x)))


def _twins(build: Callable[[], nn.Module] = Blocks) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = build()
    return plain, copy.deepcopy(plain)


def _assert_trains_alike(plain: nn.Module, streamed: nn.Module, make_optimizer) -> None:
    expected = train(plain, AdamW(plain.parameters(), lr=0.1))
    assert_equal(expected, train(streamed, make_optimizer(AdamW, lr=0.1)))
    assert_equal(plain.state_dict(), streamed.state_dict())


@pytest.mark.parametrize("part", ["", "layers", "layers.2", "layers.2.1", "bend", "centre", "outside"])
def test_a_streamed_model_or_a_part_of_one_is_not_streamed_again(part: str) -> None:
    plain, model = _twins(Scaled)
    with stream(model, k=2, poison=True) as streamer:
        with pytest.raises(Unstreamable, match="already") as caught:
            stream(model.get_submodule(part), k=2)
        assert "close()" in str(caught.value.hint)
        _assert_trains_alike(plain, model, streamer.optimizer)
        assert streamer.stats().loads > streamer.stats().units


@pytest.mark.parametrize("part", ["layers", "layers.2", "bend", "centre", "outside"])
def test_a_model_with_a_streamed_part_is_not_streamed(part: str) -> None:
    plain, model = _twins(Scaled)
    with stream(model.get_submodule(part), k=2, poison=True):
        with pytest.raises(Unstreamable, match="already"):
            stream(model, k=2)
        _assert_trains_alike(plain, model, lambda kind, **options: kind(model.parameters(), **options))
    with stream(model, k=2, poison=True):
        assert_equal(plain(batch()), model(batch()))


def test_an_optimizer_stepped_after_close() -> None:
    plain, model = _twins()
    plain_optimizer = AdamW(plain.parameters(), lr=0.1)
    expected = train(plain, plain_optimizer, 2)
    with stream(model, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.1)
        actual = train(model, optimizer, 2)
    mean_square(model, 7).backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Unstreamable, match="closed") as caught:
        optimizer.step()
    assert "load_state_dict" in str(caught.value.hint)
    assert_equal(before, model.state_dict())
    assert_equal(plain_optimizer.state_dict(), optimizer.state_dict())
    optimizer.zero_grad()

    again = AdamW(model.parameters(), lr=9.0)
    again.load_state_dict(optimizer.state_dict())
    assert_equal(expected + train(plain, plain_optimizer, 2), actual + train(model, again, 2))
    assert_equal(plain.state_dict(), model.state_dict())


def test_a_parameter_replaced_by_hand() -> None:
    plain, model = _twins()
    with stream(model, k=2, poison=True) as streamer:
        own = model.layers[2][0].weight
        model.layers[2][0].weight = nn.Parameter(torch.ones(32, 16))
        with pytest.raises(Unstreamable, match=r"layers\.2\.0\.weight"):
            model(batch())
        with pytest.raises(Unstreamable, match="replaced"):
            model(batch())
        model.layers[2][0].weight = own
        _assert_trains_alike(plain, model, streamer.optimizer)
        assert streamer.stats().loads > streamer.stats().units


def test_a_replaced_parameter_is_the_models_own_after_close() -> None:
    plain, model = _twins()
    with stream(model, k=2, poison=True):
        for one in (plain, model):
            one.layers[2][0].weight = nn.Parameter(torch.ones(32, 16))
        with pytest.raises(Unstreamable, match="replaced"):
            model(batch())
    assert_equal(plain(batch()), model(batch()))


def test_parameters_lent_for_one_call_are_not_replaced() -> None:
    plain, model = _twins()
    other = {name: nn.Parameter(p.detach() * 0.5) for name, p in plain.named_parameters()}
    with stream(model, k=2, poison=True):
        expected = torch.func.functional_call(plain, other, (batch(),))
        assert_equal(expected, torch.func.functional_call(model, other, (batch(),)))
        assert_equal(plain(batch()), model(batch()))


@pytest.mark.parametrize(
    "move",
    [
        lambda one: one.to(torch.bfloat16),
        lambda one: one.to("meta"),
        lambda one: one.half(),
        lambda one: one.double(),
        lambda one: one.type(torch.float16),
        lambda one: one.to_empty(device="cpu"),
        lambda one: one.share_memory(),
    ],
    ids=["to-dtype", "to-device", "half", "double", "type", "to_empty", "share_memory"],
)
@pytest.mark.parametrize("part", ["", "layers.3"])
def test_a_streamed_module_is_not_moved_or_converted(part: str, move: Callable[[nn.Module], object]) -> None:
    plain, model = _twins()
    holder = nn.ModuleList([model])
    with stream(model, k=2, poison=True) as streamer:
        expected = plain(batch())
        for one in (model.get_submodule(part), holder):
            with pytest.raises(Unstreamable, match="stream") as caught:
                move(one)
            assert caught.value.hint is not None
            assert {p.dtype for p in model.parameters()} == {torch.float32}
            assert_equal(expected, model(batch()))
        _assert_trains_alike(plain, model, streamer.optimizer)
        assert streamer.stats().loads > streamer.stats().units
    model.double()
    assert_equal(plain.double()(batch().double()), model(batch().double()))


def test_moving_to_where_it_is_changes_nothing() -> None:
    plain, model = _twins()
    with stream(model, k=2, poison=True) as streamer:
        assert model.to("cpu") is model
        assert model.float() is model
        other = Blocks().double()
        assert next(other.parameters()).dtype == torch.float64, "neighbours are free"
        _assert_trains_alike(plain, model, streamer.optimizer)
        assert streamer.stats().loads > streamer.stats().units


def test_budgets_as_people_write_them() -> None:
    plain, model = _twins()
    expected = train(plain, AdamW(plain.parameters(), lr=0.1))
    del plain
    with stream(model, "64KiB", poison=True) as streamer:
        assert_equal(expected, train(model, streamer.optimizer(AdamW, lr=0.1)))
        stats = streamer.stats()
        assert 0 < stats.peak_bytes <= 64 << 10
        assert stats.loads > stats.units
    with stream(model, budget=64 << 10) as streamer:
        assert streamer.stats().k == stats.k


@pytest.mark.parametrize("budget", ["8", "8 gigs", "", "8GiB..9GiB", 8.5, True, 0, -1])
def test_budgets_that_are_none(budget) -> None:
    plain, model = _twins()
    with pytest.raises(BadInput) as caught:
        stream(model, budget=budget)
    assert caught.value.hint is not None
    assert_equal(plain(batch()), model(batch()))


def test_a_budget_below_the_minimum_names_the_bytes() -> None:
    plain, model = _twins()
    with pytest.raises(BudgetTooSmall) as caught:
        stream(model, budget="2KiB")
    assert str(caught.value.needed_bytes) in caught.value.message
    assert_equal(plain(batch()), model(batch()))
    with stream(model, budget=caught.value.needed_bytes + (8 << 10), poison=True) as streamer:
        assert_equal(plain(batch()).detach(), model(batch()).detach())
        assert streamer.stats().loads > 0


@pytest.mark.parametrize(
    ("size", "error"),
    [("1KiB", BudgetTooSmall), (1, BudgetTooSmall), ("8", BadInput), (0, BadInput), (-5, BadInput)],
)
def test_a_resize_that_cannot_be(size: int | str, error: type[Exception]) -> None:
    plain, model = _twins()
    expected = train(plain, AdamW(plain.parameters(), lr=0.1), 4)
    with stream(model, "64KiB", poison=True) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.1)
        actual = train(model, optimizer, 2)
        before = streamer.stats().k
        with pytest.raises(error) as caught:
            streamer.resize(size)
        assert caught.value.hint is not None  # type: ignore[attr-defined]
        assert streamer.stats().k == before
        actual += train(model, optimizer, 2, lambda one, step: mean_square(one, step + 2))
        assert streamer.stats().loads > streamer.stats().units
    assert_equal(expected, actual)
    with pytest.raises(Unstreamable, match="closed"):
        streamer.resize("64KiB")
    assert_equal(plain(batch()), model(batch()))

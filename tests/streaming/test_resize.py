"""Another budget in the middle of the work: results stay, the budget in force is kept at every instant."""

from __future__ import annotations

import copy
import random
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import AdamW

from examples import examples
from streaming.twins import Blocks, assert_equal, batch, mean_square, train
from superpipe_cluster.errors import BadInput, BudgetTooSmall, Unstreamable
from superpipe_cluster.streaming import Streamer, stream

WHOLE = 160_000  # bytes; more than weights, gradients, state and activations of `Blocks` together


def _twins() -> tuple[Blocks, Blocks]:
    torch.manual_seed(0)
    plain = Blocks()
    return plain, copy.deepcopy(plain)


def _resize(streamer: Streamer, budget: int) -> int:
    """Ask for `budget`; returns the bytes in force afterwards, which all that is held fits."""
    try:
        streamer.resize(budget)
    except BudgetTooSmall as error:
        needed = error.needed_bytes or 0
        streamer.resize(needed)
        budget = max(needed, budget + 1)
    assert streamer.stats().held_bytes <= budget
    return budget


def test_what_is_held_beside_units_says_how_much_larger_a_batch_may_be() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(8)))
    with stream(model, k=2) as streamer, torch.no_grad():
        model(torch.randn(100, 64))
        small = streamer.stats()
        assert small.floor_bytes is not None
        per_row = small.others_bytes / 100
        budget = small.floor_bytes * 3
        rows = int(100 + (budget - small.floor_bytes) / per_row)
    assert rows > 200
    with stream(model, budget) as streamer, torch.no_grad():
        for _ in range(2):
            model(torch.randn(int(0.98 * rows), 64))  # the floor has two percent to spare
        large = streamer.stats()
    assert large.others_bytes > small.others_bytes
    assert large.loads > large.units
    assert 0.8 * budget < large.peak_bytes <= budget


def test_a_storm_of_resizes_in_forward_backward_and_between_changes_no_bit() -> None:
    """200 resizes in 50 training steps. The device itself refuses any byte beyond the budget in force."""
    chance = random.Random(0)
    plain, model = _twins()
    expected = train(plain, AdamW(plain.parameters(), lr=0.1), steps=50)
    budgets = []
    with stream(model, WHOLE, poison=True) as streamer:

        def maybe(*_: object) -> None:
            if chance.random() < 300 / (50 * 16):
                budgets.append(_resize(streamer, chance.randrange(10_000, WHOLE)))

        for layer in model.layers:
            layer.register_forward_hook(maybe)
            layer[0].register_full_backward_hook(maybe)
        losses = train(model, streamer.optimizer(AdamW, lr=0.1), steps=50, loss_of=_then(maybe))
        stats = streamer.stats()
    assert len(budgets) >= 200
    assert min(budgets) < stats.model_bytes * 2 < max(budgets)
    assert stats.loads > 50  # the small budgets were felt
    assert_equal([expected, list(plain.parameters())], [losses, list(model.parameters())])


def _then(maybe):
    def loss_of(model: torch.nn.Module, seed: int) -> torch.Tensor:
        loss = mean_square(model, seed)
        for _ in range(4):
            maybe()
        return loss

    return loss_of


@given(budgets=st.lists(st.integers(1, WHOLE), min_size=1, max_size=6))
@settings(max_examples=examples(8), deadline=None)
def test_any_sequence_of_budgets_between_steps(budgets: list[int]) -> None:
    plain, model = _twins()
    expected = train(plain, AdamW(plain.parameters(), lr=0.1), steps=len(budgets))
    with stream(model, WHOLE, poison=True) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.1)
        losses = []
        for step, budget in enumerate(budgets):
            loss = mean_square(model, step)
            loss.backward()
            losses.append(loss.detach().clone())
            optimizer.step()
            optimizer.zero_grad()
            _resize(streamer, budget)
    assert_equal([expected, list(plain.parameters())], [losses, list(model.parameters())])


def test_a_smaller_k_sends_units_away_and_a_larger_one_lets_them_stay() -> None:
    plain, model = _twins()
    with stream(model, k=6, poison=True) as streamer, torch.no_grad():
        for k in (6, 2, 3, None):
            streamer.resize(k=k)
            before = streamer.stats()
            assert before.k == (k or 8)
            assert_equal(plain(batch()), model(batch()))
            assert_equal(plain(batch()), model(batch()))
        assert streamer.stats().loads - before.loads <= 8


def test_a_budget_below_the_minimum_is_refused_with_the_bytes_it_needs_and_nothing_changes() -> None:
    plain, model = _twins()
    expected = train(plain, AdamW(plain.parameters(), lr=0.1), steps=4)
    with stream(model, WHOLE, poison=True) as streamer:
        with pytest.raises(BudgetTooSmall, match="largest unit") as caught:
            streamer.resize("1KiB")
        assert caught.value.needed_bytes > 1024
        optimizer = streamer.optimizer(AdamW, lr=0.1)
        losses = train(model, optimizer, steps=2)
        with pytest.raises(BudgetTooSmall, match="at some moment of a step") as refused:
            streamer.resize(caught.value.needed_bytes)  # a unit, but no activations
        needed = refused.value.needed_bytes
        with pytest.raises(BudgetTooSmall):
            streamer.resize(needed - 1)
        streamer.resize(needed)
        for step in (2, 3):
            loss = mean_square(model, step)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
        assert streamer.stats().held_bytes <= needed
    assert_equal([expected, list(plain.parameters())], [losses, list(model.parameters())])


@pytest.mark.parametrize("rehearses", [True, False])
def test_a_floor_falls_back_to_the_step_that_was_rehearsed(rehearses: bool) -> None:
    """As a served model has it: what is kept between steps (a cache) is there for a while, and then is not."""
    plain, model = _twins()
    with stream(model, WHOLE, poison=True) as streamer, torch.no_grad():
        model(batch(rows=64))
        rehearsed = streamer.stats().floor_bytes or 0
        if rehearses:
            streamer.rehearsed()
        assert streamer.stats().floor_bytes == rehearsed
        kept = [model(batch(seed, rows=64)).new_zeros(rehearsed // 8) for seed in range(8)]
        assert (streamer.stats().floor_bytes or 0) > 4 * rehearsed
        model(batch())
        with pytest.raises(BudgetTooSmall):
            streamer.resize(rehearsed)
        kept.clear()
        if not rehearses:
            model(batch())
            assert (streamer.stats().floor_bytes or 0) > 3 * rehearsed, "another step may be like that one"
            return
        assert streamer.stats().floor_bytes == rehearsed
        with pytest.raises(BudgetTooSmall) as refused:
            streamer.resize(rehearsed - 1)
        assert refused.value.needed_bytes == rehearsed
        streamer.resize(rehearsed)
        loads = streamer.stats().loads
        assert_equal(plain(batch(5, rows=64)), model(batch(5, rows=64)))
        assert streamer.stats().loads > loads
        assert streamer.stats().held_bytes <= rehearsed


def test_what_no_resize_can_mean() -> None:
    _, model = _twins()
    streamer = stream(model, WHOLE)
    for wrong in (0, -5, "much", "12"):
        with pytest.raises(BadInput):
            streamer.resize(wrong)
    with pytest.raises(BadInput):
        streamer.resize(k=0)
    streamer.close()
    with pytest.raises(Unstreamable, match="closed"):
        streamer.resize(WHOLE)


def test_another_thread_may_resize_while_the_model_trains() -> None:
    plain, model = _twins()
    steps = 60
    expected = train(plain, AdamW(plain.parameters(), lr=0.1), steps=steps)
    with stream(model, WHOLE, poison=True) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=0.1)
        losses = train(model, optimizer, steps=1)
        done = threading.Event()
        failures: list[BaseException] = []
        resized = 0

        def storm() -> None:
            nonlocal resized
            chance = random.Random(7)
            try:
                while not done.is_set():
                    streamer.resize(chance.randrange(100_000, WHOLE))
                    resized += 1
                    done.wait(0.001)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            losses += _train_on(model, optimizer, range(1, steps))
        finally:
            done.set()
            thread.join()
        assert not failures
        assert resized > 5
    assert_equal([expected, list(plain.parameters())], [losses, list(model.parameters())])


def _train_on(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    losses = []
    for step in steps:
        loss = mean_square(model, step)
        loss.backward()
        losses.append(loss.detach().clone())
        optimizer.step()
        optimizer.zero_grad()
    return losses

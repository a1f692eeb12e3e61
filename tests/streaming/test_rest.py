"""With everything on the device and no budget to keep, the guard leaves; it is back before anything can move."""

from __future__ import annotations

import copy
import pickle
import threading

import torch
from torch.optim import AdamW

from streaming.twins import Blocks, assert_equal, batch, mean_square
from superpipe_cluster.streaming import Streamer, stream
from superpipe_cluster.streaming.watching.guard import GUARD


def _twins() -> tuple[Blocks, Blocks]:
    torch.manual_seed(0)
    plain = Blocks()
    return plain, copy.deepcopy(plain)


def _watched() -> bool:
    """Whether this thread's operators are seen."""
    return torch._C._len_torch_dispatch_stack() > 0


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> torch.Tensor:
    loss = mean_square(model, seed)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach().clone()


class Pair:
    """A plain model and a streamed one that have trained until the guard of the second rests."""

    def __init__(self) -> None:
        self.plain, self.model = _twins()
        self.streamer: Streamer = stream(self.model, poison=True)
        self.optimizers = AdamW(self.plain.parameters(), lr=0.1), self.streamer.optimizer(AdamW, lr=0.1)
        self.steps = 0
        self.train(6)
        assert not _watched()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            expected = _step(self.plain, self.optimizers[0], self.steps)
            assert_equal(expected, _step(self.model, self.optimizers[1], self.steps))
            self.steps += 1

    def finish(self) -> None:
        self.train(3)
        self.streamer.close()
        assert_equal(list(self.plain.parameters()), list(self.model.parameters()))


def test_training_at_rest_gives_the_same_bits_and_the_model_back() -> None:
    pair = Pair()
    loads = pair.streamer.stats().loads
    pair.train(5)
    assert pair.streamer.stats().loads == loads
    pair.finish()
    assert not _watched()


def test_a_state_dict_taken_at_rest_is_the_present_one() -> None:
    pair = Pair()
    assert_equal(pair.plain.state_dict(), {n: t.clone() for n, t in pair.model.state_dict().items()})
    pair.train(8)
    assert not _watched()
    assert_equal(pair.plain.state_dict(), pickle.loads(pickle.dumps(pair.model.state_dict())))
    assert_equal(pair.plain.layers[2][0].weight.tolist(), pair.model.layers[2][0].weight.tolist())
    pair.finish()


def test_a_smaller_budget_wakes_it() -> None:
    pair = Pair()
    pair.streamer.resize(k=2)
    assert _watched()
    pair.train(3)
    before = pair.streamer.stats().loads
    pair.train(1)
    assert pair.streamer.stats().loads > before
    pair.streamer.resize()
    pair.train(6)
    assert not _watched()
    pair.finish()


def test_a_smaller_budget_between_backward_and_step_takes_the_gradients_in() -> None:
    pair = Pair()
    for model in (pair.plain, pair.model):
        mean_square(model, 99).backward()
    assert not _watched()
    pair.streamer.resize(k=2)
    for optimizer in pair.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    assert_equal(list(pair.plain.parameters()), [p.detach().clone() for p in pair.model.parameters()])
    pair.finish()


def test_a_budget_from_another_thread_is_in_force_from_the_next_step_on() -> None:
    pair = Pair()
    other = threading.Thread(target=lambda: pair.streamer.resize(k=2))
    other.start()
    other.join()
    pair.train(1)
    assert _watched()
    loads = pair.streamer.stats().loads
    pair.train(2)
    assert pair.streamer.stats().loads > loads
    pair.finish()


def test_gradients_that_came_at_rest_are_given_back() -> None:
    pair = Pair()
    for model in (pair.plain, pair.model):
        mean_square(model, 99).backward()
    assert not _watched()
    pair.streamer.close()
    assert_equal(*([p.grad for p in model.parameters()] for model in (pair.plain, pair.model)))


def test_a_parameter_that_is_frozen_at_rest_keeps_its_gradient() -> None:
    pair = Pair()
    for model in (pair.plain, pair.model):
        mean_square(model, 99).backward()
        model.inside.weight.requires_grad_(False)
    pair.streamer.resize(k=2)
    assert_equal(*([p.grad for p in model.parameters()] for model in (pair.plain, pair.model)))
    pair.finish()


def test_what_the_program_writes_at_rest_is_kept() -> None:
    pair = Pair()
    with torch.no_grad():
        for model in (pair.plain, pair.model):
            model.outside.weight.mul_(0.5)
            model.inside.bias.data.add_(1.0)
    pair.streamer.resize(k=2)
    with torch.no_grad():
        assert_equal(pair.plain(batch()), pair.model(batch()))
    pair.finish()


def test_a_second_model_wakes_it() -> None:
    pair, (plain, other) = Pair(), _twins()
    with stream(other, k=2, poison=True) as streamer:
        assert _watched()
        pair.train(4)
        assert_equal(plain(batch()), other(batch()))
        assert streamer.stats().loads > 0
        assert _watched()
    pair.train(4)
    assert not _watched()
    pair.finish()


def test_a_new_kind_of_optimizer_at_rest_is_streamed() -> None:
    pair = Pair()
    pair.optimizers = (
        torch.optim.SGD(pair.plain.parameters(), lr=0.001, momentum=0.9),
        pair.streamer.optimizer(torch.optim.SGD, lr=0.001, momentum=0.9),
    )
    pair.train(2)
    pair.streamer.resize(k=2)
    pair.train(3)
    pair.finish()


def test_a_budget_in_bytes_is_counted_so_the_guard_stays() -> None:
    plain, model = _twins()
    with stream(model, 1 << 20, poison=True) as streamer, torch.no_grad():
        for _ in range(6):
            assert_equal(plain(batch()), model(batch()))
        assert _watched()
        assert streamer.stats().peak_bytes <= 1 << 20


def test_an_inference_mode_around_each_call() -> None:
    """Torch gives the thread its keys of before back when an inference mode ends, whoever has left meanwhile."""
    plain, model = _twins()
    with stream(model, poison=True) as streamer:
        for _ in range(6):
            with torch.inference_mode():
                assert_equal(plain(batch()), model(batch()))
            assert torch.ones(2).sum() == 2
        streamer.resize(k=2)
        assert_equal(plain(batch()), model(batch()))
        with torch.inference_mode():
            assert_equal(plain(batch()), model(batch()))
            streamer.close()
    assert torch.ones(2).sum() == 2
    GUARD.leave_if_idle()
    assert not _watched()


def test_a_state_dict_that_is_kept_is_the_present_one_whenever_it_is_read() -> None:
    pair = Pair()
    kept = pair.plain.state_dict(), pair.model.state_dict()
    pair.train(8)
    assert_equal(*kept)
    del kept
    pair.train(8)
    assert not _watched()
    pair.finish()

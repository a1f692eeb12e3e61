"""Programs that use a streamed model in unusual ways: exact, or refused with a reason; never wrong, never a crash."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from streaming.models import CASES
from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming import Streamer, stream


def _stack(seed: int = 3, layers: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(layers)])


def _streamed(model: nn.Module, k: int = 2) -> tuple[nn.Module, Streamer]:
    twin = copy.deepcopy(model)
    streamer = stream(twin, k=k, poison=True)
    with torch.no_grad():
        twin(torch.zeros(1, 16))  # the first units are away now
    return twin, streamer


def test_bytes_leave_without_an_operator() -> None:
    plain = _stack()
    model, streamer = _streamed(plain)
    first, expected = model[0][0].weight, plain[0][0].weight.detach()
    assert (first.detach().numpy() == expected.numpy()).all()
    assert first.tolist() == expected.tolist()
    assert "tensor(" in repr(first)
    assert torch.equal(copy.deepcopy(model)[0][0].weight, expected)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer)["0.0.weight"], expected)
    with pytest.raises(Unstreamable, match="share"):
        first.share_memory_()
    streamer.close()


def test_a_copy_of_a_streamed_model_is_a_plain_model() -> None:
    plain = _stack()
    model, streamer = _streamed(plain)
    twin = copy.deepcopy(model)
    streamer.close()
    x = torch.randn(2, 16)
    assert torch.equal(twin(x), plain(x))
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda: nn.LSTM(16, 16, num_layers=4, batch_first=True), (2, 5, 16)),
        (lambda: nn.GRU(16, 16, num_layers=3), (5, 2, 16)),
        (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 4),
            (2, 5, 16),
        ),
    ],
    ids=["lstm", "gru", "transformer"],
)
def test_modules_with_kernels_of_their_own(module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = module()
    streamed = copy.deepcopy(plain)
    x = torch.randn(shape)

    def run(model: nn.Module, train: bool) -> torch.Tensor:
        torch.manual_seed(1)
        model.train(train)
        with torch.set_grad_enabled(train):
            out = model(x)
        out = out[0] if isinstance(out, tuple) else out
        if train:
            out.square().sum().backward()
        return out.detach().clone()

    for train in (False, True):
        expected = run(plain, train)
        with stream(streamed, k=1000, poison=True):
            assert torch.equal(run(streamed, train), expected)
    for (name, one), other in zip(plain.named_parameters(), streamed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_parameters_frozen_and_thawed_while_streaming() -> None:
    plain = _stack()
    model, streamer = _streamed(plain)
    x = torch.randn(4, 16)
    for thawed in (True, False, True):
        for one in (plain, model):
            one.zero_grad()
            one[1].requires_grad_(thawed)
            one(x).sum().backward()
        for (name, expected), actual in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert (expected.grad is None) == (actual.grad is None), name
            assert expected.grad is None or torch.equal(expected.grad, actual.grad), name
    streamer.close()


def test_gradients_that_are_kept_or_changed_by_hand() -> None:
    plain = _stack()
    model, streamer = _streamed(plain)
    x = torch.randn(4, 16)
    for one in (plain, model):
        one(x).sum().backward()
        with torch.no_grad():
            one[0][0].weight.grad.mul_(2.0)
        one[1][0].weight.grad = torch.ones(16, 16)
        one(x).sum().backward()  # accumulates into both
        one.zero_grad(set_to_none=False)
        one(x).sum().backward()
    for expected, actual in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(expected.grad, actual.grad)
    streamer.close()


def test_an_error_in_the_middle_of_a_forward_leaves_the_model_usable() -> None:
    plain = _stack()
    model, streamer = _streamed(plain)

    def fail(*_: object) -> None:
        raise ValueError("on purpose")

    handle = model[3].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="on purpose"):
        model(torch.randn(2, 16))
    handle.remove()
    x = torch.randn(2, 16)
    assert torch.equal(model(x), plain(x))
    streamer.close()


def test_another_mode_may_be_entered_before_and_left_after_stream() -> None:
    class Counts(TorchDispatchMode):
        operators = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Counts.operators += 1
            return func(*args, **(kwargs or {}))

    plain = _stack()
    x = torch.randn(2, 16)
    with Counts():
        model, streamer = _streamed(plain)
    assert torch.equal(model(x), plain(x))
    streamer.close()
    assert Counts.operators > 0


def test_early_exit_and_alternating_batches() -> None:
    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = _stack(layers=6)

        def forward(self, x: torch.Tensor, depth: int) -> torch.Tensor:
            for layer in self.layers[:depth]:
                x = layer(x)
            return x

    plain = Exits()
    streamed = copy.deepcopy(plain)
    x = torch.randn(2, 16)
    with stream(streamed, k=2, poison=True) as streamer:
        for depth in (6, 6, 3, 6, 2, 6, 3, 6, 3, 6, 3, 6):
            assert torch.equal(streamed(x, depth), plain(x, depth))
        before = streamer.stats().surprises
        for depth in (3, 6, 3, 6):
            assert torch.equal(streamed(x, depth), plain(x, depth))
        assert streamer.stats().surprises == before, "the alternation was learned"


def test_training_goes_on_plainly_after_close() -> None:
    case = CASES["llama"]
    torch.manual_seed(0)
    plain = case.build()
    model = copy.deepcopy(plain)

    def steps(one: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> None:
        for step in which:
            case.loss(one, step)[1].backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), range(4))
    streamer = stream(model, k=2, poison=True)
    optimizer = streamer.optimizer(torch.optim.AdamW, lr=1e-2)
    steps(model, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    streamer.close()
    streamer.close()
    plain_optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plain_optimizer.load_state_dict(state)
    steps(model, plain_optimizer, range(2, 4))
    for (name, expected), actual in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(expected, actual), name

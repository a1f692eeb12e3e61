"""Recipes around the step, on the device and on the host: all equal to plain PyTorch."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from streaming.twins import Blocks, assert_equal, assert_same_run, batch, mean_square, train
from superpipe_cluster.errors import BadInput, Unstreamable
from superpipe_cluster.streaming import StreamStats, VirtualDevice, stream

AdamW, SGD = torch.optim.AdamW, torch.optim.SGD
BOTH = pytest.mark.parametrize("where", ["on_device", "on_host"])


def _same_run(where: str, program: Callable[..., Any], **options: Any) -> StreamStats:
    """`assert_same_run` with every streamed optimizer at `where`."""

    def wrapped(model, make_optimizer):
        is_streamed = make_optimizer.__name__ == "optimizer"
        extra = {"where": where} if is_streamed else {}
        return program(model, lambda kind, params=None, **rest: make_optimizer(kind, params, **rest, **extra))

    stats = assert_same_run(wrapped, **options)
    assert stats.loads > stats.units
    return stats


# ---- recipes -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
def test_accumulation_clipping_groups_and_a_schedule(where: str, foreach: bool) -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(
            AdamW,
            [
                {"params": list(model.layers[:3].parameters()), "lr": 0.1},
                {
                    "params": [*model.layers[3:].parameters(), *model.outside.parameters()],
                    "weight_decay": 0.5,
                },
            ],
            lr=torch.tensor(0.01) if not foreach else 0.01,
        )
        optimizer.add_param_group({"params": list(model.inside.parameters()), "betas": (0.5, 0.9)})
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2, 0.3], total_steps=8)
        seen = []
        for step in range(4):
            for micro in range(2):
                (mean_square(model, 10 * step + micro) / 2).backward()
            seen.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05, foreach=foreach).clone())
            torch.nn.utils.clip_grad_value_(model.parameters(), 0.01, foreach=foreach)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        return seen, schedule.get_last_lr()

    _same_run(where, program)


@BOTH
def test_a_scaler_that_skips_steps(where: str) -> None:
    def program(model, make_optimizer):
        optimizer = make_optimizer(AdamW, lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        scales = []
        for step in range(6):
            with torch.autocast("cpu", torch.bfloat16):
                loss = mean_square(model, step)
            scaler.scale(loss * (float("inf") if step in (1, 4) else 1.0)).backward()
            if step % 2:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            scales.append(scaler.get_scale())
        assert min(scales) < 2.0**10, "steps were skipped"
        return scales

    _same_run(where, program)


class Narrow(Blocks):
    """In bfloat16, but for a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.to(torch.bfloat16)
        self.norm.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x.to(torch.bfloat16))
        for layer in self.layers:
            x = x + layer(self.norm(x.float()).to(x.dtype))
        return self.outside(x).float()


class _PlainMasters:
    """The recipe written out: copies in float32, gradients cast up, a step, weights cast down."""

    def __init__(self, kind, parameters, **options) -> None:
        self.parameters = list(parameters)
        self.masters = [nn.Parameter(p.detach().float()) for p in self.parameters]
        self.optimizer = kind(self.masters, **options)

    @torch.no_grad()
    def step(self) -> None:
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self.optimizer.step()
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.copy_(master)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


@BOTH
@pytest.mark.parametrize(("kind", "options"), [(AdamW, {"lr": 1e-3}), (SGD, {"lr": 1e-3})])
def test_masters_in_single_precision(where: Any, kind: Any, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    plain = Narrow()
    model = copy.deepcopy(plain)
    masters = _PlainMasters(kind, plain.parameters(), **options)
    expected = train(plain, masters, 6)  # type: ignore[arg-type]
    names = [name for name, _ in model.named_parameters()]
    with stream(model, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(kind, where=where, master_weights=torch.float32, **options)
        actual = train(model, optimizer, 3)
        weights, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        train(model, optimizer, 1)
        model.load_state_dict(weights)  # and go on from a checkpoint, in another optimizer
        again = streamer.optimizer(kind, where=where, master_weights=torch.float32, **options)
        again.load_state_dict(saved)
        actual += train(model, again, 3, lambda one, step: mean_square(one, step + 3))
        assert streamer.stats().peak_units <= 2
        assert streamer.stats().loads > streamer.stats().units
        state = again.state_dict()["state"]
        for number, master in enumerate(masters.masters):
            has_own = plain.get_parameter(names[number]).dtype != torch.float32
            assert ("master_weight" in state.get(number, {})) == has_own, "single precision needs no master"
            if has_own:
                assert_equal(state[number]["master_weight"], master)
    plain_losses = expected
    assert_equal(plain_losses, actual)
    assert_equal(plain.state_dict(), model.state_dict())


# ---- on the host -------------------------------------------------------------------------------------------


def test_the_state_never_crosses_the_link() -> None:
    def program(model, make_optimizer):
        return train(model, make_optimizer(AdamW, lr=0.01), 4)

    there, here = (_same_run(where, program) for where in ("on_device", "on_host"))
    weights = there.host_bytes // 4  # with gradients and two moments
    steps = 4
    assert here.d2h_bytes <= steps * weights, "gradients go once; weights and state never"
    assert there.d2h_bytes > steps * 3 * weights
    assert here.h2d_bytes < there.h2d_bytes / 2
    moments = 2 * here.model_bytes
    assert moments <= here.host_bytes - 2 * weights <= moments + 4096, "the state is counted"


def test_updates_go_on_while_the_program_does() -> None:
    held, inside = threading.Event(), threading.Event()

    class Waits(SGD):
        """An update that does not end before it is allowed to."""

        def step(self, closure=None):
            inside.set()
            assert held.wait(60)
            return super().step(closure)

    Waits.__module__ = SGD.__module__
    model = Blocks()
    plain = copy.deepcopy(model)
    expected = train(plain, SGD(plain.parameters(), lr=0.1), 1)
    with stream(model, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(Waits, where="on_host", lr=0.1)
        actual = train(model, optimizer, 1)  # returns, though no update is done
        assert inside.wait(60)
        threading.Timer(0.05, held.set).start()
        assert_equal(plain(batch()).detach(), model(batch()).detach())  # waits for what it reads
        assert_equal(expected, actual)


def test_an_update_that_fails_is_told() -> None:
    class Fails(SGD):
        def step(self, closure=None):
            raise ArithmeticError("on purpose")

    Fails.__module__ = SGD.__module__
    model = Blocks()
    plain = copy.deepcopy(model)
    with stream(model, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(Fails, where="on_host", lr=0.1)
        mean_square(model, 0).backward()
        optimizer.step()
        with pytest.raises(ArithmeticError, match="on purpose"):
            optimizer.step()
        assert_equal(plain(batch()), model(batch()))
        model.zero_grad()
        assert optimizer.state_dict()["state"] == {}, "told once"
        mean_square(model, 0).backward()
        optimizer.step()
        with pytest.raises(ArithmeticError, match="on purpose"):
            streamer.close()
    assert_equal(plain(batch()), model(batch()))


def test_a_link_that_is_slow_changes_nothing() -> None:
    def program(model, make_optimizer):
        return train(model, make_optimizer(AdamW, lr=0.01), 3)

    _same_run("on_host", program, device=VirtualDevice(link_bytes_per_s=4e6))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"where": "on_disk"}, BadInput, "on_disk"),
        ({"master_weights": torch.int8}, BadInput, "int8"),
    ],
)
def test_keywords_without_meaning(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with stream(Blocks(), k=2) as streamer, pytest.raises(error, match=match):
        streamer.optimizer(AdamW, **options)


@pytest.mark.parametrize("options", [{"where": "on_host"}, {"master_weights": torch.float64}])
def test_classes_that_are_not_known_stay_on_the_device(options: dict[str, Any]) -> None:
    class Own(SGD):
        pass

    with stream(Blocks(), k=2) as streamer, pytest.raises(Unstreamable, match="Own"):
        streamer.optimizer(Own, lr=0.1, **options)

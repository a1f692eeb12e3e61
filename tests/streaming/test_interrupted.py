"""Exceptions in the middle of everything, and the same a few hundred times: right weights, nothing left behind."""

from __future__ import annotations

import copy
import gc
import os
import threading
from typing import Any

import pytest
import torch
from torch import nn

from streaming.twins import Blocks, assert_equal, batch, mean_square, train
from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory
from superpipe_cluster.streaming import Streamer, stream
from superpipe_cluster.streaming.activations import offload

AdamW = torch.optim.AdamW
SETTINGS: list[dict[str, Any]] = [
    {"k": 2},
    {"k": 3, "activations": "offload"},
    {"k": 3, "activations": "recompute", "host": "shared"},
    {"k": 2, "host": "disk", "where": "on_host"},
    {"budget": 120_000, "where": "on_host"},
    {},
]
EVERY = pytest.mark.parametrize("settings", SETTINGS, ids=str)


@pytest.fixture(autouse=True)
def everything_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models for tests are small; offload whatever they save."""
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)


def _open(model: nn.Module, settings: dict[str, Any]) -> tuple[Streamer, torch.optim.Optimizer]:
    options = dict(settings)
    where = options.pop("where", "on_device")
    streamer = stream(model, poison=True, **options)
    return streamer, streamer.optimizer(AdamW, lr=0.01, where=where)


class _Stops:
    """Raises the next time that it is called, and once."""

    def __init__(self, error: BaseException) -> None:
        self._error: BaseException | None = error

    def __call__(self, *_: object) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


@EVERY
@pytest.mark.parametrize(
    ("moment", "error"),
    [
        ("forward", KeyboardInterrupt),
        ("forward", BudgetTooSmall),
        ("backward", DeviceOutOfMemory),
        ("gradient", KeyboardInterrupt),
        ("step", KeyboardInterrupt),
    ],
)
def test_a_step_that_is_broken_off(settings: dict[str, Any], moment: str, error: type[BaseException]) -> None:
    """The plain twin is broken off at the same moment; both go on."""
    plain = Blocks()
    model = copy.deepcopy(plain)

    def run(one: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
        losses = train(one, optimizer, 5)
        handle = _hang(one, optimizer, moment, _Stops(error("on purpose")))
        with pytest.raises(error, match="on purpose"):
            train(one, optimizer, 1)
        handle.remove()
        gradients = [None if p.grad is None else p.grad.clone() for p in one.parameters()]
        optimizer.zero_grad()
        return [losses + train(one, optimizer, 5), gradients]

    expected = run(plain, AdamW(plain.parameters(), lr=0.01))
    streamer, optimizer = _open(model, settings)
    assert_equal(expected, run(model, optimizer))
    assert_equal(list(plain.parameters()), list(model.parameters()))
    assert streamer.stats().loads > 0
    _hang(model, optimizer, moment, _Stops(error("on purpose")))
    with pytest.raises(error, match="on purpose"):
        train(model, optimizer, 1)
    streamer.close()
    assert_equal(list(plain.parameters()), list(model.parameters()))


def _hang(model: nn.Module, optimizer: torch.optim.Optimizer, moment: str, stops: _Stops) -> Any:
    layer: Any = model.get_submodule("layers.3")
    if moment == "forward":
        return layer.register_forward_hook(stops)
    if moment == "backward":
        return layer.register_full_backward_hook(stops)
    if moment == "gradient":
        return layer[0].weight.register_hook(stops)
    return optimizer.register_step_pre_hook(stops)


def test_an_update_that_is_broken_off_half_way_goes_on_with_the_other_half() -> None:
    """What had its first update has its state at home, so that the second finds it."""

    class Breaks(AdamW):
        countdown = 7

        def step(self, closure: Any = None) -> Any:
            Breaks.countdown -= 1
            if not Breaks.countdown:
                raise KeyboardInterrupt
            return super().step(closure)

    Breaks.__module__ = AdamW.__module__
    plain = Blocks()
    model = copy.deepcopy(plain)
    optimizer: torch.optim.Optimizer = AdamW(plain.parameters(), lr=0.01)
    expected = train(plain, optimizer, 4)
    with stream(model, k=2, poison=True) as streamer:
        optimizer = streamer.optimizer(Breaks, lr=0.01)
        actual = [mean_square(model, 0)]
        actual[0].backward()
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        stepped = [p for p in model.parameters() if p in optimizer.state]
        assert 0 < len(stepped) < len(list(model.parameters()))
        for parameter in stepped:
            parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        actual += train(model, optimizer, 3, lambda one, step: mean_square(one, 1 + step))
        assert streamer.stats().loads > streamer.stats().units
    assert_equal([expected, list(plain.parameters())], [actual, list(model.parameters())])


# ---- again and again -----------------------------------------------------------------------------------------


def _footprint(streamer: Streamer, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    optimizer.state_dict()  # no update is under way any more,
    streamer._engine.device.finish()  # and no copy
    gc.collect()
    stats = streamer.stats()
    return {
        "host_bytes": stats.host_bytes,
        "disk_bytes": stats.disk_bytes,
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()),
    }


@EVERY
def test_many_steps_leave_nothing_behind(settings: dict[str, Any]) -> None:
    model = Blocks()
    streamer, optimizer = _open(model, settings)
    train(model, optimizer, 20)
    before = _footprint(streamer, optimizer)
    train(model, optimizer, 20)
    assert _footprint(streamer, optimizer) == before
    streamer.close()


def test_a_graph_that_is_always_kept_while_others_come_and_go() -> None:
    """As programs that run backward one step late do: what waits in line for backward is never all dead."""
    model = Blocks()
    with stream(model, k=3, poison=True, activations="offload") as streamer:
        assert streamer._offload is not None
        loss = mean_square(model, 0)
        for step in range(1, 60):
            following = mean_square(model, step)
            loss.backward()
            loss = following
        assert len(streamer._offload._line) < 300
        assert streamer.stats().loads > 8


@EVERY
def test_opening_and_closing_leaves_nothing_behind(settings: dict[str, Any]) -> None:
    def once() -> None:
        model = Blocks()
        model.get_submodule("layers.0").requires_grad_(False)
        streamer, optimizer = _open(model, settings)
        train(model, optimizer, 2)
        streamer.close()

    def footprint() -> tuple[int, int]:
        gc.collect()
        # Shared copies are among the descriptors.
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    once()
    before = footprint()
    for _ in range(3):
        once()
    assert footprint() == before


def test_a_model_that_dies_in_a_thread_that_copies() -> None:
    """The collector runs in any thread; in one of the link's, nobody may wait for the link."""
    model = Blocks()
    streamer = stream(model, k=2, poison=True)
    mean_square(model, 0).backward()
    death, link = streamer._death, streamer._engine.device._host_to_device  # type: ignore[attr-defined]
    box: list[Any] = [model, streamer]
    del model, streamer

    class Collects:
        nbytes = 0

        def run(self) -> None:
            box.clear()
            gc.collect()

        def arrive(self) -> None:
            done.set()

    done = threading.Event()
    link.submit(Collects())
    assert done.wait(60)
    link.join(60)
    assert not link.is_alive()
    assert not death.alive
    other = Blocks()
    expected = other(batch()).detach()
    with stream(other, k=2, poison=True):
        assert torch.equal(other(batch()), expected)

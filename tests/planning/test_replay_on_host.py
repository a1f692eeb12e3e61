"""Replays of offloaded activations and of updates on the host, against runs; and errors while a program is recorded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from superpipe_cluster.errors import BadInput, BudgetTooSmall, DeviceOutOfMemory
from superpipe_cluster.planning.model_plan import recorded
from superpipe_cluster.planning.plan import Probe
from superpipe_cluster.planning.record import RecordingEngine, record
from superpipe_cluster.planning.replay import Conditions, floor_bytes, replay
from superpipe_cluster.planning.trial import trial
from superpipe_cluster.streaming import VirtualDevice
from superpipe_cluster.streaming.activations import offload
from superpipe_cluster.streaming.devices.clock_device import LinkSpeed
from superpipe_cluster.streaming.streamer import Activations
from superpipe_cluster.streaming.training.host_steps import Where

WAYS: list[tuple[Activations, Where]] = [
    ("offload", "on_device"),
    ("keep", "on_host"),
    ("offload", "on_host"),
    ("recompute", "on_host"),
]


@pytest.fixture(autouse=True)
def everything_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models for tests are small."""
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1 << 17)


class _Residual(nn.Module):
    """Saves activations of 1/8 and 1/2 MiB, some of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(128)
        self.widen = nn.Linear(128, 512)
        self.narrow = nn.Linear(512, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(x))))


def probe() -> Probe:
    torch.manual_seed(0)
    model, batch = nn.Sequential(*(_Residual() for _ in range(5))), torch.zeros(256, 128)
    return Probe(model, lambda: model(batch).square().mean().backward(), lambda own: torch.optim.AdamW(own))


@pytest.mark.parametrize(("activations", "where"), WAYS)
def test_bytes_are_those_of_a_run(activations: Activations, where: Where) -> None:
    trace = record(probe, activations=activations, where=where)
    conditions = Conditions([1e-3] * len(trace.signatures.all), LinkSpeed())
    floor = floor_bytes(trace, conditions)
    whole = replay(trace, conditions, None).peak_bytes
    for budget in (floor, (floor + whole) // 2, 2 * whole):
        forecast = replay(trace, conditions, budget)
        run = trial(probe, budget, VirtualDevice(), activations=activations, where=where, steps=2)
        assert run.peak_bytes <= budget
        assert run.loads_per_step > 0 or (budget > floor and where == "on_device")
        assert forecast.peak_bytes == pytest.approx(run.peak_bytes, rel=0.05)
        if budget != (floor + whole) // 2:  # in between the order of copies decides what is still there
            assert forecast.link_bytes == pytest.approx(run.link_bytes_per_step, rel=0.05)
    with pytest.raises((BudgetTooSmall, DeviceOutOfMemory)):
        trial(probe, floor - 1, VirtualDevice(), activations=activations, where=where, steps=2)


def test_offloading_needs_less_and_the_host_keeps_the_state() -> None:
    traces = {way: record(probe, activations=way[0], where=way[1]) for way in [*WAYS, ("keep", "on_device")]}
    conditions = {
        way: Conditions([1e-3] * len(one.signatures.all), LinkSpeed()) for way, one in traces.items()
    }
    whole = {way: replay(one, conditions[way], None) for way, one in traces.items()}
    kept = whole["keep", "on_device"]
    assert whole["offload", "on_device"].peak_bytes < 0.8 * kept.peak_bytes
    state = 2 * sum(p.numel() * 4 for p in probe().model.parameters())
    assert kept.peak_bytes - whole["keep", "on_host"].peak_bytes >= state
    assert traces["keep", "on_host"].host_state_bytes >= state
    activations = whole["offload", "on_device"].host_bytes - kept.host_bytes
    assert activations >= 5 * (1 + 4 + 4) << 17


def test_updates_on_the_host_take_their_time() -> None:
    trace = record(probe, where="on_host")
    conditions = [
        Conditions(
            [1e-3] * len(trace.signatures.all), LinkSpeed(), host_seconds=[s] * len(trace.signatures.all)
        )
        for s in (0.0, 1e-3, 1.0)
    ]
    nothing, little, much = (replay(trace, one, None).step_s for one in conditions)
    assert nothing <= little < nothing + trace.host_work.total() * 1e-3, "they overlap with the next forward"
    assert much == pytest.approx(trace.host_work.total() * 1.0, rel=0.1), "the next step waits for them"


@pytest.mark.parametrize("method", ["require", "charge", "take_gradient", "wrote"])
@pytest.mark.parametrize("call", [1, 4])
def test_an_error_in_the_middle_of_a_recording_is_an_error(
    method: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Autograd asks a tensor without memory for its device where torch lets no exception pass.
    original, calls = getattr(RecordingEngine, method), 0

    def fails(engine: RecordingEngine, *args: object) -> object:
        nonlocal calls
        calls += running
        if running and calls == call:
            raise RuntimeError("in the middle")
        return original(engine, *args)

    running = False

    def failing() -> Probe:
        made = probe()

        def step() -> None:
            nonlocal running
            running = True
            try:
                made.step()
            finally:
                running = False

        return Probe(made.model, step, made.optimizer)

    monkeypatch.setattr(RecordingEngine, method, fails)
    with pytest.raises(BadInput, match="in the middle"):
        recorded(failing)
    monkeypatch.undo()
    assert record(probe).operators > 0, "nothing is left behind"

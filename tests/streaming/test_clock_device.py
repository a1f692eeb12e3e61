"""The device with a clock, by hand: what overlaps, what waits, what is refused."""

from __future__ import annotations

import pytest
import torch

from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory
from superpipe_cluster.streaming.devices.clock_device import ClockDevice, LinkSpeed
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.policies import make_policy
from superpipe_cluster.streaming.units import Unit


def _flat(nbytes: int) -> torch.Tensor:
    flat = torch.empty(nbytes, dtype=torch.uint8, device="meta")
    flat.untyped_storage().resize_(0)
    return flat


def test_copies_queue_behind_each_other_and_run_beside_the_computation() -> None:
    device = ClockDevice(LinkSpeed(h2d_bytes_per_s=100.0, d2h_bytes_per_s=50.0, latency_s=0.5))
    flat, host = _flat(100), device.host_buffer(100)
    device.allocate(flat, 100)
    first, second = device.load(flat, host), device.load(flat, host)  # arrive at 1.5 and at 3.0
    device.compute(1.0)
    assert not first.done()
    first.wait()
    assert (device.now_s, device.stall_s) == (1.5, 0.5)
    device.compute(2.0)
    assert second.done()
    second.wait()
    assert (device.now_s, device.stall_s, device.compute_s) == (3.5, 0.5, 3.0)
    device.store(host, flat).finish()  # the other direction is free: 0.5 + 2.0
    assert device.now_s == 6.0
    assert (device.h2d_bytes, device.d2h_bytes) == (200, 100)


def test_the_budget_is_kept_and_the_peak_remembered() -> None:
    device = ClockDevice(budget_bytes=150, overhead_bytes=20)
    flat = _flat(100)
    device.allocate(flat, 100)
    with pytest.raises(DeviceOutOfMemory, match="1 bytes too small"):
        device.charge(31)
    device.charge(30)
    device.free(flat)
    assert (device.used_bytes(), device.peak_bytes()) == (50, 150)


def test_two_units_in_turn_through_one_place() -> None:
    """Forward over units 0 1 2 with room for two: the third is loaded while the second computes."""
    device = ClockDevice(LinkSpeed(h2d_bytes_per_s=256.0), budget_bytes=512)
    engine = Engine(device, make_policy("optimal", k=2, k_prime=1), max_units=None)
    parameter = torch.empty(256, dtype=torch.uint8, device="meta")
    engine.take_over(
        [Unit(str(n), {"": torch.nn.Parameter(parameter, requires_grad=False)}) for n in range(3)]
    )

    def step() -> tuple[float, int]:
        began, loads = device.now_s, engine.loads
        engine.begin_step()
        for unit in range(3):
            engine.require([engine.weights[unit]])
            device.compute(2.0)
        return device.now_s - began, engine.loads - loads

    assert step() == (9.0, 3), "nothing is foreseen: each load is waited for"
    settled = [step() for _ in range(8)][4:]
    assert sum(seconds for seconds, _ in settled) / 4 == 6.0, "every load hides behind a computation"
    assert device.peak_bytes() == 512
    with pytest.raises(BudgetTooSmall):
        engine.require(engine.weights)

"""Tensors without memory, beside a model that is streamed: they take nothing of its budget."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from superpipe_cluster.planning import Probe
from superpipe_cluster.planning.record import record
from superpipe_cluster.streaming import VirtualDevice, stream


def layers(width: int = 64) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(6)))


def test_a_model_on_meta_takes_nothing_of_the_budget() -> None:
    model = layers()
    with stream(model, "120KiB", VirtualDevice()) as streamer:
        expected = model(torch.ones(2, 64)).clone()
        held = streamer.stats().held_bytes
        with torch.device("meta"):
            large = layers(4096)
        large(torch.ones(1000, 4096, device="meta"))
        assert streamer.stats().held_bytes == held
        assert torch.equal(model(torch.ones(2, 64)), expected)


def test_a_plan_made_meanwhile_takes_nothing_of_it_and_is_the_same_plan() -> None:
    def probe() -> Probe:
        planned = layers(512)
        return Probe(planned, lambda: planned(torch.zeros(64, 512)).sum().backward())

    alone = record(probe)
    model = layers()
    with stream(model, "120KiB", VirtualDevice()) as streamer:
        model(torch.ones(2, 64))
        held = streamer.stats().held_bytes
        beside = record(probe)
        with FakeTensorMode():
            layers(4096)
        assert streamer.stats().held_bytes == held
    assert (beside.units, beside.resident_bytes) == (alone.units, alone.resident_bytes)

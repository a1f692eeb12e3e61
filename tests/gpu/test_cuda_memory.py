"""Bytes on a GPU: budgets are kept by the driver's count, running out is answered, and all is given back."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from gpu.gpu_twins import CUDA, MIB, Wide, assert_same_on_gpu, budget_with, loss_of, rows, train_steps
from streaming.twins import assert_equal
from superpipe_cluster.errors import BudgetTooSmall
from superpipe_cluster.streaming import stream
from superpipe_cluster.streaming.devices.cuda_memory import gpu_memory

AdamW = torch.optim.AdamW


def _reserved_peak() -> int:
    return gpu_memory(0).context.nbytes + torch.cuda.max_memory_reserved()


def test_the_context_is_measured_and_is_no_smaller_than_what_the_driver_counts() -> None:
    memory = gpu_memory(0)
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    if not memory.context.source.startswith("measured"):
        pytest.skip(f"the GPU is not ours alone: {memory.context.source}")
    torch.mm(rows(0).t(), rows(0))  # cuBLAS is loaded
    assert memory.context.nbytes >= 64 * MIB
    assert outside <= memory.context.nbytes


def test_a_budget_holds_against_the_driver_while_a_model_that_needs_six_times_as_much_trains() -> None:
    model = Wide(blocks=24)
    room = (
        4 * sum(p.nbytes for p in model.parameters()) // 6
    )  # weights, gradients and state take four times the weights
    free_before, _ = torch.cuda.mem_get_info()
    used_before = torch.cuda.memory_reserved()
    with stream(model, budget_with(room), device=CUDA, poison=True) as streamer:
        train_steps(model, streamer.optimizer(AdamW, lr=1e-3), steps=5)
        assert _reserved_peak() <= budget_with(room)
        free, _ = torch.cuda.mem_get_info()
        assert free_before + used_before - free <= room + 64 * MIB, "nor does the driver count more"
        stats = streamer.stats()
        assert stats.loads > 2 * stats.units
        assert stats.peak_bytes <= budget_with(room)


def test_a_budget_that_is_too_small_is_refused_and_leaves_no_cap() -> None:
    model = Wide()
    with pytest.raises(BudgetTooSmall) as refused:
        stream(model, budget_with(4 * MIB), device=CUDA)
    assert refused.value.needed_bytes > budget_with(16 * MIB)
    torch.empty(1 << 30, dtype=torch.uint8, device=CUDA)


class Hungry(Wide):
    """Needs, for a moment in the middle, much more than it ever did before."""

    wants_bytes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for number, layer in enumerate(self.layers):
            x = x + layer(x)
            if number == 5 and self.wants_bytes:
                x = x + torch.ones(self.wants_bytes // 4, device=x.device).sum() * 0
        return self.outside(x)


def test_running_out_of_memory_is_answered_by_eviction() -> None:
    def program(model, make):
        results = []
        with torch.no_grad():
            for step in range(6):
                model.wants_bytes = 96 * MIB if step >= 2 else 0
                results.append(model(rows(step)))
        return results

    before = torch.cuda.memory_stats().get("num_ooms", 0)
    assert_same_on_gpu(program, lambda: Hungry().requires_grad_(False), budget=budget_with(150 * MIB))
    assert torch.cuda.memory_stats()["num_ooms"] > before, "the case is about running out"


def test_what_can_never_fit_is_an_error_and_the_model_lives_on() -> None:
    model = Hungry().requires_grad_(False)
    with torch.no_grad(), stream(model, budget_with(150 * MIB), device=CUDA, poison=True):
        expected = model(rows(0))
        model.wants_bytes = 200 * MIB
        with pytest.raises(torch.OutOfMemoryError):
            model(rows(0))
        model.wants_bytes = 0
        assert torch.equal(model(rows(0)), expected)


def test_two_models_in_one_process_keep_the_sum_of_their_budgets() -> None:
    one, other = Wide(), Wide()
    other.load_state_dict(one.state_dict())
    room = 300 * MIB
    with (
        stream(one, budget_with(room), device=CUDA, poison=True) as first,
        stream(other, budget_with(room), device=CUDA, poison=True) as second,
    ):
        optimizers = first.optimizer(AdamW, lr=1e-3), second.optimizer(AdamW, lr=1e-3)
        for step in range(4):
            for model, optimizer in zip((one, other), optimizers, strict=True):
                loss_of(model, step).backward()
                optimizer.step()
                optimizer.zero_grad()
        assert torch.cuda.max_memory_reserved() <= 2 * budget_with(room) - gpu_memory(0).context.nbytes
        assert min(first.stats().loads, second.stats().loads) > first.stats().units
    assert_equal(one.state_dict(), other.state_dict())


def test_resizing_in_the_middle_of_training() -> None:
    torch.manual_seed(0)
    plain = Wide()
    streamed = Wide()
    streamed.load_state_dict(plain.state_dict())
    plain.to(CUDA)
    expected = [loss.cpu() for loss in train_steps(plain, AdamW(plain.parameters(), lr=1e-3), steps=8)]
    weights = {name: value.cpu() for name, value in plain.state_dict().items()}
    del plain
    gc.collect()
    torch.cuda.empty_cache()
    rooms = [700, 200, 400, 180, 900, 250, 180, 600]
    with stream(streamed, budget_with(rooms[0] * MIB), device=CUDA, poison=True) as streamer:
        optimizer = streamer.optimizer(AdamW, lr=1e-3)
        actual = []
        for step, room in enumerate(rooms):
            loss = loss_of(streamed, step)
            torch.cuda.reset_peak_memory_stats()
            streamer.resize(budget_with(room * MIB))  # between forward and backward
            torch.cuda.reset_peak_memory_stats()
            loss.backward()
            actual.append(loss.detach().cpu())
            optimizer.step()
            optimizer.zero_grad()
            assert _reserved_peak() <= budget_with(room * MIB)
        assert streamer.stats().loads > streamer.stats().units
    assert_equal(expected, actual)
    assert_equal(weights, dict(streamed.state_dict()))


def _resident_bytes() -> int:
    fields = Path(f"/proc/{os.getpid()}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_host_memory_is_what_is_booked() -> None:
    model = Wide(blocks=32)  # half a GiB
    with stream(model, k=3, device=CUDA) as streamer:
        stats = streamer.stats()
        assert stats.host_bytes <= 1.03 * stats.model_bytes
        with torch.no_grad():
            model(rows(0))
        before = _resident_bytes()
    gc.collect()
    with stream(model, k=3, device=CUDA) as streamer:
        with torch.no_grad():
            model(rows(0))
        assert _resident_bytes() <= before + 0.03 * stats.host_bytes, "a second time takes no more"


def test_closing_gives_everything_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = Wide()
    with stream(model, budget_with(300 * MIB), device=CUDA) as streamer:
        train_steps(model, streamer.optimizer(AdamW, lr=1e-3), steps=2)
    del streamer
    gc.collect()
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert torch.cuda.memory_allocated() <= before + 64 * MIB  # cuBLAS keeps work space
    torch.empty(2 << 30, dtype=torch.uint8, device=CUDA)  # no cap


def test_a_model_that_dies_gives_its_memory_back() -> None:
    model: nn.Module | None = Wide()
    streamer = stream(model, budget_with(300 * MIB), device=CUDA)
    del model, streamer
    gc.collect()
    torch.empty(2 << 30, dtype=torch.uint8, device=CUDA)

"""Order on a GPU: no kernel reads what has not come, or what has gone; the host does not wait for copies."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from gpu.gpu_twins import CUDA, Wide, assert_same_on_gpu, loss_of, rows, train_steps
from superpipe_cluster.streaming import stream

AdamW = torch.optim.AdamW


def test_a_missed_read_is_an_error_and_no_number() -> None:
    """In a process of its own: it may be left in an error that no CUDA call survives."""
    script = """
        import torch
        from torch.utils._python_dispatch import _disable_current_modes
        from gpu.gpu_twins import CUDA, Wide, rows
        from superpipe_cluster.streaming import stream

        model = Wide().requires_grad_(False)
        with torch.no_grad(), stream(model, k=2, device=CUDA):
            model(rows(0))
            away = [p for p in model.parameters() if p.untyped_storage().nbytes() == 0]
            assert away
            print("evicted")
            with _disable_current_modes():  # unseen by the guard
                number = away[0].sum()
                torch.cuda.synchronize()
            print("read", number.item())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd="tests",
    )
    assert "evicted" in done.stdout, done.stderr
    assert "read" not in done.stdout
    assert done.returncode != 0


def test_a_slow_computation_is_not_overtaken_by_the_copies() -> None:
    """Kernels queued far behind the host: a slab that is overwritten while they wait would show as NaN or stale."""

    class Slow(Wide):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inside(x)
            for layer in self.layers:
                torch.cuda._sleep(5_000_000)
                x = x + layer(x)
            return self.outside(x)

    assert_same_on_gpu(lambda model, make: train_steps(model, make(AdamW, lr=1e-3)), Slow, k=2)


def test_training_on_a_stream_of_its_own() -> None:
    def program(model, make):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            losses = train_steps(model, make(AdamW, lr=1e-3))
        torch.cuda.current_stream().wait_stream(side)
        return losses

    assert_same_on_gpu(program, k=2)


def test_units_on_two_streams() -> None:
    class Forked(Wide):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            side, main = torch.cuda.Stream(), torch.cuda.current_stream()
            x = self.inside(x)
            for one, other in zip(self.layers[::2], self.layers[1::2], strict=True):
                side.wait_stream(main)
                with torch.cuda.stream(side):
                    torch.cuda._sleep(2_000_000)
                    y = other(x)
                z = one(x)
                main.wait_stream(side)
                y.record_stream(main)
                x = x + y + z
            return self.outside(x)

    def program(model, make):
        with torch.no_grad():
            return [model(rows(seed)) for seed in range(4)]

    assert_same_on_gpu(program, lambda: Forked().requires_grad_(False), k=2)


def test_the_host_runs_ahead_of_the_device() -> None:
    model = Wide().requires_grad_(False)
    with torch.no_grad(), stream(model, k=4, device=CUDA) as streamer:
        for _ in range(3):
            model(rows(0))
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        ) as seen:
            model(rows(0))
            torch.cuda.synchronize()
        assert streamer.stats().loads > streamer.stats().units
    names = [event.name for event in seen.events()]
    copies = [name for name in names if "Memcpy HtoD" in name]
    if not copies:
        pytest.skip("this machine's profiler does not see the device")
    assert sum("Pageable" in name for name in copies) <= 1, (
        "weights come from registered memory (an input may not)"
    )
    assert len(copies) <= streamer.stats().units + 1, "one copy per unit"
    assert names.count("cudaStreamSynchronize") <= 1, "the input's copy"


def test_two_backward_passes_over_one_graph() -> None:
    def program(model, make):
        loss = loss_of(model, 0)
        loss.backward(retain_graph=True)
        loss.backward()
        return loss

    assert_same_on_gpu(program, k=3)

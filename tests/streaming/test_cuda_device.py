"""The CUDA path without a GPU: its real code over `fake_cuda`, where copies happen as late as the waits allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from streaming.fake_cuda import FakeCuda
from streaming.twins import Blocks, assert_equal, assert_same_run, batch, mean_square, train
from superpipe_cluster.errors import BudgetTooSmall
from superpipe_cluster.streaming import StreamStats, opening, stream
from superpipe_cluster.streaming.devices import cuda_device, cuda_memory
from superpipe_cluster.streaming.devices.cuda_device import CONTEXT_BYTES, CudaDevice

MIB = 1 << 20
#: What the fake GPU has in use outside the allocator, and the allowance for kernels that are loaded later.
OVERHEAD = 400 * MIB + 192 * MIB


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_device, "cuda", fake)
    monkeypatch.setattr(cuda_memory, "cuda", fake)
    monkeypatch.setattr(cuda_memory, "_GPUS", {})
    monkeypatch.setattr(
        cuda_memory.torch._C, "_accelerator_setAllocatorSettings", fake.memory._set_allocator_settings
    )
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    # Its tensors are in RAM, all else is the CUDA device's own code.
    monkeypatch.setattr(
        opening,
        "CudaDevice",
        lambda _, budget, **options: CudaDevice(torch.device("cpu", 0), budget, **options),
    )
    return fake


def on_fake_gpu(
    program: Callable, build: Callable[[], nn.Module] = Blocks, k: int = 2, **options
) -> StreamStats:
    return assert_same_run(program, build, k=k, device="cuda:0", **options)


@pytest.mark.parametrize("policy", ["optimal", "sliding", "naive"])
@pytest.mark.parametrize("k", [2, 3, 1000])
def test_training_waits_for_every_copy_it_needs(cuda: FakeCuda, k: int, policy: str) -> None:
    def program(model, optimizer):
        return train(model, optimizer(torch.optim.AdamW, lr=1e-2), steps=4)

    stats = on_fake_gpu(program, k=k, policy=policy)
    assert k > stats.units or stats.loads > stats.units
    assert stats.h2d_bytes > 0
    assert stats.d2h_bytes > 0


def test_accumulation_and_clipping(cuda: FakeCuda) -> None:
    def program(model, optimizer):
        steps = optimizer(torch.optim.SGD, lr=1e-2, momentum=0.9)
        norms = []
        for step in range(3):
            for part in range(2):
                mean_square(model, 2 * step + part).backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
            steps.step()
            steps.zero_grad()
        return norms

    assert on_fake_gpu(program).loads > 8


def test_the_host_waits_for_no_copy_while_a_forward_pass_runs(cuda: FakeCuda) -> None:
    model = Blocks().requires_grad_(False)
    with stream(model, k=3, device="cuda:0"):
        model(batch())
        cuda.calls.clear()
        model(batch())
        waits = [call for call in cuda.calls if "synchronize" in call]
        assert waits == ["event.synchronize"] * 8  # pacing, once for each unit
        assert "copy on h2d" in cuda.calls


def test_a_copy_comes_after_the_computation_and_the_computation_after_the_copy(cuda: FakeCuda) -> None:
    device = CudaDevice(torch.device("cpu", 0), None)
    flat, host = torch.zeros(256, dtype=torch.uint8), device.host_buffer(256)
    cuda.calls.clear()
    device.load(flat, host).wait()
    assert cuda.calls == ["h2d waits for main", "copy on h2d", "main waits for h2d"]
    cuda.calls.clear()
    device.store(host, flat).wait()
    assert cuda.calls == ["d2h waits for main", "copy on d2h", "main waits for d2h"]
    device.unregister(host)
    device.close()


def test_a_second_stream_is_waited_for_and_made_to_wait(cuda: FakeCuda) -> None:
    device = CudaDevice(torch.device("cpu", 0), None)
    flat, host = torch.zeros(256, dtype=torch.uint8), device.host_buffer(256)
    with cuda.stream(cuda.side_stream()):
        cuda.calls.clear()
        device.load(flat, host).wait()
    assert cuda.calls == [
        "side waits for main", "h2d waits for main", "h2d waits for side", "copy on h2d", "main waits for h2d",
        "side waits for h2d",
    ]  # fmt: skip
    cuda.calls.clear()
    device.free(flat)
    assert cuda.calls == ["main waits for side"]
    device.unregister(host)
    device.close()


def test_a_program_on_two_streams(cuda: FakeCuda) -> None:
    side = cuda.side_stream()

    def program(model, optimizer):
        results = train(model, optimizer(torch.optim.AdamW, lr=1e-2), steps=2)
        with cuda.stream(side):
            results += train(model, optimizer(torch.optim.AdamW, lr=1e-2), steps=2)
        return results

    assert on_fake_gpu(program).loads > 8


def test_other_homes_and_offloaded_activations(cuda: FakeCuda, tmp_path: Path) -> None:
    def program(model, optimizer):
        def wide(model: nn.Module, seed: int) -> torch.Tensor:
            return model(batch(seed, rows=1 << 14)).square().mean()  # saved tensors of a MiB and more

        return train(model, optimizer(torch.optim.AdamW, lr=1e-2), steps=2, loss_of=wide)

    assert on_fake_gpu(program, host="disk", host_folder=tmp_path).loads > 8
    assert on_fake_gpu(program, activations="offload").loads > 8
    assert on_fake_gpu(program, activations="recompute").loads > 8


def test_resize_in_the_middle_of_training(cuda: FakeCuda) -> None:
    plain, model = Blocks(), Blocks()
    model.load_state_dict(plain.state_dict())
    expected = train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), steps=6)
    with stream(model, OVERHEAD + 64 * MIB, k=6, device="cuda:0", poison=True) as streamed:
        optimizer = streamed.optimizer(torch.optim.AdamW, lr=1e-2)
        actual = []
        for step, (k, room) in enumerate([(6, 64), (2, 32), (3, 48), (8, 64), (2, 32), (4, 64)]):
            streamed.resize(OVERHEAD + room * MIB, k=k)
            assert cuda.fraction * cuda.total_bytes == pytest.approx(room * MIB, abs=1)
            loss = mean_square(model, step)
            loss.backward()
            actual.append(loss.detach().clone())
            optimizer.step()
            optimizer.zero_grad()
        assert streamed.stats().loads > 8
    assert_equal(expected, actual)
    assert_equal(plain.state_dict(), model.state_dict())


def test_the_cap_is_in_force_before_any_memory_is_asked_for(cuda: FakeCuda) -> None:
    budget = OVERHEAD + 100 * MIB
    with stream(Blocks(), budget, k=3, device="cuda:0") as streamed:
        assert cuda.calls[:2] == ["set expandable_segments:True", "cap"]
        assert cuda.fraction * cuda.total_bytes == pytest.approx(100 * MIB, abs=1)
        assert cuda.fraction * cuda.total_bytes <= 100 * MIB
        assert streamed.stats().peak_bytes == OVERHEAD
    assert cuda.fraction == 1.0


def test_two_models_share_the_cap(cuda: FakeCuda) -> None:
    with stream(Blocks(), OVERHEAD + 64 * MIB, device="cuda:0"):
        with stream(Blocks(), OVERHEAD + 64 * MIB, device="cuda:0"):
            assert cuda.fraction * cuda.total_bytes == pytest.approx(OVERHEAD + 128 * MIB, abs=1)
            with stream(Blocks(), k=2, device="cuda:0"):
                assert cuda.fraction == 1.0
        assert cuda.fraction * cuda.total_bytes == pytest.approx(64 * MIB, abs=1)


def test_the_slabs_of_one_model_do_not_count_for_the_other(cuda: FakeCuda) -> None:
    one, other = (CudaDevice(torch.device("cpu", 0), OVERHEAD + 8 * MIB) for _ in range(2))
    flat = torch.empty(0, dtype=torch.uint8)
    one.allocate(flat, 3 * MIB)
    cuda.allocated = 5 * MIB  # two of them are activations, which may be anyone's
    assert one.used_bytes() == OVERHEAD + 5 * MIB
    assert other.used_bytes() == OVERHEAD + 2 * MIB
    one.free(flat)
    one.close()
    other.close()


def test_a_smaller_budget_goes_back_to_the_driver(cuda: FakeCuda) -> None:
    device = CudaDevice(torch.device("cpu", 0), OVERHEAD + 100 * MIB)
    cuda.calls.clear()
    device.budget_bytes = OVERHEAD + 50 * MIB
    assert cuda.calls == ["cap", "empty_cache"]
    assert cuda.fraction * cuda.total_bytes == pytest.approx(50 * MIB, abs=1)
    device.close()


def test_an_allocator_that_runs_out_is_answered_by_a_smaller_window(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate, failures = CudaDevice.allocate, iter([False] * 12 + [True] + [False] * 7 + [True])

    def out_of_memory_at_times(self: CudaDevice, flat: torch.Tensor, nbytes: int) -> None:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        allocate(self, flat, nbytes)

    monkeypatch.setattr(CudaDevice, "allocate", out_of_memory_at_times)
    spare: list[int] = []

    def program(model, optimizer):
        result = train(model, optimizer(torch.optim.AdamW, lr=1e-2), steps=4)
        spare.extend(one.spare_bytes for one in cuda_device._OPEN)
        return result

    budget = OVERHEAD + 32 * MIB
    assert on_fake_gpu(program, k=4, budget=budget).loads > 8
    assert next(failures, None) is None, "both failures were met"
    assert spare == [2 * (budget // 32)]


def test_an_operator_that_runs_out_is_tried_again(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = Blocks()
            self.fails = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.ops.fakegpu.greedy(x, self.fails)
            self.fails = 0
            return self.blocks(x)

    library = torch.library.Library("fakegpu", "FRAGMENT")
    library.define("greedy(Tensor x, int fails) -> Tensor")
    calls: list[int] = []

    def greedy(x: torch.Tensor, fails: int) -> torch.Tensor:
        calls.append(fails)
        if fails and len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x * 2

    library.impl("greedy", greedy, "CPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", cuda.empty_cache)
    model = Greedy().requires_grad_(False)
    with stream(model, OVERHEAD + 32 * MIB, device="cuda:0", poison=True):
        out = model(batch())
    assert calls == [1, 1]
    assert torch.equal(out, model.blocks(batch() * 2))
    library._destroy()


def test_host_memory_is_registered_to_the_byte_and_given_back(cuda: FakeCuda) -> None:
    with stream(Blocks(), k=2, device="cuda:0") as streamed:
        assert sum(cuda.registered.values()) == streamed.stats().host_bytes > 0
    assert not cuda.registered


def test_memory_that_cannot_be_registered_is_copied_all_the_same(cuda: FakeCuda) -> None:
    cuda.refuses_to_register = True
    device = CudaDevice(torch.device("cpu", 0), None)
    host = device.host_buffer(4096)
    with pytest.warns(RuntimeWarning, match=r"could not register 4096 bytes .* locked memory \(ulimit -l\)"):
        device.register(host)
    host.fill_(7)
    flat = torch.zeros(4096, dtype=torch.uint8)
    device.load(flat, host).wait()
    assert bool((flat == 7).all())
    device.unregister(host)
    device.close()


def test_closing_reads_nothing_early(cuda: FakeCuda) -> None:
    model = Blocks()
    with stream(model, k=2, device="cuda:0", poison=True) as streamed:
        optimizer = streamed.optimizer(torch.optim.SGD, lr=1e-2)
        mean_square(model, 0).backward()
        optimizer.step()
        cuda.calls.clear()
    assert "d2h.synchronize" in cuda.calls
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_budget_below_the_context_names_the_bytes_it_needs(cuda: FakeCuda) -> None:
    with pytest.raises(BudgetTooSmall) as refused:
        stream(Blocks(), 64 * MIB, device="cuda:0")
    assert refused.value.needed_bytes > OVERHEAD
    assert cuda.fraction == 1.0


# ---- the context ----------------------------------------------------------------------------------


def context(
    monkeypatch: pytest.MonkeyPatch, fake: FakeCuda, driver: list[dict[str, int]], new: bool
) -> cuda_memory.Context:
    monkeypatch.setattr(cuda_memory, "cuda", fake)
    monkeypatch.setattr(fake, "is_initialized", lambda: not new)
    counts = iter(driver)
    monkeypatch.setattr(cuda_memory, "_used_by_uuid", lambda: next(counts))
    return cuda_memory._open_context(0)


def test_a_context_is_measured_beside_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [{"GPU-0000": 5000 * MIB, "GPU-1111": 0}, {"GPU-0000": 5512 * MIB, "GPU-1111": 900 * MIB}]
    found = context(monkeypatch, FakeCuda(used_bytes=5512 * MIB), counts, new=True)
    assert found.nbytes == (512 + 192) * MIB
    assert found.source.startswith("measured")


def test_a_context_on_a_gpu_of_its_own_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(used_bytes=430 * MIB)
    fake.reserved = 30 * MIB
    found = context(monkeypatch, fake, [{}, {}], new=False)
    assert found == cuda_memory.Context((400 + 192) * MIB, found.source)
    assert found.source.startswith("measured")


def test_a_context_that_cannot_be_told_from_neighbours_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = context(monkeypatch, FakeCuda(used_bytes=5 << 30), [{}, {}], new=False)
    assert found.nbytes == CONTEXT_BYTES
    assert found.source.startswith("assumed: CUDA was in use before streaming began")


def test_without_a_driver_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> SimpleNamespace:
        raise OSError(name)

    monkeypatch.setattr(cuda_memory.ctypes, "CDLL", no_library)
    assert cuda_memory._used_by_uuid() == {}

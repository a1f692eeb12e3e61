"""A CUDA GPU as a device to stream to: streams, events, registered host memory, the allocator's cap.

[Note: stream order] Slabs are allocated and freed in the order of the compute stream, and each copy waits for an event
recorded on it, so a block that the allocator hands out again is never overwritten while a kernel still reads it.
Neither `synchronize` nor `record_stream` is needed for that.

[Note: pacing] Kernels are queued long before they run. A program that is many units ahead would choose what to evict
from a picture of the future device, and see every copy as still under way. So it waits, at the start of a unit, for the
unit before the last to have begun; one unit's kernels stay queued, which keeps the GPU busy.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Any

import torch
from typing_extensions import override

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.device import Copy, Device

_UNITS_QUEUED = 2
#: What a CUDA context takes before the first tensor (0.3 to 0.7 GiB is usual). The allocator does not see it, so it is
#: taken off every budget; to be replaced by a measurement per device.
CONTEXT_BYTES = 768 << 20


class _CudaCopy(Copy):
    def __init__(self, device: CudaDevice, event: Any) -> None:
        self._device = device
        self._event = event

    def done(self) -> bool:
        return self._event.query()

    def finish(self) -> None:
        self._event.synchronize()

    def wait(self) -> None:
        # The host runs on; only the compute stream waits.
        torch.cuda.current_stream(self._device.torch_device).wait_event(self._event)


class CudaDevice(Device):
    """One GPU, or the part of it that a budget gives."""

    batches_in_flight = 2  # one for the unit that runs, one for the unit that is being queued
    overhead_bytes = CONTEXT_BYTES

    def __init__(self, torch_device: torch.device, budget_bytes: int | None) -> None:
        if not torch.cuda.is_available():
            raise Unstreamable(
                "there is no CUDA device here",
                hint='use device="cpu", a virtual device, or install a CUDA build of torch',
            )
        self.torch_device = torch_device
        self.stall_s = 0.0
        self.h2d_bytes = 0
        self.d2h_bytes = 0
        self.budget_bytes = budget_bytes
        if budget_bytes is not None:  # in force before the first allocation
            total = torch.cuda.get_device_properties(torch_device).total_memory
            share = max(0, budget_bytes - self.overhead_bytes) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, share), torch_device)
        self._h2d = torch.cuda.Stream(torch_device)
        self._d2h = torch.cuda.Stream(torch_device)
        self._begun: deque[Any] = deque()
        torch.cuda.reset_peak_memory_stats(torch_device)

    @override
    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        flat.untyped_storage().resize_(nbytes)

    @override
    def free(self, flat: torch.Tensor) -> None:
        flat.untyped_storage().resize_(0)

    @override
    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        self.h2d_bytes += host.numel()
        return self._copy(self._h2d, flat, host)

    @override
    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        self.d2h_bytes += host.numel()
        return self._copy(self._d2h, host, flat)

    def _copy(self, stream: torch.cuda.Stream, destination: torch.Tensor, source: torch.Tensor) -> Copy:
        stream.wait_event(torch.cuda.current_stream(self.torch_device).record_event())
        with torch.cuda.stream(stream):
            destination.copy_(source, non_blocking=True)
        return _CudaCopy(self, stream.record_event())

    @override
    def host_buffer(self, nbytes: int) -> torch.Tensor:
        # torch's pinned allocator rounds up to powers of two and can double host RAM, so plain memory is registered;
        # mapped, so that it has its pages to itself (a page cannot be registered twice).
        host = torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]
        code = int(_cudart().cudaHostRegister(host.data_ptr(), max(nbytes, 1), 0))
        if code != 0:
            raise Unstreamable(
                f"CUDA could not register {nbytes} bytes of host memory (cudaHostRegister error {code})",
                hint="raise the locked-memory limit (ulimit -l) of the worker",
            )
        return host

    @override
    def release_host_buffer(self, host: torch.Tensor) -> None:
        _cudart().cudaHostUnregister(host.data_ptr())

    @override
    def used_bytes(self) -> int:
        return self.overhead_bytes + torch.cuda.memory_allocated(self.torch_device)

    @override
    def peak_bytes(self) -> int:
        return self.overhead_bytes + torch.cuda.max_memory_allocated(self.torch_device)

    @override
    def charge(self, nbytes: int) -> None:
        pass  # the caching allocator counts by itself

    @override
    def pace(self) -> None:
        self._begun.append(torch.cuda.current_stream(self.torch_device).record_event())
        if len(self._begun) > _UNITS_QUEUED:
            self._begun.popleft().synchronize()

    @override
    def finish(self) -> None:
        self._h2d.synchronize()
        self._d2h.synchronize()

    @override
    def close(self) -> None:
        torch.cuda.current_stream(self.torch_device).wait_stream(self._h2d)
        torch.cuda.synchronize(self.torch_device)  # host masters are read by the CPU from here on


def _cudart() -> Any:
    return torch.cuda.cudart()

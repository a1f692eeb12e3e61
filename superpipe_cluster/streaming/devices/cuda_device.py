"""A CUDA GPU as a device to stream to: streams, events, registered host memory.

Owns the order of copies and computation. What the process may take of the GPU is `cuda_memory`'s.

[Note: stream order] Slabs are allocated and freed in the order of the *home* stream, the one that was current when the
device was opened, and each copy waits for events recorded on every stream that the program computes on. So a block that
the allocator hands out again is never overwritten while a kernel still reads it: the copy into it comes after those
kernels, and so does whatever the program allocates, for the home stream waits for the other streams before a slab is
freed. Neither `synchronize` nor `record_stream` is needed. A stream counts as one that the program computes on once it
was current when a unit was entered or a copy was started or waited for. A stream used only in the middle of units
begun on another is never seen; such a program is right if it forks and joins within the unit, as it must for its data.

[Note: pacing] Kernels are queued long before they run. A program that is many units ahead would choose what to evict
from a picture of the future device, and see every copy as still under way. So it waits, at the start of a unit, for the
unit before the last to have begun; one unit's kernels stay queued, which keeps the GPU busy.

[Note: spare] The allocator can be out of memory while the bytes of live tensors are within the budget: its free blocks
are in the wrong places, or a kernel wants work space for itself. Each time that happens a part of the budget is set
aside for good: nothing is fetched ahead into it, so that a step that ran out once does not run out each time.
"""

from __future__ import annotations

import contextlib
import resource
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import cuda
from typing_extensions import override

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.devices.cuda_memory import CONTEXT_BYTES, gpu_memory
from superpipe_cluster.streaming.devices.device import Copy, Device

__all__ = ["CONTEXT_BYTES", "CudaDevice"]

_UNITS_QUEUED = 2
_SPARE_PARTS = 32  # of the budget; one is set aside each time the allocator runs out
_EASY_SHARE = 0.8  # of the budget; with less in use at the worst moment it is kept with ease
_REGISTER_READ_ONLY = 8  # cudaHostRegisterReadOnly
_POISON = 0xFF  # every float format reads all-ones as NaN


class _CudaCopy(Copy):
    def __init__(self, device: CudaDevice, event: Any) -> None:
        self._device = device
        self._event = event

    def done(self) -> bool:
        return self._event.query()

    def finish(self) -> None:
        self._event.synchronize()

    def wait(self) -> None:
        # The host runs on; only the computation waits.
        for stream in self._device.streams():
            stream.wait_event(self._event)


class CudaDevice(Device):
    """One GPU, or the part of it that a budget gives. With `poison`, bytes not to be read read as NaN."""

    batches_in_flight = 2  # one for the unit that runs, one for the unit that is being queued
    registers = True

    def __init__(self, torch_device: torch.device, budget_bytes: int | None, *, poison: bool = False) -> None:
        if not cuda.is_available():
            raise Unstreamable(
                "there is no CUDA device here",
                hint='use device="cpu", a virtual device, or install a CUDA build of torch',
            )
        index = cuda.current_device() if torch_device.index is None else torch_device.index
        self.torch_device = torch.device(torch_device.type, index)
        self.stall_s = 0.0
        self.h2d_bytes = 0
        self.d2h_bytes = 0
        self._index = index
        self._poison = poison
        self._budget_bytes = budget_bytes
        self.spare_bytes = 0
        self._slab_bytes = 0
        self._closed = False
        self._registered: set[int] = set()
        self._gpu = gpu_memory(index)
        self._gpu.join(self)  # the cap is in force before the first allocation
        self.overhead_bytes = self._gpu.context.nbytes
        _OPEN.append(self)
        self._home = cuda.current_stream(index)
        self._streams: dict[Any, None] = {self._home: None}
        self._h2d = cuda.Stream(index)
        self._d2h = cuda.Stream(index)
        self._begun: deque[Any] = deque()
        cuda.reset_peak_memory_stats(index)

    # ---- memory -------------------------------------------------------------------------------------

    @property
    def budget_bytes(self) -> int | None:
        """Device bytes of everything; a new value caps the allocator at once."""
        return self._budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, nbytes: int | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        smaller = nbytes is not None and (self._budget_bytes is None or nbytes < self._budget_bytes)
        self._budget_bytes = nbytes
        self.spare_bytes = 0 if nbytes is None else min(self.spare_bytes, nbytes // 2)
        self._gpu.set_cap()
        if smaller:
            cuda.empty_cache()  # what has been evicted for it goes back to the driver, and so to the neighbours

    @override
    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        self.streams()
        with cuda.stream(self._home):  # the block belongs to the pool of the stream it is allocated on
            flat.untyped_storage().resize_(nbytes)
            self._slab_bytes += nbytes
            if self._poison:
                flat.fill_(_POISON)

    @override
    def free(self, flat: torch.Tensor) -> None:
        for stream in self.streams():
            if stream != self._home:
                self._home.wait_event(stream.record_event())
        with cuda.stream(self._home):
            if self._poison:
                flat.fill_(_POISON)
            self._slab_bytes -= flat.untyped_storage().nbytes()
            flat.untyped_storage().resize_(0)

    @override
    def used_bytes(self) -> int:
        neighbours = sum(one._slab_bytes for one in _OPEN if one is not self and one._index == self._index)
        return self.overhead_bytes + self._gpu.allocated_bytes() - neighbours

    @override
    def peak_bytes(self) -> int:
        return self.overhead_bytes + self._gpu.peak_allocated_bytes()

    @override
    def charge(self, nbytes: int) -> None:
        pass  # the caching allocator counts by itself

    @override
    def ran_out(self) -> None:
        if self._budget_bytes is not None:  # [Note: spare]
            part = max(1, self._budget_bytes // _SPARE_PARTS)
            self.spare_bytes = min(self.spare_bytes + part, self._budget_bytes // 2)

    # ---- order --------------------------------------------------------------------------------------

    def streams(self) -> list[Any]:
        """The streams that the program computes on, the current one among them."""
        stream = cuda.current_stream(self._index)
        if stream not in self._streams:
            stream.wait_event(
                self._home.record_event()
            )  # copies that have been waited for, it has waited for too
            self._streams[stream] = None
        return list(self._streams)

    @override
    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        self.h2d_bytes += host.numel()
        return self._copy(self._h2d, flat, host)

    @override
    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        self.d2h_bytes += host.numel()
        return self._copy(self._d2h, host, flat)

    def _copy(self, link: Any, destination: torch.Tensor, source: torch.Tensor) -> Copy:
        for stream in self.streams():
            link.wait_event(stream.record_event())
        with cuda.stream(link):
            destination.copy_(source, non_blocking=True)
        return _CudaCopy(self, link.record_event())

    @override
    def limits_itself(self) -> bool:
        return self._budget_bytes is None or self.peak_bytes() <= _EASY_SHARE * self._budget_bytes

    @override
    def pace(self) -> None:
        self.streams()
        self._begun.append(cuda.current_stream(self._index).record_event())
        if len(self._begun) > _UNITS_QUEUED:
            self._begun.popleft().synchronize()

    @override
    def finish(self) -> None:
        self._h2d.synchronize()
        self._d2h.synchronize()

    @override
    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for stream in self.streams():
            stream.wait_stream(self._h2d)
        cuda.synchronize(self._index)  # the CPU reads the host copies from here on
        _OPEN.remove(self)
        self._gpu.leave(self)

    # ---- host memory --------------------------------------------------------------------------------

    @override
    def register(self, host: torch.Tensor, *, read_only: bool = False) -> bool:
        """Let the GPU copy from and to `host` (`uint8[n]`, pages of its own) by itself.

        Where the system refuses, copies of `host` go through the driver's staging buffer: as right, but the program
        waits for each, and a warning names the limit. Not all systems can register memory that is read-only; for that
        the answer is enough.
        """
        if host.numel() == 0:
            return False
        address = _address(host)
        flags = _REGISTER_READ_ONLY if read_only else 0
        code = int(_runtime().cudaHostRegister(address, host.numel(), flags))
        if code == 0:
            self._registered.add(address)
            return True
        self._clear_error()
        if read_only:
            return False
        warnings.warn(
            f"CUDA could not register {host.numel()} bytes of host memory (cudaHostRegister: error {code}; "
            f"{_limits()}). They are copied through a staging buffer, which is slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return False

    @override
    def unregister(self, host: torch.Tensor) -> None:
        if _address(host) in self._registered:
            self._registered.remove(_address(host))
            if int(_runtime().cudaHostUnregister(_address(host))) != 0:
                self._clear_error()

    def _clear_error(self) -> None:
        # A call of the CUDA runtime that failed is remembered, and the next kernel that is launched, whoever's, would
        # be blamed for it. So one is launched here to take the blame.
        with contextlib.suppress(RuntimeError):
            torch.empty(1, device=self.torch_device).fill_(0)


def _address(host: torch.Tensor) -> int:
    # A tensor's own `data_ptr` asks the read guard, and a host copy that was handed out is guarded.
    return host.untyped_storage().data_ptr()


#: The devices that are open in this process; on one GPU they share an allocator.
_OPEN: list[CudaDevice] = []


def _runtime() -> Any:
    return cuda.cudart()


def _limits() -> str:
    """What may have kept memory from being locked, with its figures."""
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    figures = ["locked memory (ulimit -l): " + ("unlimited" if locked < 0 else f"{locked} bytes")]
    for name, path in (
        ("cgroup limit", "/sys/fs/cgroup/memory.max"),
        ("used", "/sys/fs/cgroup/memory.current"),
    ):
        try:
            figures.append(f"{name}: {Path(path).read_text().strip()}")
        except OSError:
            continue
    return ", ".join(figures)

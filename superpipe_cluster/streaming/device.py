"""The device that slabs are streamed to: its memory, its link, and the two kinds there are.

Owns allocation, copies and the count of bytes. It does not decide what moves when.

A *virtual device* is RAM that plays a GPU: a declared capacity and a link that copies in the background and takes the
time its speed allows. [Note: what a virtual device counts] Its ledger holds the slabs, the parts that always stay, and
every tensor that an operator returned and that is still alive; memory that a kernel uses only inside itself is not seen.
Room is made before bytes are charged, as a caching allocator does that frees and tries again, so the count never
passes the budget: either there is room, or the operator fails with `DeviceOutOfMemory`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from superpipe_cluster.errors import DeviceOutOfMemory, Unstreamable


@dataclass(frozen=True)
class VirtualDevice:
    """A declared device, served from RAM.

    Attributes:
        capacity_bytes: device memory, None for as much as there is RAM.
        link_bytes_per_s: speed of each direction of the link, None for as fast as memory is copied.
    """

    capacity_bytes: int | None = None
    link_bytes_per_s: float | None = None


class Copy(Protocol):
    """A copy under way."""

    def done(self) -> bool:
        """Whether the bytes have arrived."""
        ...

    def wait(self) -> None:
        """Let whatever the caller computes next come after the copy."""
        ...


class Device(Protocol):
    """What the engine needs of a device."""

    torch_device: torch.device
    budget_bytes: int | None
    stall_s: float
    h2d_bytes: int
    d2h_bytes: int
    batches_in_flight: int

    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        """Give the emptied storage of `flat` its `nbytes` back, contents undefined."""
        ...

    def free(self, flat: torch.Tensor) -> None:
        """Empty the storage of `flat`."""
        ...

    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        """Start host -> device."""
        ...

    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        """Start device -> host, after what has been computed so far."""
        ...

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        """Exactly `nbytes` of host memory that this device copies from fastest."""
        ...

    def release_host_buffer(self, host: torch.Tensor) -> None:
        """Undo what `host_buffer` did to the memory; the tensor itself stays valid."""
        ...

    def used_bytes(self) -> int:
        """Bytes in use now, of everything."""
        ...

    def peak_bytes(self) -> int:
        """Most bytes that were ever in use."""
        ...

    def charge(self, nbytes: int) -> None:
        """Count bytes that appeared outside `allocate` (negative: that went away)."""
        ...

    def pace(self) -> None:
        """Another unit is about to run: keep the program from deciding too far ahead of the computation."""
        ...

    def close(self) -> None:
        """Stop what runs in the background."""
        ...


# ---- virtual ------------------------------------------------------------------------------------------


class _VirtualCopy:
    def __init__(self, device: CpuDevice, work: Callable[[], Any], nbytes: int) -> None:
        self._arrived = threading.Event()
        self._device = device
        self._work = work
        self.nbytes = nbytes
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error  # told to whoever waits for the copy; the link goes on

    def arrive(self) -> None:
        self._arrived.set()

    def done(self) -> bool:
        return self._arrived.is_set()

    def wait(self) -> None:
        if not self._arrived.is_set():
            began = time.perf_counter()
            self._arrived.wait()
            self._device.stall_s += time.perf_counter() - began
        if self._error is not None:
            raise RuntimeError("a copy over the virtual link failed") from self._error


class _Link(threading.Thread):
    """One direction of a virtual link: copies in order, each taking at least `nbytes / speed`."""

    def __init__(self, name: str, bytes_per_s: float | None) -> None:
        super().__init__(name=name, daemon=True)
        self._bytes_per_s = bytes_per_s
        self._copies: queue.SimpleQueue[_VirtualCopy | None] = queue.SimpleQueue()
        self.start()

    def submit(self, copy: _VirtualCopy) -> _VirtualCopy:
        self._copies.put(copy)
        return copy

    def run(self) -> None:
        while (copy := self._copies.get()) is not None:
            began = time.perf_counter()
            copy.run()
            if self._bytes_per_s is not None:
                left = began + copy.nbytes / self._bytes_per_s - time.perf_counter()
                time.sleep(max(0.0, left))
            copy.arrive()

    def stop(self) -> None:
        self._copies.put(None)
        self.join()


_POISON = 0xFF  # every float format reads all-ones as NaN


class CpuDevice:
    """A virtual device. With `poison`, freed and not yet loaded bytes read as NaN."""

    batches_in_flight = 1

    def __init__(self, spec: VirtualDevice, budget_bytes: int | None, *, poison: bool = False) -> None:
        self.torch_device = torch.device("cpu")
        self.budget_bytes = budget_bytes if budget_bytes is not None else spec.capacity_bytes
        self.stall_s = 0.0
        self.h2d_bytes = 0
        self.d2h_bytes = 0
        self._poison = poison
        self._used = 0
        self._peak = 0
        self._host_to_device = _Link("spcluster-h2d", spec.link_bytes_per_s)
        self._device_to_host = _Link("spcluster-d2h", spec.link_bytes_per_s)

    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        self.charge(nbytes)
        flat.untyped_storage().resize_(nbytes)
        if self._poison:
            flat.fill_(_POISON)

    def free(self, flat: torch.Tensor) -> None:
        if self._poison:
            flat.fill_(_POISON)
        self.charge(-flat.untyped_storage().nbytes())
        flat.untyped_storage().resize_(0)

    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        self.h2d_bytes += host.numel()
        return self._host_to_device.submit(_VirtualCopy(self, lambda: flat.copy_(host), host.numel()))

    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        self.d2h_bytes += host.numel()
        return self._device_to_host.submit(_VirtualCopy(self, lambda: host.copy_(flat), host.numel()))

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def release_host_buffer(self, host: torch.Tensor) -> None:
        pass

    def used_bytes(self) -> int:
        return self._used

    def peak_bytes(self) -> int:
        return self._peak

    def charge(self, nbytes: int) -> None:
        used = self._used + nbytes
        if nbytes > 0 and self.budget_bytes is not None and used > self.budget_bytes:
            raise DeviceOutOfMemory(
                f"the device budget of {self.budget_bytes} bytes is {used - self.budget_bytes} bytes too small: "
                f"{self._used} in use, {nbytes} more needed",
                hint="give the job more gpu_memory, or make its batch or sequence shorter",
            )
        self._used = used
        self._peak = max(self._peak, used)

    def pace(self) -> None:
        pass  # the computation runs in the program's own thread

    def close(self) -> None:
        self._host_to_device.stop()
        self._device_to_host.stop()


# ---- CUDA -----------------------------------------------------------------------------------------------


class _CudaCopy:
    def __init__(self, device: CudaDevice, event: torch.cuda.Event) -> None:
        self._device = device
        self._event = event

    def done(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        # The host runs on; only the compute stream waits. Events only, never synchronize().
        torch.cuda.current_stream(self._device.torch_device).wait_event(self._event)


class CudaDevice:
    """A CUDA GPU.

    Slabs are allocated and freed in the order of the compute stream, and each copy waits for an event recorded on it,
    so a block that the allocator hands out again is never overwritten while a kernel still reads it. Neither
    `synchronize` nor `record_stream` is needed for that.

    [Note: pacing] Kernels are queued long before they run. A program that is many units ahead would choose what to evict
    from a picture of the future device, and see every copy as still under way. So it waits, at the start of a unit, for
    the unit before the last to have run; one unit's kernels stay queued, which keeps the GPU busy.
    """

    batches_in_flight = 2  # one for the unit that runs, one for the unit that is being queued

    def __init__(self, torch_device: torch.device, budget_bytes: int | None) -> None:
        if not torch.cuda.is_available():
            raise Unstreamable(
                "there is no CUDA device here", hint='use device="cpu", a virtual device, or install a CUDA build of torch'
            )
        self.torch_device = torch_device
        self.stall_s = 0.0
        self.h2d_bytes = 0
        self.d2h_bytes = 0
        total = torch.cuda.get_device_properties(torch_device).total_memory
        self.budget_bytes = budget_bytes
        if budget_bytes is not None:
            # In force before the first allocation; the context, which the allocator does not see, is part of the budget.
            context = total - torch.cuda.mem_get_info(torch_device)[0] if not torch.cuda.memory_reserved() else 0
            context = min(context, _CONTEXT_BYTES)
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, max(0, budget_bytes - context) / total), torch_device
            )
            self.budget_bytes = budget_bytes - context
        self._h2d = torch.cuda.Stream(torch_device)
        self._d2h = torch.cuda.Stream(torch_device)
        self._begun: deque[torch.cuda.Event] = deque()
        torch.cuda.reset_peak_memory_stats(torch_device)

    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        flat.untyped_storage().resize_(nbytes)

    def free(self, flat: torch.Tensor) -> None:
        flat.untyped_storage().resize_(0)

    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        self.h2d_bytes += host.numel()
        return self._copy(self._h2d, flat, host)

    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        self.d2h_bytes += host.numel()
        return self._copy(self._d2h, host, flat)

    def _copy(self, stream: torch.cuda.Stream, destination: torch.Tensor, source: torch.Tensor) -> Copy:
        stream.wait_event(torch.cuda.current_stream(self.torch_device).record_event())
        with torch.cuda.stream(stream):
            destination.copy_(source, non_blocking=True)
        return _CudaCopy(self, stream.record_event())

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        # torch's pinned allocator rounds up to powers of two and can double host RAM, so plain memory is registered.
        host = torch.empty(nbytes, dtype=torch.uint8)
        if nbytes:
            code = torch.cuda.cudart().cudaHostRegister(host.data_ptr(), nbytes, 0)
            if int(code) != 0:
                raise Unstreamable(
                    f"CUDA could not register {nbytes} bytes of host memory (cudaHostRegister error {int(code)})",
                    hint="raise the locked-memory limit (ulimit -l) of the worker",
                )
        return host

    def release_host_buffer(self, host: torch.Tensor) -> None:
        if host.numel():
            torch.cuda.cudart().cudaHostUnregister(host.data_ptr())

    def used_bytes(self) -> int:
        return torch.cuda.memory_allocated(self.torch_device)

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated(self.torch_device)

    def charge(self, nbytes: int) -> None:
        pass  # the caching allocator counts by itself

    def pace(self) -> None:
        self._begun.append(torch.cuda.current_stream(self.torch_device).record_event())
        if len(self._begun) > _UNITS_QUEUED:
            self._begun.popleft().synchronize()

    def close(self) -> None:
        torch.cuda.current_stream(self.torch_device).wait_stream(self._h2d)
        torch.cuda.synchronize(self.torch_device)  # host masters are read by the CPU from here on


_UNITS_QUEUED = 2

#: What a CUDA context may take at most before it is taken for a neighbour's memory (0.3-0.8 GiB is usual).
_CONTEXT_BYTES = 1 << 30


def open_device(
    device: str | torch.device | VirtualDevice, budget_bytes: int | None, *, poison: bool = False
) -> CpuDevice | CudaDevice:
    """The device meant by `device`, with its budget in force.

    Raises:
        Unstreamable: no such kind of device, or it is not there.
    """
    if isinstance(device, VirtualDevice):
        return CpuDevice(device, budget_bytes, poison=poison)
    torch_device = torch.device(device)
    if torch_device.type == "cpu":
        return CpuDevice(VirtualDevice(), budget_bytes, poison=poison)
    if torch_device.type == "cuda":
        return CudaDevice(torch_device, budget_bytes)
    raise Unstreamable(f"cannot stream to a {torch_device.type!r} device", hint='use "cuda:0" or "cpu"')

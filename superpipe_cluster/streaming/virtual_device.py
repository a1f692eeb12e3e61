"""A virtual device: RAM that plays a GPU, with a declared capacity and a link of declared speed.

Copies run in the background and take the time that the link allows, so overlap is real and can be measured without a
GPU. [Note: what a virtual device counts] Its ledger holds the slabs, the parts that always stay, and every tensor that
an operator returned and that is still alive; memory that a kernel uses only inside itself is not seen. Room is made
before bytes are charged, as a caching allocator does that frees and tries again, so the count never passes the budget:
either there is room, or the operator fails with `DeviceOutOfMemory`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from superpipe_cluster.errors import DeviceOutOfMemory
from superpipe_cluster.streaming.device import Copy, Device


@dataclass(frozen=True)
class VirtualDevice:
    """A declared device, served from RAM.

    Attributes:
        capacity_bytes: device memory, None for as much as there is RAM.
        link_bytes_per_s: speed of each direction of the link, None for as fast as memory is copied.
    """

    capacity_bytes: int | None = None
    link_bytes_per_s: float | None = None


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


class CpuDevice(Device):
    """The share of a virtual device that one budget gives. With `poison`, bytes not to be read read as NaN."""

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

    @override
    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        self.charge(nbytes)
        flat.untyped_storage().resize_(nbytes)
        if self._poison:
            flat.fill_(_POISON)

    @override
    def free(self, flat: torch.Tensor) -> None:
        if self._poison:
            flat.fill_(_POISON)
        self.charge(-flat.untyped_storage().nbytes())
        flat.untyped_storage().resize_(0)

    @override
    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        self.h2d_bytes += host.numel()
        return self._host_to_device.submit(_VirtualCopy(self, lambda: flat.copy_(host), host.numel()))

    @override
    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        self.d2h_bytes += host.numel()
        return self._device_to_host.submit(_VirtualCopy(self, lambda: host.copy_(flat), host.numel()))

    @override
    def host_buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    @override
    def release_host_buffer(self, host: torch.Tensor) -> None:
        pass

    @override
    def used_bytes(self) -> int:
        return self._used

    @override
    def peak_bytes(self) -> int:
        return self._peak

    @override
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

    @override
    def pace(self) -> None:
        pass  # the computation runs in the program's own thread

    @override
    def close(self) -> None:
        self._host_to_device.stop()
        self._device_to_host.stop()

"""A virtual device: RAM that plays a GPU, with a declared capacity and a link of declared speed.

Copies run in the background and take the time that the link allows, so overlap is real and can be measured without a
GPU. [Note: what a virtual device counts] Its ledger holds the slabs, the parts that always stay, and every tensor that
an operator returned and that is still alive; memory that a kernel uses only inside itself is not seen. Room is made
before bytes are charged, as a caching allocator does that frees and tries again, so the count never passes the budget:
either there is room, or the operator fails with `DeviceOutOfMemory`.
"""

from __future__ import annotations

import fcntl
import os
import queue
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from superpipe_cluster.streaming.devices.counted_device import CountedDevice
from superpipe_cluster.streaming.devices.device import Copy


@dataclass(frozen=True)
class VirtualDevice:
    """A declared device, served from RAM.

    Attributes:
        capacity_bytes: device memory, None for as much as there is RAM.
        link_bytes_per_s: speed of each direction of the link, None for as fast as memory is copied.
        link_clock: a file in which the processes that share this device keep when its link is free again; None for a
            link of one's own.
    """

    capacity_bytes: int | None = None
    link_bytes_per_s: float | None = None
    link_clock: str | None = None


class _VirtualCopy:
    def __init__(self, device: CpuDevice, work: Callable[[], Any], nbytes: int) -> None:
        self._arrived = threading.Event()
        self._device = device
        self._work: Callable[[], Any] | None = work
        self.nbytes = nbytes
        self._error: BaseException | None = None

    def run(self) -> None:
        assert self._work is not None
        try:
            self._work()
        except Exception as error:
            self._error = error  # told to whoever waits for the copy; the link goes on
        self._work = None  # it knows the memory, and an idle link its last copy

    def arrive(self) -> None:
        self._arrived.set()

    def done(self) -> bool:
        return self._arrived.is_set()

    def wait(self) -> None:
        if not self._arrived.is_set():
            began = time.perf_counter()
            self._arrived.wait()
            self._device.stall_s += time.perf_counter() - began
        self.finish()

    def finish(self) -> None:
        self._arrived.wait()
        if self._error is not None:
            raise RuntimeError("a copy over the virtual link failed") from self._error


class _Wire:
    """When one direction of a link is free again, agreed among all processes that share it.

    Each copy books its time behind those booked before it, whoever's they are, so neighbours take turns and together
    get no more than the link's speed. The monotonic clock is one clock for all processes of a machine.
    """

    _FORMAT = struct.Struct("d")

    def __init__(self, bytes_per_s: float, path: str | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if path is not None else None

    def book(self, nbytes: int) -> float:
        """The moment (of `time.monotonic`) at which a copy of `nbytes` that is ready now will have crossed."""
        if self._file is None:
            self._free_at = self._after(self._free_at, nbytes)
            return self._free_at
        fcntl.flock(self._file, fcntl.LOCK_EX)  # let go by the kernel if this process dies
        try:
            stored = os.pread(self._file, self._FORMAT.size, 0)
            free_at = self._FORMAT.unpack(stored)[0] if len(stored) == self._FORMAT.size else 0.0
            # Nothing books further ahead than its own copy: a time far off is of another boot of the machine.
            free_at = free_at if free_at < time.monotonic() + _LONGEST_QUEUE_S else 0.0
            free_at = self._after(free_at, nbytes)
            os.pwrite(self._file, self._FORMAT.pack(free_at), 0)
            return free_at
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _after(self, free_at: float, nbytes: int) -> float:
        return max(free_at, time.monotonic()) + nbytes / self._bytes_per_s

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


#: No queue of copies that each process starts one after the other can be longer than this.
_LONGEST_QUEUE_S = 3600.0


class _Link(threading.Thread):
    """One direction of a virtual link: copies in order, each taking at least `nbytes / speed`."""

    def __init__(self, name: str, bytes_per_s: float | None, clock: str | None) -> None:
        super().__init__(name=name, daemon=True)
        self._wire = _Wire(bytes_per_s, clock) if bytes_per_s is not None else None
        self._copies: queue.SimpleQueue[_VirtualCopy | None] = queue.SimpleQueue()
        self.start()

    def submit(self, copy: _VirtualCopy) -> _VirtualCopy:
        self._copies.put(copy)
        return copy

    def run(self) -> None:
        while (copy := self._copies.get()) is not None:
            arrival = self._wire.book(copy.nbytes) if self._wire is not None else 0.0
            copy.run()
            time.sleep(max(0.0, arrival - time.monotonic()))
            copy.arrive()
        if self._wire is not None:
            self._wire.close()

    def stop(self) -> None:
        self._copies.put(None)
        self.join()


_POISON = 0xFF  # every float format reads all-ones as NaN


class CpuDevice(CountedDevice):
    """The share of a virtual device that one budget gives. With `poison`, bytes not to be read read as NaN."""

    batches_in_flight = 1

    def __init__(self, spec: VirtualDevice, budget_bytes: int | None, *, poison: bool = False) -> None:
        super().__init__(budget_bytes if budget_bytes is not None else spec.capacity_bytes)
        self.torch_device = torch.device("cpu")
        self._poison = poison
        clocks = (
            (None, None) if spec.link_clock is None else (f"{spec.link_clock}.h2d", f"{spec.link_clock}.d2h")
        )
        self._host_to_device = _Link("spcluster-h2d", spec.link_bytes_per_s, clocks[0])
        self._device_to_host = _Link("spcluster-d2h", spec.link_bytes_per_s, clocks[1])

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
    def ran_out(self) -> None:
        pass  # its count is all there is of its memory

    @override
    def limits_itself(self) -> bool:
        return self.budget_bytes is None

    @override
    def pace(self) -> None:
        pass  # the computation runs in the program's own thread

    @override
    def finish(self) -> None:
        for link in (self._host_to_device, self._device_to_host):
            link.submit(_VirtualCopy(self, lambda: None, 0)).finish()

    @override
    def close(self) -> None:
        self._host_to_device.stop()
        self._device_to_host.stop()

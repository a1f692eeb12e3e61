"""Devices whose bytes are counted here, because no allocator counts them.

Owns the count and the limit. Where the memory is, and how long a copy takes, is said by the devices themselves.
"""

from __future__ import annotations

from typing_extensions import override

from superpipe_cluster.errors import DeviceOutOfMemory
from superpipe_cluster.streaming.devices.device import Device


class CountedDevice(Device):
    """A device that knows what it holds from `charge()` alone; the count never passes the budget."""

    def __init__(self, budget_bytes: int | None, overhead_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.overhead_bytes = overhead_bytes
        self.stall_s = 0.0
        self.h2d_bytes = 0
        self.d2h_bytes = 0
        self._used = overhead_bytes
        self._peak = overhead_bytes

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
        if used > self._peak:
            self._peak = used

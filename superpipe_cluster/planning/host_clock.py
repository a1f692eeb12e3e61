"""Updates on the host, on a clock: when each would begin and end.

Owns the time of the host's threads. What waits for an update (a load of the weights, the next step) waits for it in the
engine as it would for a real one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from concurrent.futures import Future

from typing_extensions import override

from superpipe_cluster.streaming.devices.clock_device import ClockCopy, ClockDevice
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.training.host_steps import threads


class _Update(Future[None]):
    def __init__(self, device: ClockDevice, ends_at_s: float) -> None:
        super().__init__()
        self._device = device
        self.ends_at_s = ends_at_s

    @override
    def done(self) -> bool:
        return self._device.now_s >= self.ends_at_s

    @override
    def exception(self, timeout: float | None = None) -> None:
        self._device.stall_until(self.ends_at_s)


class HostClock:
    """The threads that update on the host."""

    def __init__(self, device: ClockDevice) -> None:
        self._device = device
        self._free_at_s = [0.0] * threads()  # a heap: when each thread is free again
        self._last_ends_at_s = 0.0

    def update(self, slabs: Sequence[Slab], seconds: float) -> None:
        """An update of `slabs`, weights first, is handed to the threads; its copies are on their way."""
        copies = [slab.storing for slab in slabs[1:]] + [slabs[0].last_load]
        arrived_at_s = max((copy.arrives_at_s for copy in copies if isinstance(copy, ClockCopy)), default=0.0)
        begins_at_s = max(self._device.now_s, arrived_at_s, heapq.heappop(self._free_at_s))
        ends_at_s = begins_at_s + seconds
        heapq.heappush(self._free_at_s, ends_at_s)
        self._last_ends_at_s = max(self._last_ends_at_s, ends_at_s)
        for slab in slabs:
            slab.host_work, slab.ready = _Update(self._device, ends_at_s), False

    def finish(self) -> None:
        """The program waits for all of them."""
        self._device.stall_until(self._last_ends_at_s)

"""Which device bytes are not ours to give: `picture.Foreign` over the machine and the home directory.

Owns telling our own processes from others'. The readings are `machine.foreign`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from superpipe_cluster.execution import remains
from superpipe_cluster.head.home import Home
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.machine import Device, foreign, processes

#: Seconds for which a GPU's reading is good: the driver takes milliseconds for one.
_GOOD_FOR_S = 2.0


class Neighbours:
    """Called by one thread.

    Args:
        home: the cluster's directory.
        monotonic: a clock of seconds that never goes back.
    """

    def __init__(self, home: Home, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._home = home
        self._monotonic = monotonic
        #: Device -> when it was read, what was promised then, and what others held.
        self._readings: dict[str, tuple[float, int, int]] = {}

    def __call__(self, device: Device, jobs: Sequence[JobRecord]) -> int:
        """See `picture.Foreign`."""
        if device.kind == "virtual":
            return foreign.on_virtual(device, self._home.root)
        # What a worker has just given back may not have left the GPU yet. Beyond all promises, it counts as somebody
        # else's until the driver says that it is free.
        promised_bytes = sum(record.promised_bytes for record in jobs)
        read_s, promised_then, foreign_bytes = self._readings.get(device.id, (float("-inf"), -1, 0))
        if promised_then != promised_bytes or self._monotonic() - read_s >= _GOOD_FOR_S:
            foreign_bytes = foreign.on_gpu(device, self._ours(jobs), promised_bytes)
            self._readings[device.id] = self._monotonic(), promised_bytes, foreign_bytes
        return foreign_bytes

    def _ours(self, jobs: Sequence[JobRecord]) -> frozenset[int]:
        children = (remains.last_child(self._home.job(record.id)) for record in jobs)
        groups = {child.pid for child in children if child is not None}
        return frozenset(one.pid for one in processes.all_processes() if one.group in groups)

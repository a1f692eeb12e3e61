"""Device bytes that processes hold which are not ours.

Owns the reading. A GPU tells who holds what; for a virtual device it is written in a file, so that tests and trials can
play the neighbour. What is done about it is `scheduling`'s.

[Note: whose memory] The driver names processes by number. Inside a container these numbers may be the host's, and then
our own jobs look like strangers. So a process counts as foreign only when its number is that of a living process here
that is not ours, and, beside that, whatever is in use beyond all that was promised to our jobs.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from superpipe_cluster.machine import nvml, processes
from superpipe_cluster.machine.devices import Device


def on_virtual(device: Device, home: Path) -> int:
    """Bytes that `foreign-<device>.json` in the home says are taken: `{"bytes": N}`; 0 without such a file."""
    try:
        told = json.loads((home / f"foreign-{device.id}.json").read_text(encoding="utf-8"))
        return max(0, int(told["bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def on_gpu(device: Device, ours: Collection[int], promised_bytes: int) -> int:
    """Bytes of a GPU's part that is the cluster's (`device.capacity_bytes`) which others hold.

    Args:
        device: the GPU, or the part of it that was given to the cluster.
        ours: pids of all processes of our jobs.
        promised_bytes: what our jobs on it may hold together.
    """
    reading = nvml.memory(device.id)
    if reading is None:
        return 0
    named = sum(
        held_bytes
        for pid, held_bytes in reading.by_process.items()
        if pid not in ours and processes.process(pid) is not None
    )
    foreign_bytes = max(named, reading.used_bytes - promised_bytes)
    # Of a GPU that is ours in part, the rest is there for others.
    return max(0, foreign_bytes - (reading.usable_bytes - device.capacity_bytes))

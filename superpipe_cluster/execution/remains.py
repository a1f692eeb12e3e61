"""Making sure that an attempt is gone: its process group, and on a GPU its memory.

Owns the confirmation that must come before a lost worker's bytes are given to others. A worker that cannot be
reached is not yet a free device.
"""

from __future__ import annotations

import signal

from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.machine import nvml, processes
from superpipe_cluster.machine.devices import Device


def clear(folder: JobFolder, device: Device | None) -> bool:
    """Kill what is left of the folder's newest child; True once nothing is.

    Args:
        folder: the job's folder.
        device: where the attempt ran, to be asked as well; None when that is not known any more.
    """
    child = last_child(folder)
    if child is None:
        return True
    members = processes.group_members(child)
    if members:
        processes.send(members, signal.SIGKILL)
        return False
    # The driver gives memory back a moment after the process has left the process table.
    return device is None or device.kind != "cuda" or child.pid not in nvml.processes_on(device.id)


def last_child(folder: JobFolder) -> processes.Birth | None:
    """The child that was started last in the folder; None before the first."""
    try:
        pid, started = folder.pid.read_text().split()
        return processes.Birth(int(pid), int(started))
    except (OSError, ValueError):
        return None

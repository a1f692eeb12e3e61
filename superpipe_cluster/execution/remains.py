"""Making sure that an attempt is gone: its actor, its process group, and on a GPU its memory.

Owns the confirmation that must come before a lost worker's bytes are given to others. A worker that cannot be
reached is not yet a free device.
"""

from __future__ import annotations

import signal

from superpipe_cluster.execution.layout import JobFolder, read_birth
from superpipe_cluster.machine import nvml, processes
from superpipe_cluster.machine.devices import Device


def clear(folder: JobFolder, device: Device | None) -> bool:
    """Kill what is left of the folder's newest attempt; True once nothing is.

    Args:
        folder: the job's folder.
        device: where the attempt ran, to be asked as well; None when that is not known any more.
    """
    # [Note: sleepers] Ray asks an actor to end, and one that is stopped (SIGSTOP) does not hear it. It would wake up
    # some day, as the parent of a child that is told to go on.
    actor, child = read_birth(folder.actor), last_child(folder)
    left = [actor.pid] if actor is not None and processes.is_alive(actor) else []
    if child is not None:
        left += processes.group_members(child)
    if left:
        processes.send(left, signal.SIGKILL)
        return False
    # The driver gives memory back a moment after the process has left the process table.
    if child is None or device is None or device.kind != "cuda":
        return True
    return child.pid not in nvml.processes_on(device.id)


def last_child(folder: JobFolder) -> processes.Birth | None:
    """The child that was started last in the folder; None before the first."""
    return read_birth(folder.pid)

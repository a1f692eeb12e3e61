"""What the hardware is and holds: devices, host memory, processes.

Owns the readings (NVML, /proc, cgroups) and the description of a device. Decides nothing: who gets which
bytes is `scheduling`, what runs on them `execution`.
"""

from __future__ import annotations

from superpipe_cluster.machine.devices import Device, discover, parse_device
from superpipe_cluster.machine.host import HostMemory, host_memory

__all__ = ["Device", "HostMemory", "discover", "host_memory", "parse_device"]

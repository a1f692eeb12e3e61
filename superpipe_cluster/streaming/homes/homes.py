"""Homes: where the master copies of slabs live in host memory, and how they get from there to the device and back.

Owns the contract, and the plainest home: private memory, registered in place by the device. The others are
`shared_home` (one copy for all processes that stream the same frozen weights) and `disk_home` (in a file).

The home gives the memory, exactly as many bytes as the slab has; the device registers it. A home outlives its engine
only as memory that the program still holds tensors of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from superpipe_cluster.streaming.devices.device import Copy, Device
from superpipe_cluster.streaming.homes.contents import Contents
from superpipe_cluster.streaming.slab import Slab

HomeName = Literal["pinned", "shared", "disk"]


class Home:
    """The host copies of one engine's slabs, in private memory.

    Attributes:
        device: who copies from and to them.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._slabs: dict[Slab, None] = {}

    # ---- memory -----------------------------------------------------------------------------------

    def give(self, slab: Slab) -> torch.Tensor:
        """Memory for the host copy of `slab`, `uint8[slab.nbytes]`, zero; ask `slab.ensure_host` for it."""
        host = self.device.host_buffer(slab.nbytes)
        self.device.register(host)
        self._slabs[slab] = None
        return host

    def fill(self, slab: Slab, contents: Contents) -> None:
        """Make the host copy of a slab of weights: what `contents` has of its parameters, the gaps between them zero.

        Raises:
            BadInput: `contents` comes from a file that cannot be read.
            HostMemoryTooSmall: there is no room.
        """
        slab.ensure_host(self)
        try:
            for parameter in slab.views:
                contents.write(parameter, slab.host_view(parameter))
        except BaseException:
            self.let_go(slab)
            raise

    def let_go(self, slab: Slab) -> None:
        """Streaming of `slab` ends: its host copy is ordinary writable memory, as long as there are tensors on it."""
        if slab.host is not None and slab in self._slabs:
            del self._slabs[slab]
            self.device.unregister(slab.host)

    def before_write(self, slab: Slab) -> None:
        """The host copy of `slab` is about to be written."""

    # ---- copies -----------------------------------------------------------------------------------

    def load(self, slab: Slab) -> Copy:
        """Start host -> device."""
        assert slab.host is not None
        return self.device.load(slab.flat, slab.host)

    def store(self, slab: Slab) -> Copy:
        """Start device -> host, after what has been computed so far."""
        host = slab.ensure_host(self)
        self.before_write(slab)
        return self.device.store(host, slab.flat)

    def finish(self) -> None:
        """Return once all copies have arrived, for a host that is about to overwrite what they read."""
        self.device.finish()

    def close(self) -> None:
        """The engine is dissolved, and its slabs let go of."""

    # ---- counting ---------------------------------------------------------------------------------

    @property
    def host_bytes(self) -> int:
        """Bytes of RAM: of all master copies in it, those shared with other processes too, and of buffers."""
        return sum(slab.nbytes for slab in self._slabs)

    @property
    def shared_bytes(self) -> int:
        """How many of `host_bytes` are in copies that other processes may use as well."""
        return 0

    @property
    def disk_bytes(self) -> int:
        """Bytes of master copies in files."""
        return 0


def make_home(name: HomeName, device: Device, folder: Path | None = None) -> Home:
    """The home called `name` for the slabs of `device`.

    Args:
        name: which one.
        device: who copies from and to it.
        folder: where `disk` has its file; default: the system's folder for temporary files.

    Raises:
        FileMissing: there is no such folder.
        BadInput: `shared` cannot have its registry.
    """
    if name == "shared":
        from superpipe_cluster.streaming.homes.shared_home import SharedHome

        return SharedHome(device)
    if name == "disk":
        from superpipe_cluster.streaming.homes.disk_home import DiskHome

        return DiskHome(device, folder)
    return Home(device)

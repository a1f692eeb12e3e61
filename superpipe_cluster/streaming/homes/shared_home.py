"""The home of host copies that all processes of a user share on one machine: frozen weights, once in RAM.

Owns what is shared and what is not. Only slabs of weights none of which requires a gradient are shared; gradients,
optimizer state and everything trainable are private. What such a copy is called follows from its bytes, or from the
files that they come from, so no process has to know of another; see `shared_copies` for who keeps them.

[Note: copy on write] A full copy cannot be written by anyone. If the program writes to weights that were frozen, their
slab's mapping becomes a private one of the same copy at the same address: the kernel gives a page of its own to what is
written. A CPU can have that from the start. Memory that a GPU registers is mapped shared and read-only until then,
because registering a private mapping would copy all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable

import torch
from typing_extensions import override

from superpipe_cluster.streaming.devices.device import Copy, Device
from superpipe_cluster.streaming.homes.contents import Contents
from superpipe_cluster.streaming.homes.homes import Home
from superpipe_cluster.streaming.homes.memory import HostMemory
from superpipe_cluster.streaming.homes.shared_copies import SharedCopies
from superpipe_cluster.streaming.homes.staging import Staging
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.units import Unit


class SharedHome(Home):
    """Frozen weights in shared copies, the rest in private memory."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self._copies = SharedCopies()
        self._shared: dict[Slab, tuple[HostMemory, int]] = {}  # with the copy's descriptor
        self._unregistered: set[Slab] = set()
        self._staging = Staging(device)

    @override
    def fill(self, slab: Slab, contents: Contents) -> None:
        if any(parameter.requires_grad for parameter in slab.views):
            super().fill(slab, contents)
            return

        def write(host: torch.Tensor) -> None:
            for parameter in slab.views:
                contents.write(parameter, slab.view_on(host, parameter))

        file = self._copies.find_or_fill(_name_of(slab, contents), slab.nbytes, write)
        memory = self._map(file, slab.nbytes)
        slab.host = memory.tensor
        self._shared[slab] = memory, file
        if self.device.registers and not self.device.register(slab.host, read_only=True):
            self._unregistered.add(slab)

    def _map(self, file: int, nbytes: int) -> HostMemory:
        if not self.device.registers:  # [Note: copy on write]
            return HostMemory.of_file(file, nbytes, shared=False, writable=True)
        # Through a descriptor that can only read: older kernels refuse to share a sealed copy otherwise.
        reader = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return HostMemory.of_file(reader, nbytes, shared=True, writable=False)
        finally:
            os.close(reader)

    @override
    def before_write(self, slab: Slab) -> None:
        if slab not in self._shared:
            return
        assert slab.host is not None
        self.finish()
        self._make_private(slab)
        self._slabs[slab] = None
        self.device.register(slab.host)

    @override
    def let_go(self, slab: Slab) -> None:
        if slab in self._shared:
            self._make_private(slab)
        else:
            super().let_go(slab)

    def _make_private(self, slab: Slab) -> None:
        memory, file = self._shared.pop(slab)
        assert slab.host is not None
        if slab in self._unregistered:
            self._unregistered.remove(slab)
        else:
            self.device.unregister(slab.host)
        if self.device.registers:
            memory.make_private(file)
        self._copies.let_go(file)

    @override
    def load(self, slab: Slab) -> Copy:
        if slab not in self._unregistered:
            return super().load(slab)
        memory, _ = self._shared[slab]

        def read(content: memoryview, at: int) -> None:
            content[:] = memory.bytes_at(at, len(content))

        return self._staging.load(slab, read)

    @override
    def finish(self) -> None:
        self._staging.finish()
        super().finish()

    @override
    def close(self) -> None:
        self._staging.close()
        self._copies.close()

    @property
    @override
    def host_bytes(self) -> int:
        return super().host_bytes + self.shared_bytes + self._staging.host_bytes

    @property
    @override
    def shared_bytes(self) -> int:
        return sum(slab.nbytes for slab in self._shared)


def split_by_training(units: Iterable[Unit]) -> list[Unit]:
    """`units` with the frozen and the trainable parameters of each in units of their own.

    A unit with both (a block with a LoRA adapter in it) would be private as a whole, and the base weights are what
    sharing is for.
    """
    split: list[Unit] = []
    for unit in units:
        trainable = {name: one for name, one in unit.parameters.items() if one.requires_grad}
        frozen = {name: one for name, one in unit.parameters.items() if not one.requires_grad}
        if trainable and frozen:
            split += [Unit(unit.name, frozen), Unit(f"{unit.name} (trainable)", trainable)]
        else:
            split.append(unit)
    return split


def _name_of(slab: Slab, contents: Contents) -> str:
    name = hashlib.blake2b(digest_size=32)
    for parameter, offset in slab.offsets.items():
        name.update(f"{offset} {parameter.nbytes} ".encode())
        contents.identify(parameter, name.update)
    return name.hexdigest()

"""The home of host copies on a disk: one file, and a few buffers through which everything passes.

Owns the file. It has no name from its first byte on, so it is gone with the process, however that ends, and with the
last tensor that the program holds of it.

Copies read and write the file piece by piece (`staging`). What the program sees of a host copy (an entry of a state
dict, a parameter after `close()`) is the file itself, mapped: pages that are looked at come by themselves, and leave
when memory is short.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import torch
from typing_extensions import override

from superpipe_cluster.errors import FileMissing, HostMemoryTooSmall
from superpipe_cluster.streaming.devices.device import Copy, Device
from superpipe_cluster.streaming.homes.contents import Contents
from superpipe_cluster.streaming.homes.homes import Home
from superpipe_cluster.streaming.homes.memory import HostMemory, return_large_blocks
from superpipe_cluster.streaming.homes.staging import Staging
from superpipe_cluster.streaming.slab import Slab


class DiskHome(Home):
    """Host copies in a file in `folder`."""

    def __init__(self, device: Device, folder: Path | None) -> None:
        super().__init__(device)
        place = Path(tempfile.gettempdir()) if folder is None else folder
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(  # noqa: SIM115 - closed in close()
                prefix="superpipe_cluster-", dir=place, buffering=0
            )
        except OSError as error:
            raise FileMissing(
                f"host_folder: no file can be made in {place}: {error.strerror}",
                hint="name a folder that exists and that this user may write to",
            ) from error
        return_large_blocks()
        self._place = place
        self._end = 0
        self._parts: dict[Slab, tuple[HostMemory, int]] = {}  # with where it starts in the file
        self._staging = Staging(device)

    @override
    def give(self, slab: Slab) -> torch.Tensor:
        start, self._end = self._end, self._end + -(-slab.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            os.posix_fallocate(self._file.fileno(), start, self._end - start)
        except OSError as error:
            raise HostMemoryTooSmall(
                f"host_folder: no room for {slab.nbytes} more bytes in {self._place}: {error.strerror}",
                hint="free space there, or name a folder on another disk",
            ) from error
        memory = HostMemory.of_file(
            self._file.fileno(), slab.nbytes, offset_bytes=start, shared=True, writable=True
        )
        self._parts[slab] = memory, start
        return memory.tensor

    @override
    def fill(self, slab: Slab, contents: Contents) -> None:
        super().fill(slab, contents)
        self._parts[slab][0].leave_to_file()

    @override
    def let_go(self, slab: Slab) -> None:
        self._parts.pop(slab, None)

    @override
    def load(self, slab: Slab) -> Copy:
        memory, start = self._parts[slab]
        memory.leave_to_file()
        return self._staging.load(slab, lambda content, at: self._read(content, start + at))

    @override
    def store(self, slab: Slab) -> Copy:
        slab.ensure_host(self)
        memory, start = self._parts[slab]
        memory.leave_to_file()
        return self._staging.store(slab, lambda content, at: self._write(content, start + at))

    @override
    def finish(self) -> None:
        self._staging.finish()
        super().finish()

    @override
    def close(self) -> None:
        self._staging.close()
        self._file.close()

    @property
    @override
    def host_bytes(self) -> int:
        return self._staging.host_bytes

    @property
    @override
    def disk_bytes(self) -> int:
        return sum(slab.nbytes for slab in self._parts)

    def _read(self, content: memoryview, start: int) -> None:
        while content:
            count = os.preadv(self._file.fileno(), [content], start)
            if count == 0:
                raise OSError("the file of the host copies was cut short")
            content, start = content[count:], start + count

    def _write(self, content: memoryview, start: int) -> None:
        while content:
            count = os.pwrite(self._file.fileno(), content, start)
            content, start = content[count:], start + count

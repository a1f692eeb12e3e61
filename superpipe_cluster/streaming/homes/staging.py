"""Copies between a device and bytes that it cannot reach by itself, piece by piece through a few registered buffers.

Owns the two threads and their buffers. Where the bytes really are (a file, memory that could not be registered) is told
by whoever asks for a copy.

Two pieces are under way in each direction: while one crosses the link, the next is read, or the last is written. So
little host memory is enough to keep both the link and the disk busy.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from typing_extensions import override

from superpipe_cluster.streaming.devices.device import Copy, Device
from superpipe_cluster.streaming.homes.memory import HostMemory
from superpipe_cluster.streaming.slab import PIECE_BYTES, Slab

#: `transfer(bytes, offset_bytes)` fills or takes a part of a slab's host copy.
Transfer = Callable[[memoryview, int], None]

_BUFFERS = 2  # per direction


class Staging:
    """A way to and from one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._directions: dict[str, _Direction] = {}

    @property
    def host_bytes(self) -> int:
        """Bytes of the buffers."""
        return len(self._directions) * _BUFFERS * PIECE_BYTES

    def load(self, slab: Slab, read: Transfer) -> Copy:
        """Start host -> device; `read` is called in another thread, in order of the offsets."""
        return self._submit("load", _StagedCopy(self._device, slab, read))

    def store(self, slab: Slab, write: Transfer) -> Copy:
        """Start device -> host; `write` is called in another thread, in order of the offsets."""
        return self._submit("store", _StagedCopy(self._device, slab, write))

    def finish(self) -> None:
        """Return once every copy has arrived."""
        for direction in self._directions.values():
            direction.finish()

    def close(self) -> None:
        """End the threads, after what they still have to do."""
        for direction in self._directions.values():
            direction.stop()
        self._directions = {}

    def _submit(self, name: str, copy: _StagedCopy) -> Copy:
        if name not in self._directions:
            kind = _Loads if name == "load" else _Stores
            self._directions[name] = kind(self._device)
        self._directions[name].copies.put(copy)
        return copy


class _StagedCopy(Copy):
    def __init__(self, device: Device, slab: Slab, transfer: Transfer) -> None:
        self.pieces = slab.pieces
        self.transfer = transfer
        self.last: Copy | None = None  # of a load: the piece that arrives last
        self.error: BaseException | None = None
        self.through = threading.Event()
        self._device = device

    @override
    def done(self) -> bool:
        return self.through.is_set() and (self.last is None or self.last.done())

    @override
    def wait(self) -> None:
        if not self.through.is_set():
            began = time.perf_counter()
            self.through.wait()
            self._device.stall_s += time.perf_counter() - began
        self._raise()
        if self.last is not None:
            self.last.wait()

    @override
    def finish(self) -> None:
        self.through.wait()
        self._raise()
        if self.last is not None:
            self.last.finish()

    def _raise(self) -> None:
        if self.error is not None:
            raise RuntimeError("a copy from or to a host copy failed") from self.error


class _Direction(threading.Thread):
    """One thread with its buffers; copies are made in order."""

    def __init__(self, device: Device) -> None:
        super().__init__(name=f"spcluster-{type(self).__name__.strip('_').lower()}", daemon=True)
        self.copies: queue.SimpleQueue[_StagedCopy | None] = queue.SimpleQueue()
        self._device = device
        self._buffers = [
            HostMemory.anonymous(PIECE_BYTES, shared_with_children=device.registers) for _ in range(_BUFFERS)
        ]
        for buffer in self._buffers:
            device.register(buffer.tensor)
        self._under_way: list[Copy | None] = [None] * _BUFFERS
        self._next = 0
        self.start()

    @override
    def run(self) -> None:
        while (copy := self.copies.get()) is not None:
            try:
                self.make(copy)
            except Exception as error:
                copy.error = error  # told to whoever waits for the copy; the thread goes on
            copy.through.set()

    def make(self, copy: _StagedCopy) -> None:
        """Make one copy, or have it under way."""
        raise NotImplementedError

    def free_buffer(self) -> int:
        """The buffer to use next, once nothing reads it any more."""
        chosen, self._next = self._next, (self._next + 1) % _BUFFERS
        if (copy := self._under_way[chosen]) is not None:
            copy.finish()
            self._under_way[chosen] = None
        return chosen

    def finish(self) -> None:
        """Return once everything submitted so far has arrived."""
        nothing = _Nothing()
        self.copies.put(nothing)
        nothing.finish()
        for copy in self._under_way:
            if copy is not None:
                copy.finish()

    def stop(self) -> None:
        """End the thread."""
        self.copies.put(None)
        self.join()
        for buffer in self._buffers:
            self._device.unregister(buffer.tensor)


class _Nothing(_StagedCopy):
    """Is through when all before it is."""

    def __init__(self) -> None:
        self.pieces, self.last, self.error = [], None, None
        self.through = threading.Event()


class _Loads(_Direction):
    @override
    def make(self, copy: _StagedCopy) -> None:
        offset = 0
        for piece in copy.pieces:
            chosen = self.free_buffer()
            buffer, nbytes = self._buffers[chosen], piece.numel()
            copy.transfer(buffer.bytes_at(0, nbytes), offset)
            copy.last = self._under_way[chosen] = self._device.load(piece, buffer.tensor[:nbytes])
            offset += nbytes


class _Stores(_Direction):
    @override
    def make(self, copy: _StagedCopy) -> None:
        before: tuple[Copy, memoryview, int] | None = None
        offset = 0
        for piece in copy.pieces:
            chosen, nbytes = self.free_buffer(), piece.numel()
            buffer = self._buffers[chosen]
            started = self._device.store(buffer.tensor[:nbytes], piece)
            if before is not None:
                _write(copy, *before)
            before = (started, buffer.bytes_at(0, nbytes), offset)
            offset += nbytes
        if before is not None:
            _write(copy, *before)


def _write(copy: _StagedCopy, arriving: Copy, content: memoryview, offset: int) -> None:
    arriving.finish()
    copy.transfer(content, offset)

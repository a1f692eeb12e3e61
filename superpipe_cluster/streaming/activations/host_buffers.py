"""Host memory that is used for a while and then for something else.

Owns pieces of host memory that the device copies from and to by itself. Registering memory takes longer than filling
it, so pieces are kept for the next one of their size; all together are never more than were needed at once.
"""

from __future__ import annotations

from collections import defaultdict, deque

import torch

from superpipe_cluster.streaming.devices.device import Device


class HostBuffers:
    """Pieces of host memory of exact sizes.

    Attributes:
        nbytes: bytes of all pieces, in use or not.
    """

    def __init__(self, device: Device) -> None:
        self.nbytes = 0
        self._device: Device | None = device
        self._in_use_bytes = 0
        self._most_in_use_bytes = 0
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)
        self._in_use: dict[int, torch.Tensor] = {}  # by address
        # Whatever used a piece may die at any moment and in any thread: that only leaves a note.
        self._given: deque[torch.Tensor] = deque()

    def take(self, nbytes: int) -> torch.Tensor:
        """A piece of `nbytes`, contents undefined; `give()` it back."""
        self._settle()
        self._in_use_bytes += nbytes
        self._most_in_use_bytes = max(self._most_in_use_bytes, self._in_use_bytes)
        free = self._free.get(nbytes)
        piece = free.pop() if free else self._make(nbytes)
        self._in_use[piece.data_ptr()] = piece
        return piece

    def give(self, piece: torch.Tensor) -> None:
        """Take `piece` back; callable from anywhere, at any moment."""
        self._given.append(piece)

    def release(self) -> None:
        """No more pieces: those in use become plain memory of whoever has them, the others go."""
        self._settle()
        assert self._device is not None
        for piece in (*self._in_use.values(), *(one for pieces in self._free.values() for one in pieces)):
            self._device.unregister(piece)
        self._free.clear()
        self._in_use.clear()
        self._device = None
        self.nbytes = 0

    def _make(self, nbytes: int) -> torch.Tensor:
        assert self._device is not None
        for size, pieces in list(self._free.items()):
            while pieces and self.nbytes + nbytes > self._most_in_use_bytes:
                self._device.unregister(pieces.pop())
                self.nbytes -= size
        piece = self._device.host_buffer(nbytes)
        self._device.register(piece)
        self.nbytes += nbytes
        return piece

    def _settle(self) -> None:
        while self._given:
            piece = self._given.popleft()
            if self._in_use.pop(piece.data_ptr(), None) is not None:
                self._in_use_bytes -= piece.numel()
                self._free[piece.numel()].append(piece)

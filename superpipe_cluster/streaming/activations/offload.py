"""Offloaded activations: what autograd saves for backward waits in host memory and comes back just before it is read.

Owns the saved tensors and the host memory they wait in. Each storage crosses the link once in each direction, however
many nodes saved a view of it; while it is still on the device, because the program holds it or the copy has not gone
yet, it is read from there. Backward reads in about the opposite order of saving, so the storages saved just before the
one that is read are fetched ahead.

[Note: what stays] Weights, gradients and optimizer state have homes of their own; parameters and buffers that always
stay on the device would not be freed by a copy. Nor is it worth moving less than `SMALLEST_BYTES`: a copy costs some
10 us to start, in which a link of 25 GB/s carries a quarter of a MiB, and a transformer layer saves a dozen vectors of
statistics.

[Note: versions] Autograd compares versions only of what it keeps itself. So each saved tensor has a witness: an empty
tensor that shares its version counter, which is asked before the bytes are handed back.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from superpipe_cluster.streaming.activations.host_buffers import HostBuffers
from superpipe_cluster.streaming.devices.device import Copy
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.watching.guard import GUARD
from superpipe_cluster.streaming.watching.storages import storage_key

#: Storages of fewer bytes stay on the device.
SMALLEST_BYTES = 1 << 20
#: Bytes that may be on their way in each direction: this share of the budget, or this many of the largest storage.
_SHARE_ON_THE_WAY = 1 / 16
_LARGEST_ON_THE_WAY = 2
_ORDINARY = (torch.Tensor, FakeTensor)
_SHORT_LINE = 64  # storages; fewer are never worth looking through for dead ones


def on_the_way_bytes(budget_bytes: int | None, largest_bytes: int) -> int:
    """Bytes that may be on their way in each direction, if the largest storage so far is of `largest_bytes`."""
    if budget_bytes is None:
        return _LARGEST_ON_THE_WAY * largest_bytes
    return int(budget_bytes * _SHARE_ON_THE_WAY)


class Offload:
    """The saved tensors of one streamed model.

    Args:
        engine: residency of the model's slabs, whose device and budget are used.
        resident: tensors that always stay on the device.
    """

    def __init__(self, engine: Engine, resident: Iterable[torch.Tensor]) -> None:
        self._engine: Engine | None = engine
        self._torch_device = engine.device.torch_device
        self._resident = {storage_key(one) for one in resident if one.layout is torch.strided}
        self._buffers = HostBuffers(engine.device)
        self._stored: weakref.WeakValueDictionary[int, _Stored] = weakref.WeakValueDictionary()  # by storage
        self._line: list[weakref.ref[_Stored]] = []  # in the order of saving
        self._leaving: deque[tuple[weakref.ref[_Stored], Copy, torch.Tensor]] = deque()
        self._leaving_bytes = 0
        # What autograd saved dies at any moment and in any thread, even the one that copies: that only leaves a note.
        self._unread: deque[tuple[Copy, torch.Tensor | None]] = deque()
        self._longest_line = _SHORT_LINE
        self._largest_bytes = 0
        engine.on_pressure = self.give_way

    @property
    def host_bytes(self) -> int:
        """Host memory that activations take, reusable buffers included."""
        return self._buffers.nbytes

    def hooks(self) -> AbstractContextManager[Any]:
        """In this `with`, what autograd saves is offloaded."""
        self.tidy()
        if not torch.is_grad_enabled() or self._engine is None:
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def finish(self) -> None:
        """Nothing that could fail is under way."""

    def tidy(self) -> None:
        """Let go of what has gone to host memory, and of what was fetched for nothing."""
        with GUARD.own_work():
            while self._unread:
                copy, memory = self._unread.popleft()
                copy.wait()  # the memory may be used for something else at once
                del memory
            self._let_leave(self._on_the_way_bytes())

    def give_way(self) -> None:
        """Let go of all device memory that is not in use: wait for what leaves, drop what was fetched ahead."""
        self.tidy()
        with GUARD.own_work():
            self._let_leave(0)
            for reference in self._line:
                stored = reference()
                if stored is not None:
                    stored.drop()
            if self._engine is not None:
                GUARD.settle(self._engine)

    def release(self) -> None:
        """End with the streamer. Graphs that the program still holds keep what they saved, in plain host memory."""
        self.give_way()
        if self._engine is not None:
            self._engine.device.finish()
        self._engine = None
        self._buffers.release()

    # ---- saving -------------------------------------------------------------------------------------

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        with GUARD.own_work():
            if not self._is_worth_moving(tensor):
                return _Saved(tensor, None)
            stored = self._stored.get(storage_key(tensor))
            if stored is None or not stored.is_of(tensor):
                stored = self._store(tensor)
            return _Saved(tensor, stored)

    def _is_worth_moving(self, tensor: torch.Tensor) -> bool:
        ordinary = type(tensor) in _ORDINARY and tensor.layout is torch.strided
        if not ordinary or tensor.device != self._torch_device or tensor.is_conj() or tensor.is_neg():
            return False
        if tensor.untyped_storage().nbytes() < SMALLEST_BYTES or self._engine is None:
            return False
        return storage_key(tensor) not in self._resident and GUARD.place_of(tensor) is None

    def _store(self, tensor: torch.Tensor) -> _Stored:
        engine = self._engine
        assert engine is not None
        flat = _bytes_of(tensor.untyped_storage())
        self._largest_bytes = max(self._largest_bytes, flat.numel())
        self._let_leave(max(0, self._on_the_way_bytes() - flat.numel()))
        stored = _Stored(tensor, self._buffers, self._buffers.take(flat.numel()), self._unread)
        stored.leaving = engine.device.store(stored.host, flat)
        self._leaving.append((weakref.ref(stored), stored.leaving, flat))
        self._leaving_bytes += flat.numel()
        self._line_up(stored)
        self._stored[storage_key(tensor)] = stored
        return stored

    def _line_up(self, stored: _Stored) -> None:
        while self._line and self._line[-1]() is None:
            self._line.pop()
        if len(self._line) >= self._longest_line:  # behind what a program keeps, others may have gone
            living = [one for reference in self._line if (one := reference()) is not None]
            for number, one in enumerate(living):
                one.number = number
            self._line = [weakref.ref(one) for one in living]
            self._longest_line = max(_SHORT_LINE, 2 * len(living))
        stored.number = len(self._line)
        self._line.append(weakref.ref(stored))

    def _let_leave(self, limit_bytes: int) -> None:
        """Let go of what has gone, and wait for more if over `limit_bytes` are still on their way."""
        while self._leaving and (self._leaving[0][1].done() or self._leaving_bytes > limit_bytes):
            reference, copy, flat = self._leaving.popleft()
            copy.wait()
            self._leaving_bytes -= flat.numel()
            stored = reference()
            if stored is not None:
                stored.leaving = None  # a copy may know its source

    def _on_the_way_bytes(self) -> int:
        budget = None if self._engine is None else self._engine.device.budget_bytes
        return on_the_way_bytes(budget, self._largest_bytes)

    # ---- reading ------------------------------------------------------------------------------------

    def _unpack(self, saved: _Saved) -> torch.Tensor:
        saved.check()
        self.tidy()
        stored = saved.stored
        if stored is None:
            return saved.tensor
        storage = stored.storage()
        if storage is None:
            flat = self._fetch(stored)
            storage = flat.untyped_storage()
        self._fetch_before(stored)
        with GUARD.own_work():
            if stored.arriving is not None:
                stored.arriving.wait()
                stored.arriving = None
            result = saved.view(storage)
            # Others saved the same storage: it is kept for them, as it would be without offloading.
            stored.kept = _bytes_of(storage) if stored.savers > 1 else None
            return result

    def _fetch(self, stored: _Stored) -> torch.Tensor:
        """Start bringing `stored` to the device; the caller keeps the memory alive."""
        flat = torch.empty(
            stored.host.numel(), dtype=torch.uint8, device=self._torch_device
        )  # seen, and so counted
        with GUARD.own_work():
            if self._engine is None:
                flat.copy_(stored.host)
            else:
                if stored.leaving is not None:
                    stored.leaving.wait()
                    stored.leaving = None
                stored.arriving = self._engine.device.load(flat, stored.host)
            stored.on_device = weakref.ref(flat.untyped_storage())
        return flat

    def _fetch_before(self, stored: _Stored) -> None:
        if self._engine is None:
            return
        device, room_bytes = self._engine.device, self._on_the_way_bytes()
        for at in range(stored.number - 1, -1, -1):
            earlier = self._line[at]()
            if earlier is None:
                continue
            nbytes = earlier.host.numel()
            room_bytes -= nbytes
            if room_bytes < 0:
                return
            if earlier.storage() is None:
                if device.budget_bytes is not None and device.used_bytes() + nbytes > device.budget_bytes:
                    return  # weights are worth more than what is needed only next
                earlier.kept = self._fetch(earlier)


class _Stored:
    """One storage in host memory."""

    def __init__(
        self,
        tensor: torch.Tensor,
        buffers: HostBuffers,
        host: torch.Tensor,
        unread: deque[tuple[Copy, torch.Tensor | None]],
    ) -> None:
        self.number = -1
        self.host = host
        self.leaving: Copy | None = None
        self.arriving: Copy | None = None
        self.on_device: weakref.ref[torch.UntypedStorage] = weakref.ref(tensor.untyped_storage())
        #: Holds it on the device: it was fetched ahead, or others will read it too.
        self.kept: torch.Tensor | None = None
        self.savers = 0
        self._buffers = buffers
        self._unread = unread
        self._witness, self._version = _witness(tensor), tensor._version

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether it has the bytes that `tensor` has now."""
        same = self.on_device() is tensor.untyped_storage()
        return same and tensor._version == self._version == self._witness._version

    def storage(self) -> torch.UntypedStorage | None:
        """The storage on the device, if it is there or on its way."""
        return self.on_device()

    def drop(self) -> None:
        """Let go of the device memory."""
        if self.arriving is not None:
            self.arriving.wait()  # the memory may be used for something else at once
            self.arriving = None
        self.kept = None

    def __del__(self) -> None:
        if self.arriving is not None:
            self._unread.append((self.arriving, self.kept))
        self._buffers.give(self.host)


class _Saved:
    """What autograd keeps of one saved tensor."""

    __slots__ = ("_places", "_version", "_witness", "stored", "tensor")

    def __init__(self, tensor: torch.Tensor, stored: _Stored | None) -> None:
        self.stored = stored
        self._version = tensor._version
        if stored is None:
            self._witness = self.tensor = (
                tensor.detach()
            )  # the tensor itself would make a cycle if it is an output
            return
        stored.savers += 1
        self.tensor = self._witness = _witness(tensor)
        self._places = (tensor.dtype, int(tensor.storage_offset()), tensor.size(), tensor.stride())

    def check(self) -> None:
        """Raise what autograd would if the tensor has been changed since it was saved."""
        if self._witness._version != self._version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"it is at version {self._witness._version}; expected version {self._version} instead"
            )

    def view(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor, on `storage`."""
        dtype, offset, size, stride = self._places
        return torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, size, stride)

    def __del__(self) -> None:
        if self.stored is not None:
            self.stored.savers -= 1


def _witness(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without memory that shares the version counter of `tensor`."""
    witness = tensor.detach()
    witness.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return witness


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

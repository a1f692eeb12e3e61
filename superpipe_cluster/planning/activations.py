"""Activations that wait in host memory: how a recording sees them, and what becomes of them in a replay.

Owns both ends. Recorded is a run whose link takes no time and that fetches nothing ahead, so each storage is on the
device exactly while the program holds it. Everything that needs time is the replay's: bytes that stay until they have
crossed the link, waiting for bytes to come back, and fetching them ahead within the budget, by the rules of
`streaming.offload`.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from typing_extensions import override

from superpipe_cluster.planning.trace import Event, Fetch, FetchBefore, Forgotten, Saved
from superpipe_cluster.streaming.activations.offload import Offload, on_the_way_bytes
from superpipe_cluster.streaming.devices.clock_device import ClockDevice
from superpipe_cluster.streaming.devices.device import Copy
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.watching.guard import GUARD
from superpipe_cluster.streaming.watching.storages import storage_key

# ---- recorded -----------------------------------------------------------------------------------------------


class Recorder(Protocol):
    """Where events go.

    Attributes:
        gone: activations whose device bytes have died since this was looked at last.
    """

    gone: deque[int]

    def note(self, event: Event) -> None:
        """Write `event` down."""
        ...


class RecordedOffload(Offload):
    """Stands where `Offload` does, for tensors without memory.

    Args:
        engine: gets the events.
        recorder: the same engine, as what writes them down.
        resident: tensors that always stay on the device.
        mode: under which it is recorded.
    """

    def __init__(
        self, engine: Engine, recorder: Recorder, resident: Iterable[torch.Tensor], mode: FakeTensorMode
    ) -> None:
        super().__init__(engine, resident)
        self._mode = mode
        self._recorder = recorder
        self._alive: weakref.WeakValueDictionary[int, _Activation] = weakref.WeakValueDictionary()
        self._forgotten: deque[int] = deque()  # nodes of the graph die at any moment: that only leaves a note
        self._count = 0

    @override
    def hooks(self) -> AbstractContextManager[Any]:
        self.tidy()
        if not torch.is_grad_enabled():
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._save, self._read)

    @override
    def tidy(self) -> None:
        while self._forgotten:
            self._recorder.note(Forgotten(self._forgotten.popleft()))

    @override
    def give_way(self) -> None:
        pass

    def _save(self, tensor: torch.Tensor) -> _View | torch.Tensor:
        with GUARD.own_work():
            if not self._is_worth_moving(tensor):
                return tensor.detach()
            self.tidy()
            one = self._alive.get(storage_key(tensor))
            if one is None or one.storage() is not tensor.untyped_storage() or one.version != tensor._version:
                one = _Activation(self._count, tensor, self._recorder.gone, self._forgotten)
                self._count += 1
                self._alive[storage_key(tensor)] = one
                self._recorder.note(Saved(one.number, one.nbytes))
            return _View(one, tensor)

    def _read(self, saved: _View | torch.Tensor) -> torch.Tensor:
        self.tidy()
        if isinstance(saved, torch.Tensor):
            return saved
        one, flat = saved.activation, None
        if one.storage() is None:
            self._recorder.note(Fetch(one.number))
            flat = torch.empty(
                one.nbytes, dtype=torch.uint8, device=self._torch_device
            )  # seen, and so counted
            one.lives_on(flat)
        self._recorder.note(FetchBefore(one.number))
        with GUARD.own_work():
            # What torch keeps of an operator's metadata would keep the storage alive too.
            cached, self._mode.cache_enabled = self._mode.cache_enabled, False
            try:
                result = saved.on(one.storage(), self._torch_device)
            finally:
                self._mode.cache_enabled = cached
            one.kept = result.detach() if one.savers > 1 else None
            return result


class _Activation:
    """A storage that was saved."""

    def __init__(self, number: int, tensor: torch.Tensor, gone: deque[int], forgotten: deque[int]) -> None:
        self.number = number
        self.nbytes = tensor.untyped_storage().nbytes()
        self.version = tensor._version
        self.kept: torch.Tensor | None = None
        self.savers = 0
        self._forgotten = forgotten
        self._storage = weakref.ref(tensor.untyped_storage(), lambda _: gone.append(number))

    def storage(self) -> torch.UntypedStorage | None:
        """Its bytes on the device, if the program holds them."""
        return self._storage()

    def lives_on(self, flat: torch.Tensor) -> None:
        """Its bytes are on the device again; when these go there is nothing more to send."""
        self._storage = weakref.ref(flat.untyped_storage())

    def __del__(self) -> None:
        self._forgotten.append(self.number)


class _View:
    """A tensor that was saved."""

    def __init__(self, activation: _Activation, tensor: torch.Tensor) -> None:
        self.activation = activation
        activation.savers += 1
        self._places = (tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride())

    def on(self, storage: torch.UntypedStorage | None, device: torch.device) -> torch.Tensor:
        """The tensor, on `storage`."""
        assert storage is not None
        dtype, offset, size, stride = self._places
        return torch.empty(0, dtype=dtype, device=device).set_(storage, offset, size, stride)

    def __del__(self) -> None:
        self.activation.savers -= 1


# ---- replayed -----------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Replayed:
    """An activation.

    Attributes:
        nbytes: of its storage.
        leaving: the copy to the host, until it is known to be over.
        arriving: the copy to the device that was started ahead; the bytes are counted here until they are read.
        lingers: whether the bytes are on the device for the sake of `leaving` alone; they are counted here.
        is_away: whether nothing and nobody has the bytes on the device.
    """

    nbytes: int
    leaving: Copy | None
    arriving: Copy | None = None
    lingers: bool = False
    is_away: bool = False


class ReplayedOffload:
    """What the link makes of the activations that a trace saves and reads.

    Args:
        engine: whose budget they share.
        device: its clock.

    Attributes:
        most_bytes: most host memory that they took at once.
    """

    def __init__(self, engine: Engine, device: ClockDevice) -> None:
        self.most_bytes = 0
        self._device = device
        self._all: dict[int, _Replayed] = {}  # in the order of saving
        self._leaving: deque[_Replayed] = deque()
        self._leaving_bytes = 0
        self._host_bytes = 0
        self._largest_bytes = 0
        engine.on_pressure = self._give_way

    def saved(self, number: int, nbytes: int) -> None:
        """See `Saved`."""
        self._largest_bytes = max(self._largest_bytes, nbytes)
        self._let_leave(max(0, self._limit_bytes() - nbytes))
        self._host_bytes += nbytes
        self.most_bytes = max(self.most_bytes, self._host_bytes)
        one = self._all[number] = _Replayed(nbytes, self._device.send(nbytes))
        self._leaving.append(one)
        self._leaving_bytes += nbytes

    def gone(self, number: int) -> None:
        """See `Gone`."""
        one = self._all.get(number)
        if one is None:  # nobody wants to read it any more
            return
        if one.leaving is not None:
            one.lingers = True
            self._device.charge(one.nbytes)
        else:
            one.is_away = True

    def fetch(self, number: int) -> None:
        """See `Fetch`."""
        self._let_leave(self._limit_bytes())
        one = self._all[number]
        if one.lingers:
            one.lingers = False
            self._device.charge(-one.nbytes)
        elif one.arriving is not None:
            self._drop(one)
        else:
            self._device.bring(one.nbytes).wait()
        one.is_away = False

    def fetch_before(self, number: int) -> None:
        """See `FetchBefore`."""
        self._let_leave(self._limit_bytes())
        room_bytes, budget = self._limit_bytes(), self._device.budget_bytes
        for earlier in reversed(self._all):
            if earlier >= number:
                continue
            one = self._all[earlier]
            room_bytes -= one.nbytes
            if room_bytes < 0:
                return
            if one.is_away and one.arriving is None:
                if budget is not None and self._device.used_bytes() + one.nbytes > budget:
                    return
                self._device.charge(one.nbytes)
                one.arriving = self._device.bring(one.nbytes)

    def forgotten(self, number: int) -> None:
        """See `Forgotten`."""
        one = self._all.pop(number)
        self._drop(one)
        self._host_bytes -= one.nbytes

    def _limit_bytes(self) -> int:
        return on_the_way_bytes(self._device.budget_bytes, self._largest_bytes)

    def _let_leave(self, limit_bytes: int) -> None:
        while self._leaving:
            copy = self._leaving[0].leaving
            assert copy is not None
            if not copy.done() and self._leaving_bytes <= limit_bytes:
                return
            copy.wait()
            one = self._leaving.popleft()
            one.leaving = None
            self._leaving_bytes -= one.nbytes
            if one.lingers:
                one.lingers, one.is_away = False, True
                self._device.charge(-one.nbytes)

    def _give_way(self) -> None:
        self._let_leave(0)
        for one in self._all.values():
            self._drop(one)

    def _drop(self, one: _Replayed) -> None:
        if one.arriving is not None:
            one.arriving.wait()
            one.arriving = None
            self._device.charge(-one.nbytes)

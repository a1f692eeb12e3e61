"""What of one model is on the device: its slabs, and how their bytes come and go.

Owns the slabs and their copies in both directions. It decides nothing: when what moves is the engine's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from superpipe_cluster.streaming.devices.device import Device
from superpipe_cluster.streaming.homes.contents import Contents
from superpipe_cluster.streaming.homes.homes import Home
from superpipe_cluster.streaming.homes.memory import trim_heap
from superpipe_cluster.streaming.schedule import Window
from superpipe_cluster.streaming.slab import Part, Slab
from superpipe_cluster.streaming.units import Unit
from superpipe_cluster.streaming.watching.storages import give_memory

_COMPARED_BYTES = 64 << 20


class Residency:
    """The slabs of one model on one device.

    Attributes:
        device: where they come to.
        home: where their host copies are.
        window: which of them are held, and what may be held.
        slabs: all of them, by number.
        unit_names: of each unit.
        weights: of each unit.
        gradients: of a unit; more than one slab if the program keeps old gradients.
        state: of the optimizer, of a unit; more than one slab if state was added later.
        unit_of: the unit of each parameter.
        unwatched: whether what the program writes passes unseen, so that all held slabs may have changed.
        on_new_slab: told of each new slab.
        on_pressure: lets go of device memory that is not in use, before anything is evicted for want of room.
        loads: times weights were brought in.
        peak_units: most units whose weights were held at once.
    """

    def __init__(self, device: Device, max_units: int | None, home: Home | None = None) -> None:
        self.device = device
        self.home = Home(device) if home is None else home
        self.window = Window(max_units=max_units)
        self.slabs: list[Slab] = []
        self.unit_names: list[str] = []
        self.weights: list[Slab] = []
        self.gradients: dict[int, list[Slab]] = {}
        self.state: dict[int, list[Slab]] = {}
        self.unit_of: dict[nn.Parameter, int] = {}
        self.unwatched = False
        self.on_new_slab: Callable[[Slab], None] | None = None
        self.on_pressure: Callable[[], None] | None = None
        self.loads = 0
        self.peak_units = 0
        self._weights_held = 0

    def take_over(self, units: Iterable[Unit], contents: Contents | None = None) -> None:
        """Move the parameters of `units` to slabs, their bytes (or what `contents` has of them) to host copies."""
        contents = Contents() if contents is None else contents
        for unit in units:
            parameters = list(unit.parameters.values())
            number = len(self.weights)
            weights = Slab(number, "weights", {p: p.data for p in parameters}, self.device.torch_device)
            self.home.fill(weights, contents)
            self.weights.append(weights)
            self.unit_names.append(unit.name)
            self._take_in(weights)
            for parameter in parameters:
                self.unit_of[parameter] = number
                give_memory(parameter, weights.views[parameter])
            trim_heap()

    def add_slab(self, unit: int, part: Part, tensors: Mapping[Any, torch.Tensor]) -> Slab:
        """Make a slab that looks like `tensors` and take it into the window and the order; contents undefined."""
        slab = Slab(unit, part, tensors, self.device.torch_device)
        home = self.gradients if part == "gradients" else self.state
        home.setdefault(unit, []).append(slab)
        self._take_in(slab)
        return slab

    def _take_in(self, slab: Slab) -> None:
        slab.number = self.window.add_slab(slab.nbytes, slab.unit)
        self.slabs.append(slab)
        if self.on_new_slab is not None:
            self.on_new_slab(slab)

    # ---- host copies ------------------------------------------------------------------------------

    def flush(self, slabs: Iterable[Slab] | None = None) -> None:
        """Bring the host copies up to date, for the host to read; nothing leaves the device."""
        chosen = list(self.slabs if slabs is None else slabs)
        self.start_storing(chosen)
        for slab in chosen:
            slab.wait_for_host()
            if slab.storing is not None:
                slab.storing.finish()
                slab.storing = None

    def start_storing(self, slabs: Iterable[Slab]) -> None:
        """Let what has changed of `slabs` start on its way to the host copies."""
        if self.unwatched:
            self.assume_changed(slabs)
        for slab in slabs:
            self._store_if_changed(slab)

    def assume_changed(self, slabs: Iterable[Slab] | None = None) -> None:
        """Whatever wrote to `slabs` (all of them, if none are given) was not seen: what is held counts as changed."""
        for slab in self.slabs if slabs is None else slabs:
            if slab.number in self.window.held and not slab.dirty:
                slab.dirty = not _is_as_on_host(slab)

    def before_host_use(self, slab: Slab, *, to_write: bool) -> None:
        """Return once the CPU may read (and write) the host copy of `slab`.

        Raises:
            Unstreamable: an optimizer has it to itself.
        """
        slab.check_claim()
        self.flush([slab])
        if to_write:
            self.home.finish()
            self.home.before_write(slab)

    def wrote_host(self, slab: Slab) -> None:
        """The program changed the host copy of `slab`; the device bytes, if there are any, follow."""
        assert slab.host is not None
        if slab.number in self.window.held:
            self._start_loading(slab)
            slab.ready = False

    def dissolve(self) -> None:
        """Give up all slabs. Device bytes that the program still holds tensors of are left to it, up to date."""
        self.flush()
        self.home.finish()
        for slab in self.slabs:
            held = slab.number in self.window.held
            if held:
                self.device.charge(-slab.nbytes)
            keep = slab.outside_holders() > 0
            if keep and not held and slab.host is not None:
                slab.flat.untyped_storage().resize_(slab.nbytes)
                slab.flat.copy_(slab.host)
            elif held and not keep:
                slab.flat.untyped_storage().resize_(0)
            self.home.let_go(slab)
        self.home.close()
        self.slabs, self.weights, self.gradients, self.state = [], [], {}, {}
        self.unit_of = {}
        self.window = Window()

    @property
    def host_bytes(self) -> int:
        """Bytes of RAM that the host copies take."""
        return self.home.host_bytes

    def largest_unit_bytes(self) -> int:
        """Bytes of all slabs of the unit where they are most."""
        of_unit: dict[int, int] = defaultdict(int)
        for slab in self.slabs:
            of_unit[slab.unit] += slab.nbytes
        return max(of_unit.values(), default=0)

    def all_held(self) -> bool:
        """Whether every slab that means anything is on the device."""
        return all(slab.number in self.window.held for slab in self.slabs if self._has_content(slab))

    def drop_empty_gradients(self) -> None:
        """Give back the bytes of gradient slabs whose gradients the program has let go."""
        for slabs in self.gradients.values():
            for slab in slabs:
                if slab.number in self.window.held and not self._has_content(slab):
                    self._evict(slab)

    # ---- moving -----------------------------------------------------------------------------------

    def _load(self, slab: Slab) -> None:
        if slab.storing is not None:
            slab.storing.wait()  # kept: that the device comes after it does not mean that the host may read already
        self._allocate(slab)
        self.window.hold(slab.number)
        if slab.part == "weights":
            self.loads += 1
            self._weights_held += 1
            self.peak_units = max(self.peak_units, self._weights_held)
        if slab.host is not None and self._has_content(slab):
            slab.wait_for_host()
            self._start_loading(slab)

    def _start_loading(self, slab: Slab) -> None:
        slab.loading = slab.last_load = self.home.load(slab)

    def _allocate(self, slab: Slab) -> None:
        self.device.allocate(slab.flat, slab.nbytes)

    def _evict(self, slab: Slab) -> None:
        if slab.loading is not None:
            slab.loading.wait()
            slab.loading = None
        self._store_if_changed(slab)
        if slab.storing is not None:
            slab.storing.wait()  # kept: the bytes may still be on their way when the host wants to read them
        slab.ready = False
        self.device.free(slab.flat)
        self.window.drop(slab.number)
        if slab.part == "weights":
            self._weights_held -= 1

    def _store_if_changed(self, slab: Slab) -> None:
        if slab.dirty and slab.number in self.window.held:
            if self._has_content(slab):
                slab.wait_for_host()
                slab.storing = self.home.store(slab)
            slab.dirty = False

    @staticmethod
    def _has_content(slab: Slab) -> bool:
        # zero_grad() only lets go of the tensors: that is how a gradient slab comes to mean nothing.
        return slab.part != "gradients" or slab.outside_holders() > 0


def _is_as_on_host(slab: Slab) -> bool:
    """Whether frozen weights are as they came: then they need not be written where others may share them."""
    if slab.host is None or slab.part != "weights" or any(one.requires_grad for one in slab.views):
        return False
    pieces = zip(slab.flat.split(_COMPARED_BYTES), slab.host.split(_COMPARED_BYTES), strict=True)
    return all(torch.equal(here.cpu(), there) for here, there in pieces)

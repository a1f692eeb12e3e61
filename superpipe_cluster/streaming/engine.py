"""The engine: keeps what the program reads on the device, within the budget, and the rest away.

Owns residency: which slabs are held, their copies, and the order learned from the program. What needs which slab is
told by the read guard and the optimizer; when to move what is decided by the policy in `schedule`; here both meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory, Unstreamable
from superpipe_cluster.streaming.device import Device
from superpipe_cluster.streaming.order import AccessOrder
from superpipe_cluster.streaming.schedule import Action, Evict, Policy, View, Window
from superpipe_cluster.streaming.slab import Part, Slab
from superpipe_cluster.streaming.storages import is_gradient_shared, tensors_on
from superpipe_cluster.streaming.units import Unit


class Engine:
    """Residency of one model's slabs on one device.

    Consecutive reads of the same unit (or of the units that one operator reads together) form a *group*. Its slabs are
    pinned while it lasts; when it ends, what it changed starts on its way to the host.
    """

    def __init__(self, device: Device, policy: Policy, max_units: int | None) -> None:
        self.device = device
        self.policy = policy
        self.order = AccessOrder()
        self.window = Window(max_units=max_units)
        self.slabs: list[Slab] = []
        self.unit_names: list[str] = []
        self.weights: list[Slab] = []  # of each unit
        self.gradients: dict[int, list[Slab]] = {}  # unit -> slabs; more than one if old gradients are kept
        self.state: dict[int, list[Slab]] = {}  # unit -> slabs; more than one if state was added later
        self.unit_of: dict[nn.Parameter, int] = {}
        self.on_new_slab: Callable[[Slab], None] | None = None
        self.loads = 0
        self.peak_units = 0
        self._weights_held = 0
        self._group: dict[int, None] = {}
        self._group_units: set[int] = set()
        #: Slabs of the operator that runs now; these cannot leave whatever happens.
        self.operands: Sequence[Slab] = ()
        #: Prefetching stopped for a slab that was still being copied; it may go on at any operator.
        self.blocked = False
        self._others_peak = 0  # most bytes of everything else, in the last whole step and in this one
        self._others_peak_before = 0

    def take_over(self, units: Iterable[Unit]) -> None:
        """Move the parameters of `units` to slabs, their bytes to host copies."""
        for unit in units:
            parameters = list(unit.parameters.values())
            number = len(self.weights)
            weights = Slab(number, "weights", {p: p.data for p in parameters}, self.device.torch_device)
            host = weights.ensure_host(self.device)
            host.zero_()  # the gaps of the alignment too: equal weights give equal bytes
            self.weights.append(weights)
            self.unit_names.append(unit.name)
            self._take_in(weights)
            for parameter in parameters:
                weights.host_view(parameter).copy_(parameter.data)
                self.unit_of[parameter] = number
                parameter.data = weights.views[parameter]

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

    # ---- what the program does --------------------------------------------------------------------

    def begin_step(self) -> None:
        """The outermost forward starts."""
        self.order.begin_step()
        self.policy.begin_step()
        self._others_peak_before, self._others_peak = self._others_peak, self._others_now()

    def require(self, slabs: Sequence[Slab]) -> None:
        """Return once `slabs` are on the device and whatever is computed next may read them.

        Raises:
            BudgetTooSmall: they do not fit the budget together.
        """
        self.operands = slabs = list(dict.fromkeys(slabs))
        entering = [slab for slab in slabs if slab.number not in self._group]
        if entering:
            units = {slab.unit for slab in slabs}
            if not units <= self._group_units:
                self._leave_group()
                self._group_units = units
                self.device.pace()
                entering = slabs
            self._group.update((slab.number, None) for slab in entering)
            for slab in entering:
                self._access(slab)
        else:
            for slab in slabs:  # taken away within its group, by pressure
                if slab.number not in self.window.held:
                    self._miss(slab)
            if self.blocked:
                self._fetch_ahead()
        for slab in slabs:
            if slab.loading is not None:
                if not slab.loading.done():
                    self.policy.late()
                slab.loading.wait()
                slab.loading = None
            slab.ready = True

    def wrote(self, slab: Slab) -> None:
        """The program changed the device bytes of `slab`."""
        slab.dirty = True

    def take_gradient(self, parameter: nn.Parameter) -> None:
        """Move a gradient that autograd just finished into a gradient slab of its unit, if it is autograd's to give."""
        unit = self.unit_of[parameter]
        assert parameter.grad is not None
        if any(slab.has(parameter.grad) for slab in self.gradients.get(unit, ())):
            return  # accumulated in place
        if is_gradient_shared(parameter):
            return  # the program's own tensor: it would miss what is accumulated elsewhere from now on
        slab = self._slab_for_gradient(parameter, unit)
        self.require([slab])
        slab.views[parameter].copy_(cast(torch.Tensor, parameter.grad))
        parameter.grad = slab.give(parameter)
        self.wrote(slab)

    def _slab_for_gradient(self, parameter: nn.Parameter, unit: int) -> Slab:
        # [Note: old gradients] The program may keep a gradient and let `p.grad` go (task by task, or to compare). Its
        # bytes must not be reused, so the unit gets one more slab, as plain autograd would allocate one more tensor.
        for slab in self.gradients.get(unit, ()):
            if parameter in slab.views and slab.may_give(parameter):
                return slab
        alike = {p: p.data for p in self.weights[unit].views if p.requires_grad}
        return self.add_slab(unit, "gradients", alike)

    def take_back(self, parameter: nn.Parameter) -> None:
        """The program has set `parameter.data`: stream the new bytes, if they are nobody else's.

        Raises:
            Unstreamable: the new bytes are of another type or on another device.
        """
        slab, new = self.weights[self.unit_of[parameter]], parameter.data
        old = slab.views[parameter]
        if new.dtype != old.dtype or new.device != old.device:
            raise Unstreamable(
                f"a streamed parameter has become {new.dtype} on {new.device}",
                hint="close() the streamer, convert or move the model, then stream it again",
            )
        fits = new.layout is torch.strided and new.size() == old.size() and new.stride() == old.stride()
        if fits and tensors_on(parameter) == 2:  # itself, and `new` here
            self.require([slab])
            old.copy_(new)
            parameter.data = old
            self.wrote(slab)

    def charge(self, nbytes: int) -> None:
        """Count `nbytes` of a new tensor (negative: of one that died), making room by eviction if there is none.

        Raises:
            DeviceOutOfMemory: not even with everything evictable gone.
        """
        device, budget = self.device, self.device.budget_bytes
        if nbytes > 0 and budget is not None and device.used_bytes() + nbytes > budget:
            self.make_room(nbytes)
        device.charge(nbytes)
        if nbytes > 0:
            self._note_others()

    def make_room(self, nbytes: int) -> None:
        """Evict until `nbytes` more fit the budget, or nothing more can be evicted."""
        budget = self.device.budget_bytes
        operands = {slab.number for slab in self.operands}
        for pinned in (operands | set(self._group), operands):
            candidates = [number for number in self.window.held if number not in pinned]
            candidates.sort(key=self.order.future.next_use, reverse=True)
            for number in candidates:
                if budget is not None and self.device.used_bytes() + nbytes <= budget:
                    return
                self._evict(self.slabs[number])
                self.policy.look_again()

    # ---- the whole at once ------------------------------------------------------------------------

    def flush(self, slabs: Iterable[Slab] | None = None) -> None:
        """Bring the host copies up to date, for the host to read; nothing leaves the device."""
        chosen = list(self.slabs if slabs is None else slabs)
        for slab in chosen:
            self._store_if_changed(slab)
        for slab in chosen:
            if slab.storing is not None:
                slab.storing.finish()
                slab.storing = None

    def evict(self, slabs: Iterable[Slab]) -> None:
        """Send `slabs` away, their host copies up to date, for the host to read or overwrite."""
        self._leave_group()
        slabs = list(slabs)
        self.flush(slabs)
        for slab in slabs:
            if slab.number in self.window.held:
                self._evict(slab)
        self.policy.look_again()

    def before_host_use(self, slab: Slab, *, to_write: bool) -> None:
        """Return once the CPU may read (and write) the host copy of `slab`."""
        self.flush([slab])
        if to_write:
            self.device.finish()

    def wrote_host(self, slab: Slab) -> None:
        """The program changed the host copy of `slab`; the device bytes, if there are any, follow."""
        assert slab.host is not None
        if slab.number in self.window.held:
            slab.loading = self.device.load(slab.flat, slab.host)
            slab.ready = False

    def dissolve(self) -> None:
        """Give up all slabs. Device bytes that the program still holds tensors of are left to it, up to date."""
        self.flush()
        self.device.finish()
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
            if slab.host is not None:
                self.device.release_host_buffer(slab.host)
        self.slabs, self.weights, self.gradients, self.state = [], [], {}, {}
        self.operands, self.unit_of = (), {}
        self.window = Window()

    @property
    def host_bytes(self) -> int:
        """Bytes of all host copies."""
        return sum(slab.host_bytes for slab in self.slabs)

    def capacity_bytes(self) -> int | None:
        """Bytes that slabs may take beside everything else, at this step's and the last one's worst moment."""
        budget = self.device.budget_bytes
        if budget is None:
            return None
        return budget - max(self._others_now(), self._others_peak, self._others_peak_before)

    # ---- moving -----------------------------------------------------------------------------------

    def _access(self, slab: Slab) -> None:
        self.order.access(slab.number)
        if slab.number in self.window.held:
            self.window.touch(slab.number)
        else:
            self._miss(slab)
        self._fetch_ahead()

    def _miss(self, slab: Slab) -> None:
        operands = {operand.number for operand in self.operands}
        for pinned in (operands | set(self._group), operands):
            budget = self.device.budget_bytes
            self.window.capacity_bytes = None if budget is None else budget - self._others_now()
            for action in self.policy.miss(self._view(pinned), slab.number):
                self._apply(action)
            if slab.number in self.window.held:
                self.policy.look_again()
                return
        self._refuse(slab)

    def _refuse(self, slab: Slab) -> None:
        names = sorted({self.unit_names[operand.unit] for operand in (*self.operands, slab)})
        if self.window.max_units is not None and len(names) > self.window.max_units:
            raise BudgetTooSmall(
                f"one operator reads {len(names)} units at once ({', '.join(names)}), but k is {self.window.max_units}",
                hint=f"use k={len(names)} or more",
            )
        needed = self._others_now() + sum({s.number: s.nbytes for s in (*self.operands, slab)}.values())
        raise BudgetTooSmall(
            f"the budget of {self.device.budget_bytes} bytes is too small for {', '.join(names)}: "
            f"with what else is on the device, {needed} bytes are needed at this point",
            needed_bytes=needed,
            hint=f"give at least {needed} bytes",
        )

    def _fetch_ahead(self) -> None:
        self._note_others()
        self.window.capacity_bytes = self.capacity_bytes()
        self.blocked = False
        for action in self.policy.ahead(self._view(set(self._group))):
            self._apply(action)

    def _view(self, pinned: set[int]) -> View:
        return View(self.window, self.order.future, pinned, self._is_busy, self._is_arriving)

    def _is_busy(self, number: int) -> bool:
        slab = self.slabs[number]
        busy = (
            self._is_arriving(number)
            or (slab.storing is not None and not slab.storing.done())
            or (slab.dirty and self._has_content(slab))
        )
        self.blocked = self.blocked or busy
        return busy

    def _is_arriving(self, number: int) -> bool:
        loading = self.slabs[number].loading
        return loading is not None and not loading.done()

    def _apply(self, action: Action) -> None:
        if isinstance(action, Evict):
            self._evict(self.slabs[action.slab])
            return
        for number in action.slabs:
            self._load(self.slabs[number])
        if not self.policy.overlaps:
            for number in action.slabs:
                if (copy := self.slabs[number].loading) is not None:
                    copy.wait()

    def _load(self, slab: Slab) -> None:
        if slab.storing is not None:
            slab.storing.wait()
            slab.storing = None
        try:
            self.device.allocate(slab.flat, slab.nbytes)
        except (DeviceOutOfMemory, torch.OutOfMemoryError):
            self.make_room(slab.nbytes)
            self.device.allocate(slab.flat, slab.nbytes)
        self.window.hold(slab.number)
        if slab.part == "weights":
            self.loads += 1
            self._weights_held += 1
            self.peak_units = max(self.peak_units, self._weights_held)
        if slab.host is not None and self._has_content(slab):
            slab.loading = self.device.load(slab.flat, slab.host)

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
                slab.storing = self.device.store(slab.ensure_host(self.device), slab.flat)
            slab.dirty = False

    def _leave_group(self) -> None:
        everything_fits = self.window.everything_fits
        for number in self._group:
            slab = self.slabs[number]
            slab.ready = False
            if slab.dirty and not everything_fits:
                self._store_if_changed(slab)
        self._group = {}
        self._group_units = set()

    @staticmethod
    def _has_content(slab: Slab) -> bool:
        # zero_grad() only lets go of the tensors: that is how a gradient slab comes to mean nothing.
        return slab.part != "gradients" or slab.outside_holders() > 0

    # ---- counting ---------------------------------------------------------------------------------

    def _others_now(self) -> int:
        return self.device.used_bytes() - self.window.bytes

    def _note_others(self) -> None:
        others = self._others_now()
        if others > self._others_peak:
            self._others_peak = others

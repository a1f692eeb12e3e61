"""The engine: keeps what the program reads on the device, within the budget, and the rest away.

Owns the decisions: what needs which slab is told by the read guard and the optimizer, when to move what is said by the
policy in `schedule`, and here both meet. The slabs and their copies are `residency`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import cast

import torch
from torch import nn
from typing_extensions import override

from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory, Unstreamable
from superpipe_cluster.streaming.devices.device import Copy, Device
from superpipe_cluster.streaming.homes.homes import Home
from superpipe_cluster.streaming.need import Need
from superpipe_cluster.streaming.order import AccessOrder
from superpipe_cluster.streaming.policies import Policy
from superpipe_cluster.streaming.residency import Residency
from superpipe_cluster.streaming.schedule import Action, Clean, Evict, Fetch, View
from superpipe_cluster.streaming.slab import Slab, may_be_taken
from superpipe_cluster.streaming.watching.storages import is_gradient_shared, tensors_on


class Engine(Residency):
    """Brings slabs to the device in time, and others away.

    Consecutive reads of the same unit (or of the units that one operator reads together) form a *group*. Its slabs are
    pinned while it lasts; when it ends, what it changed may start on its way to the host.
    """

    def __init__(
        self, device: Device, policy: Policy, max_units: int | None, home: Home | None = None
    ) -> None:
        super().__init__(device, max_units, home)
        self.policy = policy
        self.order = AccessOrder()
        #: Told of each call of the outermost forward.
        self.before_forward: list[Callable[[], None]] = []
        self._group: dict[int, None] = {}
        self._group_units: set[int] = set()
        #: Slabs of the operator that runs now; these cannot leave whatever happens.
        self.operands: Sequence[Slab] = ()
        #: The copy (or update on the host) that prefetching stopped for: once it is done, the next operator on slabs
        #: lets it go on.
        self.waits_for: Copy | Future[None] | None = None
        self.need = Need()
        self._moved_before = -1  # bytes that the link had carried to the device when this step began

    # ---- what the program does --------------------------------------------------------------------

    def begin_step(self) -> None:
        """The outermost forward starts.

        Raises:
            Unstreamable: an optimizer is in the middle of its step.
        """
        for check in self.before_forward:
            check()
        if self.unwatched:
            return  # as in the steps before
        self.order.begin_step()
        self.policy.begin_step()
        self.operands = ()
        self.need.begin_step(self._others_now())

    def require(self, slabs: Sequence[Slab]) -> None:
        """Return once `slabs` are on the device and whatever is computed next may read them.

        Raises:
            BudgetTooSmall: they do not fit the budget together.
            Unstreamable: an optimizer has one to itself.
        """
        for slab in slabs:
            slab.check_claim()
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
        for slab in slabs:
            if slab.number not in self.window.held:  # taken away within its group, by pressure
                self._miss(slab)
        if not entering and self.waits_for is not None:
            self._fetch_ahead()
        for slab in slabs:
            if slab.loading is not None:
                if not slab.loading.done():
                    self.policy.late()
                slab.loading.wait()
                slab.loading = None
            if slab.host_work is not None and slab.storing is not None:
                slab.storing.wait()  # an update on the host is to read what is here before it is written to
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
        # (It may be frozen by now, and yet have one.)
        alike = {p: p.data for p in self.weights[unit].views if p.requires_grad or p is parameter}
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
        self._evict_until(lambda: budget is not None and self.device.used_bytes() + nbytes <= budget)

    def _evict_until(self, enough: Callable[[], bool]) -> None:
        """Evict, furthest next use first, the group last and never the operands."""
        if self.on_pressure is not None and not enough():
            self.on_pressure()
        operands = {slab.number for slab in self.operands}
        for pinned in (operands | set(self._group), operands):
            candidates = [number for number in self.window.held if number not in pinned]
            candidates.sort(key=self.order.future.next_use, reverse=True)
            for number in candidates:
                if enough():
                    return
                self._evict(self.slabs[number])
                self.policy.look_again()

    @override
    def dissolve(self) -> None:
        super().dissolve()
        # These would keep host copies alive, and the next streamer would take them for memory that is used elsewhere.
        self.operands, self.waits_for = (), None

    # ---- the budget -------------------------------------------------------------------------------

    def resize(self, budget_bytes: int | None, max_units: int | None, policy: Policy) -> None:
        """Put another budget in force: what does not fit it any more leaves now, what does comes as it is needed.

        Raises:
            BudgetTooSmall: as `check_budget`; nothing has changed.
        """
        self.check_budget(budget_bytes)
        self._leave_group()
        self.operands = ()
        self.policy = policy
        self.window.max_units = max_units
        self._evict_until(lambda: self._fits(budget_bytes, max_units))
        self.device.budget_bytes = budget_bytes

    def check_budget(self, budget_bytes: int | None) -> None:
        """Refuse a budget that is too small for what this program does.

        Raises:
            BudgetTooSmall: a moment of this step or of the last one needed more.
        """
        if budget_bytes is not None:
            self.need.check(budget_bytes, self._others_now(), self.largest_unit_bytes())

    def _fits(self, budget_bytes: int | None, max_units: int | None) -> bool:
        in_bytes = budget_bytes is None or self.device.used_bytes() <= budget_bytes
        return in_bytes and (max_units is None or self.window.units <= max_units)

    def may_rest(self) -> bool:
        """Whether nothing had to move in the last step, and nothing will while the program goes on like that."""
        moved, self._moved_before = self._moved_before, self.device.h2d_bytes + self.device.d2h_bytes
        return (
            moved == self._moved_before
            and self.order.learned
            and self.window.everything_fits
            and self.device.limits_itself()
            and self.all_held()
        )

    def rest(self) -> None:
        """The program is not watched from now on."""
        self.unwatched = True
        self._leave_group()
        self.operands = ()

    def wake(self) -> None:
        """The program is watched again."""
        self.unwatched = False
        self.assume_changed()
        for slab in self.slabs:
            slab.ready = False
        for parameter in self.unit_of:
            if may_be_taken(parameter.grad, parameter):
                self.take_gradient(parameter)

    # ---- the whole at once ------------------------------------------------------------------------

    def evict(self, slabs: Iterable[Slab]) -> None:
        """Send `slabs` away, their host copies up to date, for the host to read or overwrite.

        Raises:
            Unstreamable: the thread that runs the model may be reading them, unwatched; or an optimizer has one to
                itself.
        """
        slabs = list(slabs)
        for slab in slabs:
            slab.check_claim()
        if self.unwatched:
            raise Unstreamable(
                "another thread is running this model and its parameters cannot be taken away under it",
                hint="ask for the pointer in the thread that runs the model, or clone() the tensor",
            )
        self._leave_group()
        self.flush(slabs)
        for slab in slabs:
            if slab.number in self.window.held:
                self._evict(slab)
        self.policy.look_again()

    def capacity_bytes(self) -> int | None:
        """Bytes that slabs may take beside everything else, at this step's and the last one's worst moment."""
        budget = self.device.budget_bytes
        if budget is None:
            return None
        return budget - self.device.spare_bytes - self.need.most_others(self._others_now())

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
        asked, self.operands = {one.number: one for one in (*self.operands, slab)}.values(), ()
        self._leave_group()
        names = sorted({self.unit_names[one.unit] for one in asked})
        if self.window.max_units is not None and len(names) > self.window.max_units:
            raise BudgetTooSmall(
                f"one operator reads {len(names)} units at once ({', '.join(names)}), but k is {self.window.max_units}",
                hint=f"use k={len(names)} or more",
            )
        needed = self._others_now() + sum(one.nbytes for one in asked)
        raise BudgetTooSmall(
            f"the budget of {self.device.budget_bytes} bytes is too small for {', '.join(names)}: "
            f"with what else is on the device, {needed} bytes are needed at this point",
            needed_bytes=needed,
            hint=f"give at least {needed} bytes",
        )

    def _fetch_ahead(self) -> None:
        self._note_others()
        self.window.capacity_bytes = self.capacity_bytes()
        self.waits_for = None
        for action in self.policy.ahead(self._view(set(self._group))):
            if isinstance(action, Fetch) and any(self._is_updated_now(number) for number in action.slabs):
                return  # nobody waits for an update on the host before somebody reads the weights
            self._apply(action)

    def _view(self, pinned: set[int]) -> View:
        return View(self.window, self.order.future, pinned, self._is_busy, self._is_arriving)

    def _is_busy(self, number: int) -> bool:
        slab = self.slabs[number]
        return (
            self._is_under_way(slab.loading)
            or self._is_under_way(slab.storing)
            or (slab.dirty and self._has_content(slab))
        )

    def _is_arriving(self, number: int) -> bool:
        return self._is_under_way(self.slabs[number].loading)

    def _is_updated_now(self, number: int) -> bool:
        work = self.slabs[number].host_work
        if work is None or work.done():
            return False
        self.waits_for = work
        return True

    def _is_under_way(self, copy: Copy | None) -> bool:
        if copy is None or copy.done():
            return False
        self.waits_for = copy
        return True

    def _apply(self, action: Action) -> None:
        if isinstance(action, Evict):
            self._evict(self.slabs[action.slab])
            return
        if isinstance(action, Clean):
            self._store_if_changed(self.slabs[action.slab])
            self._is_under_way(self.slabs[action.slab].storing)
            return
        for number in action.slabs:
            self._load(self.slabs[number])
        if not self.policy.overlaps:
            for number in action.slabs:
                if (copy := self.slabs[number].loading) is not None:
                    copy.wait()

    @override
    def _allocate(self, slab: Slab) -> None:
        try:
            super()._allocate(slab)
        except DeviceOutOfMemory:
            self.make_room(slab.nbytes)
            super()._allocate(slab)
        except (
            torch.OutOfMemoryError
        ):  # by the count there is room, so the count does not tell how much must go
            self.device.ran_out()
            self.make_room(1 << 62)
            super()._allocate(slab)

    def _leave_group(self) -> None:
        back_at_once = self.policy.writes_back_at_once and not self.window.everything_fits
        for number in self._group:
            slab = self.slabs[number]
            slab.ready = False
            if slab.dirty and back_at_once:
                self._store_if_changed(slab)
        self._group = {}
        self._group_units = set()

    # ---- counting ---------------------------------------------------------------------------------

    def _others_now(self) -> int:
        return self.device.used_bytes() - self.window.bytes

    def _note_others(self) -> None:
        self.need.note(self._others_now(), sum(slab.nbytes for slab in self.operands))

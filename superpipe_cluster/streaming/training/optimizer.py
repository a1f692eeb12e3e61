"""A `torch.optim.Optimizer` over streamed units: any element-wise optimizer, stepped one unit at a time.

Owns the order of the update and the home of the optimizer's state. The arithmetic is the wrapped optimizer's own, run
on the device (or, by `host_steps`, on the host) with exactly the tensors it would have had, so the result has the bits
of a plain step there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.training.during_backward import EarlyUpdates
from superpipe_cluster.streaming.training.host_steps import ByUnit, HostSteps, Member, Where, check_place
from superpipe_cluster.streaming.training.masters import MASTER, Masters
from superpipe_cluster.streaming.watching.guard import GUARD
from superpipe_cluster.streaming.watching.storages import is_entry_movable

_Key = tuple[nn.Parameter, str]  # a tensor of the state

# A step of this one calls the model several times, with all parameters moved at once.
_REFUSED = (torch.optim.LBFGS,)


class StreamedOptimizer(torch.optim.Optimizer):
    """Behaves as `kind(params, **options)`, with each unit's weights, gradients and state streamed through the device.

    Learning-rate schedulers, `GradScaler`, clipping, `zero_grad` and `state_dict` work as with any optimizer.

    [Note: by units] The optimizers of `torch.optim` treat parameters one by one, so they are stepped unit by unit. Of
    any other class that is not known (it may couple parameters, count its steps in a group), so it steps once, over all
    parameters, and the read guard brings what it reads. That is as exact, but fresh state is on the device at once, and
    a class that goes over the parameters several times per step moves them several times.

    [Note: masters] With `master_weights` each weight of another floating type has a copy of that type, which is part of
    the state: the gradient is cast up, the copy is stepped, and the weight is the copy cast down.

    Args:
        engine: residency of the model's slabs.
        kind: the wrapped optimizer's class.
        params: parameters or parameter groups.
        options: passed to `kind`.
        where: where the state is and the arithmetic happens; see `host_steps`.
        master_weights: type of the weights that are stepped, None for the model's own.
        during_backward: whether updates begin before `step()`; see `during_backward`.

    Raises:
        Unstreamable: an optimizer that calls the model in the middle of its step, or one that is not known where it
            would have to be.
        BadInput: a keyword has no meaning.
    """

    def __init__(
        self,
        engine: Engine,
        kind: type[torch.optim.Optimizer],
        params: Iterable[Any],
        options: dict[str, Any],
        where: Where = "on_device",
        master_weights: torch.dtype | None = None,
        during_backward: bool = False,
    ) -> None:
        if issubclass(kind, _REFUSED):
            raise Unstreamable(
                f"{kind.__name__} updates all parameters together and cannot be stepped unit by unit",
                hint="use an element-wise optimizer such as AdamW or SGD",
            )
        self._by_units = f"{kind.__module__}.".startswith("torch.optim.")
        check_place(kind, where, master_weights, by_units=self._by_units, during_backward=during_backward)
        self._inner = kind(params, **options)
        self._engine: Engine | None = engine
        self._masters = Masters(master_weights)
        self._early: EarlyUpdates | None = None
        self._settled: set[nn.Parameter] = set()  # whose state has its home
        self._homes: dict[_Key, Slab] = {}
        # The group dictionaries and the state are shared with the wrapped optimizer, so that a scheduler which changes
        # `param_groups[0]["lr"]` here changes it there.
        super().__init__(self._inner.param_groups, self._inner.defaults)
        self.state = self._inner.state
        self._host: HostSteps | None = None
        if where == "on_host":
            self._host = HostSteps(engine, partial(kind, **options), self.state, self._masters)
            self._early = EarlyUpdates(engine, self.param_groups, self._host) if during_backward else None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: evaluated once, before the update, if given.

        Raises:
            Unstreamable: the streamer of its model is closed; or updates began during backward, and something has
                happened since with which they are not those of a step.
        """
        if self._engine is None:
            raise Unstreamable(
                f"this optimizer ({type(self._inner).__name__}) belongs to a streamer that is closed",
                hint="make a plain optimizer, or one of a new streamer, and give it this one's state: "
                "new.load_state_dict(old.state_dict())",
            )
        if not self._by_units:
            return self._step_whole(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members_of = self._by_unit()
        if self._host is not None:
            GUARD.wake()
            with GUARD.own_work():
                members_of = (self._early or self._host).end_step(members_of)
        if GUARD.resting:
            if all(
                one[1] in self._settled for unit, members in members_of for one in members if unit is not None
            ):
                self._step([one for _, members in members_of for one in members])
                return loss
            GUARD.wake()
        for unit, members in members_of:
            settled = [one for one in members if unit is None or one[1] in self._settled]
            fresh = [one for one in members if unit is not None and one[1] not in self._settled]
            if settled:
                self._step_unit(unit, settled)
            if unit is not None and fresh:
                self._first_step(unit, fresh)
        return loss

    def update_in_step(self) -> None:
        """Go on as with `during_backward=False`; a step whose updates have begun still has to be ended by `step()`."""
        if self._early is not None:
            self._early.switch_off()

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's `state_dict`, its tensors in host memory (the streamed ones share the host copy)."""
        if self._early is not None:
            self._early.refuse_if_begun("the optimizer's state_dict() was asked for")
        self.finish()
        own = dict(self.state)
        for parameter, master in self._masters.entries.items():
            self.state[parameter] = self.state.get(parameter, {}) | master
        try:
            saved = super().state_dict()
        finally:
            self.state.clear()
            self.state.update(own)
        saved["state"] = {
            number: {name: self._on_host(value) for name, value in state.items()}
            for number, state in saved["state"].items()
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()` of this class or of the wrapped one.

        The state goes to host memory parameter by parameter; the device never holds more than one parameter's. A step
        whose updates have begun during backward is given up; load the model's state after this.
        """
        if self._early is not None:
            self._early.give_up()
        self.finish()
        if self._engine is None:
            super().load_state_dict(state_dict)
            return
        GUARD.wake()
        parameters = [p for group in self.param_groups for p in group["params"]]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            if len(group["params"]) != len(saved["params"]):
                raise ValueError("the saved optimizer has a parameter group of another size")
            group.update({name: value for name, value in saved.items() if name != "params"})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        loaded: dict[int | None, list[nn.Parameter]] = {}
        self.state.clear()
        self._masters.entries.clear()
        self._settled.clear()
        for parameter, number in zip(parameters, numbers, strict=True):
            if number in state_dict["state"]:
                # What always stays on the device is made in sight of the guard, and so counted.
                with GUARD.own_work() if parameter in self._engine.unit_of else nullcontext():
                    entries = dict(state_dict["state"][number])
                    if MASTER in entries:
                        self._masters.entries[parameter] = {
                            MASTER: self._on_host(entries.pop(MASTER))
                            .detach()
                            .to(self._home_of(parameter), copy=True)
                        }
                    self.state[parameter] = {
                        name: self._loaded(parameter, number, name, value, state_dict["param_groups"])
                        for name, value in entries.items()
                    }
                loaded.setdefault(self._engine.unit_of.get(parameter), []).append(parameter)
        with GUARD.own_work():
            for unit, members in loaded.items():
                if unit is not None and self._host is None:
                    self._adopt_state(unit, members)

    def release(self) -> None:
        """End with the streamer: no more steps; `state_dict()` still works, all its tensors in host memory."""
        if self._early is not None:
            self._early.release()
        if self._host is not None:
            self._host.close()
        for state in (*self.state.values(), *self._masters.entries.values()):
            for name, value in state.items():
                state[name] = self._on_host(value)
        self._engine = None
        self._homes = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any optimizer.

        Raises:
            Unstreamable: updates with these gradients have begun.
        """
        if self._early is not None:
            self._early.refuse_if_begun("zero_grad() was called")
        super().zero_grad(set_to_none)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise Unstreamable("a streamed optimizer cannot be copied", hint="copy or save its state_dict()")

    # ---- one step -----------------------------------------------------------------------------------

    @property
    def host_bytes(self) -> int:
        """Host memory of state that is in no slab."""
        if self._host is None:
            return 0
        stores = (*self.state.values(), *self._masters.entries.values())
        entries = [value for state in stores for value in list(state.values())]  # threads add to them
        return sum(value.nbytes for value in entries if isinstance(value, torch.Tensor))

    def finish(self) -> None:
        """Return once no update is under way.

        Raises:
            Exception: whatever an update on the host raised since this was called last.
            Unstreamable: updates have begun during backward, and the program has not been told that its weights are in
                the middle of a step.
        """
        if self._host is not None and self._engine is not None:
            self._host.finish()
            for parameter in [one for one, state in self.state.items() if not state]:
                del self.state[parameter]  # made for a thread to fill
            if self._early is not None:
                self._early.tell()

    def _by_unit(self) -> ByUnit:
        """The parameters that have a gradient, with their groups: those of no unit first, then unit by unit."""
        assert self._engine is not None
        split: dict[int | None, list[Member]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    unit = self._engine.unit_of.get(parameter)
                    split.setdefault(unit, []).append((group, parameter))
        return sorted(split.items(), key=lambda item: -1 if item[0] is None else item[0])

    def _step(self, members: Iterable[Member]) -> None:
        """Let the wrapped optimizer step `members` and nothing else."""
        groups: dict[int, dict[str, Any]] = {}
        twins: dict[nn.Parameter, nn.Parameter] = {}
        for group, parameter in members:
            target = parameter
            if self._masters.wanted(parameter):
                target = twins[parameter] = self._masters.twin(parameter)
                self.state[target] = self.state.get(parameter, {})
            groups.setdefault(id(group), {**group, "params": []})["params"].append(target)
        everything = self._inner.param_groups
        self._inner.param_groups = list(groups.values())
        try:
            self._inner.step()
        finally:
            self._inner.param_groups = everything
            for parameter, twin in twins.items():
                state = self.state.pop(twin)
                if state:
                    self.state[parameter] = state
        with torch.no_grad():
            for parameter, twin in twins.items():
                parameter.copy_(twin)

    def _entries(self, parameter: nn.Parameter) -> list[tuple[dict[str, Any], str]]:
        """Where each tensor of the state of `parameter` is: a dictionary and the name in it."""
        stores = (self.state.get(parameter, {}), self._masters.entries.get(parameter, {}))
        return [(store, name) for store in stores for name in store]

    def _step_unit(self, unit: int | None, members: list[Member]) -> None:
        engine = self._engine
        assert engine is not None
        if unit is not None:
            gradients = [slab for slab in engine.gradients.get(unit, ()) if slab.outside_holders()]
            GUARD.settle(engine)  # what has died since the last operator is room for these
            with GUARD.own_work():
                engine.require([engine.weights[unit], *gradients, *self._homes_of(members)])
        self._step(members)

    def _homes_of(self, members: list[Member]) -> dict[Slab, None]:
        return {
            self._homes[parameter, name]: None
            for _, parameter in members
            for _, name in self._entries(parameter)
            if (parameter, name) in self._homes
        }

    def _first_step(self, unit: int, members: list[Member]) -> None:
        """Parameter by parameter, so that fresh state never takes more of the device than one parameter's."""
        stepped: list[nn.Parameter] = []
        try:
            for member in members:
                self._step([member])
                stepped.append(member[1])
                with GUARD.own_work():
                    for store, name in self._entries(member[1]):
                        if is_entry_movable(store, name):
                            store[name] = store[name].to("cpu", copy=True)
        finally:
            with GUARD.own_work():
                self._adopt_state(unit, stepped)

    def _step_whole(self, closure: Callable[[], Any] | None) -> Any:
        self._inner.param_groups = self.param_groups
        loss = self._inner.step(closure) if closure is not None else self._inner.step()
        assert self._engine is not None
        by_unit: dict[int, list[nn.Parameter]] = {}
        for parameter, unit in self._engine.unit_of.items():
            if parameter in self.state:
                by_unit.setdefault(unit, []).append(parameter)
        with GUARD.own_work():
            for unit, parameters in by_unit.items():
                self._adopt_state(unit, parameters)
        return loss

    # ---- where the state is -------------------------------------------------------------------------

    def _adopt_state(self, unit: int, parameters: list[nn.Parameter]) -> None:
        """Give what `self.state` holds for `parameters` its home: state slabs of the unit, in host memory for now."""
        engine = self._engine
        assert engine is not None
        self._settled.update(parameters)
        homeless: dict[_Key, torch.Tensor] = {}
        stores: dict[_Key, dict[str, Any]] = {}
        for parameter in parameters:
            for store, name in self._entries(parameter):
                if not is_entry_movable(store, name) or GUARD.place_of(store[name]) is not None:
                    continue
                slab, key = self._homes.get((parameter, name)), (parameter, name)
                if slab is not None and slab.fits(key, store[name]):
                    engine.before_host_use(slab, to_write=True)
                    slab.host_view(key).copy_(store[name])
                    engine.wrote_host(slab)
                    store[name] = slab.views[key]
                else:
                    homeless[key] = store[name]
                    stores[key] = store
        if homeless:
            slab = engine.add_slab(unit, "state", homeless)
            slab.ensure_host(engine.home).zero_()
            self._homes.update(dict.fromkeys(homeless, slab))
            for key, value in homeless.items():
                slab.host_view(key).copy_(value)
                stores[key][key[1]] = slab.views[key]

    def _loaded(
        self, parameter: nn.Parameter, number: int, name: str, value: Any, groups: list[dict[str, Any]]
    ) -> Any:
        """What torch's own `load_state_dict` would make of `value`, but in host memory if it will be streamed."""
        if not isinstance(value, torch.Tensor):
            return value
        value = self._on_host(value)  # it may be of this very optimizer
        if value.numel() > 1 and name != "step":
            dtype = self._masters.dtype if self._masters.wanted(parameter) else parameter.dtype
            return value.detach().to(
                self._home_of(parameter), dtype if parameter.is_floating_point() else None, copy=True
            )
        return self._process_value_according_to_param_policy(parameter, value, number, groups, name).clone()

    def _home_of(self, parameter: nn.Parameter) -> torch.device:
        """Where state of `parameter` is put that comes from elsewhere."""
        assert self._engine is not None
        return torch.device("cpu") if parameter in self._engine.unit_of else parameter.device

    @staticmethod
    def _on_host(value: Any) -> Any:
        """The tensor's twin in host memory, up to date; what is in no slab stays where it is."""
        place = GUARD.place_of(value) if isinstance(value, torch.Tensor) else None
        if place is None:
            return value
        GUARD.hand_out(place.engine, place.slab)
        return value if place.on_host else place.slab.on_host(value)

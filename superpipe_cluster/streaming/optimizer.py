"""A `torch.optim.Optimizer` over streamed units: any element-wise optimizer, stepped one unit at a time.

Owns the order of the update and the home of the optimizer's state. The arithmetic is the wrapped optimizer's own, run
on the device with exactly the tensors it would have had, so the result has the bits of a plain step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.guard import GUARD
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.storages import is_entry_shared

_Member = tuple[dict[str, Any], nn.Parameter]  # a parameter with its group
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

    Raises:
        Unstreamable: an optimizer that calls the model in the middle of its step.
    """

    def __init__(
        self,
        engine: Engine,
        kind: type[torch.optim.Optimizer],
        params: Iterable[Any],
        options: dict[str, Any],
    ) -> None:
        if issubclass(kind, _REFUSED):
            raise Unstreamable(
                f"{kind.__name__} updates all parameters together and cannot be stepped unit by unit",
                hint="use an element-wise optimizer such as AdamW or SGD",
            )
        self._inner = kind(params, **options)
        self._engine: Engine | None = engine
        self._by_units = kind.__module__.startswith("torch.optim.")
        self._settled: set[nn.Parameter] = set()  # whose state has its home
        self._homes: dict[_Key, Slab] = {}
        # The group dictionaries and the state are shared with the wrapped optimizer, so that a scheduler which changes
        # `param_groups[0]["lr"]` here changes it there.
        super().__init__(self._inner.param_groups, self._inner.defaults)
        self.state = self._inner.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: evaluated once, before the update, if given.
        """
        if self._engine is None or not self._by_units:
            return self._step_whole(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for unit, members in self._by_unit():
            settled = [one for one in members if unit is None or one[1] in self._settled]
            fresh = [one for one in members if unit is not None and one[1] not in self._settled]
            if settled:
                self._step_unit(unit, settled)
            if unit is not None and fresh:
                self._first_step(unit, fresh)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's `state_dict`, its tensors in host memory (the streamed ones share the host copy)."""
        saved = super().state_dict()
        saved["state"] = {
            number: {name: self._on_host(value) for name, value in state.items()}
            for number, state in saved["state"].items()
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()` of this class or of the wrapped one.

        The state goes to host memory parameter by parameter; the device never holds more than one parameter's.
        """
        if self._engine is None:
            super().load_state_dict(state_dict)
            return
        parameters = [p for group in self.param_groups for p in group["params"]]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            if len(group["params"]) != len(saved["params"]):
                raise ValueError("the saved optimizer has a parameter group of another size")
            group.update({name: value for name, value in saved.items() if name != "params"})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        loaded: dict[int | None, list[nn.Parameter]] = {}
        with GUARD.own_work():
            self.state.clear()
            self._settled.clear()
            for parameter, number in zip(parameters, numbers, strict=True):
                if number in state_dict["state"]:
                    self.state[parameter] = {
                        name: self._loaded(parameter, number, name, value, state_dict["param_groups"])
                        for name, value in state_dict["state"][number].items()
                    }
                    loaded.setdefault(self._engine.unit_of.get(parameter), []).append(parameter)
            for unit, members in loaded.items():
                if unit is not None:
                    self._adopt_state(unit, members)

    def release(self) -> None:
        """Become a plain optimizer: tensors in host memory, nothing streamed."""
        for state in self.state.values():
            for name, value in state.items():
                state[name] = self._on_host(value)
        self._engine = None
        self._homes = {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise Unstreamable("a streamed optimizer cannot be copied", hint="copy or save its state_dict()")

    # ---- one step -----------------------------------------------------------------------------------

    def _by_unit(self) -> list[tuple[int | None, list[_Member]]]:
        """The parameters that have a gradient, with their groups: those of no unit first, then unit by unit."""
        assert self._engine is not None
        split: dict[int | None, list[_Member]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    unit = self._engine.unit_of.get(parameter)
                    split.setdefault(unit, []).append((group, parameter))
        return sorted(split.items(), key=lambda item: -1 if item[0] is None else item[0])

    def _step(self, members: Iterable[_Member]) -> None:
        """Let the wrapped optimizer step `members` and nothing else."""
        groups: dict[int, dict[str, Any]] = {}
        for group, parameter in members:
            groups.setdefault(id(group), {**group, "params": []})["params"].append(parameter)
        everything = self._inner.param_groups
        self._inner.param_groups = list(groups.values())
        try:
            self._inner.step()
        finally:
            self._inner.param_groups = everything

    def _step_unit(self, unit: int | None, members: list[_Member]) -> None:
        engine = self._engine
        if engine is not None and unit is not None:
            gradients = [slab for slab in engine.gradients.get(unit, ()) if slab.outside_holders()]
            with GUARD.own_work():
                engine.require([engine.weights[unit], *gradients, *self._homes_of(members)])
        self._step(members)

    def _homes_of(self, members: list[_Member]) -> dict[Slab, None]:
        return {
            self._homes[parameter, name]: None
            for _, parameter in members
            for name in self.state[parameter]
            if (parameter, name) in self._homes
        }

    def _first_step(self, unit: int, members: list[_Member]) -> None:
        """Parameter by parameter, so that fresh state never takes more of the device than one parameter's."""
        for member in members:
            self._step([member])
            with GUARD.own_work():
                state = self.state[member[1]]
                for name in state:
                    if _is_streamed(state, name):
                        state[name] = state[name].to("cpu", copy=True)
        with GUARD.own_work():
            self._adopt_state(unit, [parameter for _, parameter in members])

    def _step_whole(self, closure: Callable[[], Any] | None) -> Any:
        self._inner.param_groups = self.param_groups
        loss = self._inner.step(closure) if closure is not None else self._inner.step()
        if self._engine is not None:
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
        for parameter in parameters:
            state = self.state[parameter]
            for name in state:
                if not _is_streamed(state, name) or GUARD.place_of(state[name]) is not None:
                    continue
                slab, key = self._homes.get((parameter, name)), (parameter, name)
                if slab is not None and _looks_like(state[name], slab.views[key]):
                    engine.before_host_use(slab, to_write=True)
                    slab.host_view(key).copy_(state[name])
                    engine.wrote_host(slab)
                    state[name] = slab.views[key]
                else:
                    homeless[key] = state[name]
        if homeless:
            slab = engine.add_slab(unit, "state", homeless)
            slab.ensure_host(engine.device).zero_()
            self._homes.update(dict.fromkeys(homeless, slab))
            for key, value in homeless.items():
                slab.host_view(key).copy_(value)
                self.state[key[0]][key[1]] = slab.views[key]

    def _loaded(
        self, parameter: nn.Parameter, number: int, name: str, value: Any, groups: list[dict[str, Any]]
    ) -> Any:
        """What torch's own `load_state_dict` would make of `value`, but in host memory if it will be streamed."""
        if not isinstance(value, torch.Tensor):
            return value
        if value.numel() > 1 and name != "step":
            return value.detach().to(
                "cpu", parameter.dtype if parameter.is_floating_point() else None, copy=True
            )
        return self._process_value_according_to_param_policy(parameter, value, number, groups, name).clone()

    @staticmethod
    def _on_host(value: Any) -> Any:
        place = GUARD.place_of(value) if isinstance(value, torch.Tensor) else None
        if place is None or place.on_host:
            return value
        GUARD.hand_out(place.engine, place.slab)
        return place.slab.on_host(value)


def _is_streamed(state: dict[str, Any], name: str) -> bool:
    # Step counters are single numbers on the CPU; they stay what they are. So does what the optimizer shares.
    value = state[name]
    if not isinstance(value, torch.Tensor) or value.numel() < 2 or value.layout is not torch.strided:
        return False
    del value
    return not is_entry_shared(state, name)


def _looks_like(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.size() == other.size()

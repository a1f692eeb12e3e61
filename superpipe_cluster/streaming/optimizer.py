"""A `torch.optim.Optimizer` over streamed units: any element-wise optimizer, stepped one unit at a time.

Owns the order of the update and the home of the optimizer's state. The arithmetic is the wrapped optimizer's own, run
on the device with exactly the tensors it would have had, so the result has the bits of a plain step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.guard import GUARD
from superpipe_cluster.streaming.slab import Slab

# A step of these couples parameters, or calls the model again: one unit at a time would be something else.
_COUPLED = (torch.optim.LBFGS,)


class StreamedOptimizer(torch.optim.Optimizer):
    """Behaves as `kind(params, **options)`, with each unit's weights, gradients and state streamed through the device.

    Learning-rate schedulers, `GradScaler`, clipping, `zero_grad` and `state_dict` work as with any optimizer.

    Raises:
        Unstreamable: an optimizer that does not treat parameters one by one.
    """

    def __init__(
        self,
        engine: Engine,
        kind: type[torch.optim.Optimizer],
        params: Iterable[Any],
        options: dict[str, Any],
    ) -> None:
        if issubclass(kind, _COUPLED):
            raise Unstreamable(
                f"{kind.__name__} updates all parameters together and cannot be stepped unit by unit",
                hint="use an element-wise optimizer such as AdamW or SGD",
            )
        self._inner = kind(params, **options)
        self._engine = engine
        self._settled: set[int] = set()  # units whose state has its home
        self._unit_of = {parameter: slab.unit for slab in engine.weights for parameter in slab.views}
        # The group dictionaries and the state are shared with the wrapped optimizer, so that a scheduler which changes
        # `param_groups[0]["lr"]` here changes it there.
        super().__init__(self._inner.param_groups, self._inner.defaults)
        self.state = self._inner.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: evaluated once, before the update, if given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for unit, groups in self._by_unit():
            if unit is None:
                self._step(groups)
            elif unit in self._settled:
                self._step_unit(unit, groups)
            else:
                self._first_step_of_unit(unit, groups)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's `state_dict`, its tensors in host memory (the streamed ones share the host copy)."""
        with GUARD.suspended():
            self._engine.flush(self._engine.state.values())
        saved = super().state_dict()
        host = {
            id(view): slab.host_view(key)
            for slab in self._engine.state.values()
            for key, view in slab.views.items()
        }
        saved["state"] = {
            number: {name: host.get(id(value), value) for name, value in state.items()}
            for number, state in saved["state"].items()
        }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()` of this class or of the wrapped one.

        The state goes to host memory parameter by parameter; the device never holds more than one parameter's.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            if len(group["params"]) != len(saved["params"]):
                raise ValueError("the saved optimizer has a parameter group of another size")
            group.update({name: value for name, value in saved.items() if name != "params"})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        by_unit: dict[int | None, dict[nn.Parameter, dict[str, Any]]] = {}
        for parameter, number in zip(parameters, numbers, strict=True):
            if number in state_dict["state"]:
                unit = self._unit_of.get(parameter)
                by_unit.setdefault(unit, {})[parameter] = state_dict["state"][number]
        with GUARD.suspended():
            for unit, states in by_unit.items():
                for parameter, state in states.items():
                    self.state[parameter] = {
                        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
                        for name, value in state.items()
                    }
                if unit is not None:
                    self._adopt_state(unit, list(states))

    def release(self) -> None:
        """Become a plain optimizer state again: tensors in host memory, nothing streamed."""
        for slab in self._engine.state.values():
            for key in slab.views:
                parameter, name = cast(tuple[nn.Parameter, str], key)
                if parameter in self.state:
                    self.state[parameter][name] = slab.host_view(key)

    # ---- one unit -----------------------------------------------------------------------------------

    def _by_unit(self) -> Iterator[tuple[int | None, list[dict[str, Any]]]]:
        """The parameter groups restricted to each unit's parameters that have a gradient, in the order of the units."""
        split: dict[int | None, list[dict[str, Any]]] = {}
        for group in self.param_groups:
            members: dict[int | None, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    members.setdefault(self._unit_of.get(parameter), []).append(parameter)
            for unit, parameters in members.items():
                split.setdefault(unit, []).append({**group, "params": parameters})
        yield from sorted(split.items(), key=lambda item: -1 if item[0] is None else item[0])

    def _step(self, groups: list[dict[str, Any]]) -> None:
        everything = self._inner.param_groups
        self._inner.param_groups = groups
        try:
            self._inner.step()
        finally:
            self._inner.param_groups = everything

    def _step_unit(self, unit: int, groups: list[dict[str, Any]]) -> None:
        engine = self._engine
        slabs = [engine.weights[unit], engine.gradients.get(unit), engine.state.get(unit)]
        with GUARD.suspended():
            engine.require([slab for slab in slabs if slab is not None])
        self._step(groups)

    def _first_step_of_unit(self, unit: int, groups: list[dict[str, Any]]) -> None:
        """Parameter by parameter, so that fresh state never takes more of the device than one parameter's."""
        parameters = [(group, parameter) for group in groups for parameter in group["params"]]
        for group, parameter in parameters:
            self._step([{**group, "params": [parameter]}])
            with GUARD.suspended():
                self.state[parameter] = {
                    name: value.to("cpu", copy=True) if self._is_streamed(value) else value
                    for name, value in self.state[parameter].items()
                }
        with GUARD.suspended():
            self._adopt_state(unit, [parameter for _, parameter in parameters])

    def _adopt_state(self, unit: int, parameters: list[nn.Parameter]) -> None:
        """Give what `self.state` holds for `parameters` its home: the unit's state slab, in host memory for now."""
        engine = self._engine
        self._settled.add(unit)
        tensors: dict[Hashable, torch.Tensor] = {
            (parameter, name): value
            for parameter in parameters
            for name, value in self.state[parameter].items()
            if self._is_streamed(value)
        }
        if not tensors:
            return
        slab = engine.state.get(unit)
        if slab is None:
            slab = Slab(unit, "state", tensors, engine.device.torch_device)
            slab.ensure_host(engine.device).zero_()
            engine.state[unit] = slab
            engine.add_slab(slab)
            GUARD.add_slab(engine, slab)
        elif slab.views.keys() != tensors.keys():
            raise Unstreamable(
                "the loaded optimizer state has other tensors than the one it replaces",
                hint="load it into a fresh optimizer, before its first step",
            )
        else:
            engine.evict([slab])
        for key, value in tensors.items():
            slab.host_view(key).copy_(value)
            parameter, name = cast(tuple[nn.Parameter, str], key)
            self.state[parameter][name] = slab.views[key]

    @staticmethod
    def _is_streamed(value: Any) -> bool:
        # Step counters are single numbers on the CPU; they stay what they are.
        return isinstance(value, torch.Tensor) and value.numel() > 1 and value.layout is torch.strided

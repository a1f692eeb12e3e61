"""What hangs on a streamed model: an entrance before each module, and hooks on gradients.

Owns putting them up and taking them down. They are made so that the model stays what it was: no forward hooks (torch's
fused encoder layers run other kernels when there are any), copies and pickles of the model are plain models, and
nothing here keeps the model alive.

[Note: threads] A thread meets a streamed model by calling one of its modules. From then on it is guarded for good: it
may run backward and the optimizer next. A thread that reads streamed parameters and has called no module is not.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.guard import GUARD


class Hangings:
    """Everything that hangs on `model`, from construction until `remove()`."""

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self._engine = engine
        self._entrances: list[tuple[nn.Module, Entrance]] = []
        self._handles: list[Any] = []
        self._watched: set[nn.Parameter] = set()  # parameters whose gradients are taken
        for module in model.modules():
            entrance = Entrance(module, self if module is model else None)
            self._entrances.append((module, entrance))
            module._compiled_call_impl = entrance
        self.watch_gradients()

    def watch_gradients(self) -> None:
        """Take the gradients of every parameter that requires one by now."""
        for parameter in self._engine.unit_of:
            if parameter.requires_grad and parameter not in self._watched:
                self._watched.add(parameter)
                take = partial(_take_gradient, self._engine)
                self._handles.append(parameter.register_post_accumulate_grad_hook(take))

    def begin_step(self) -> None:
        """The outermost forward starts."""
        GUARD.begin_step(self._engine)
        if torch.is_grad_enabled():
            self.watch_gradients()

    def remove(self) -> None:
        """Leave the model as it was."""
        for module, entrance in self._entrances:
            if module._compiled_call_impl is entrance:  # `module.compile()` may have put another one there
                module._compiled_call_impl = entrance.before
        for handle in self._handles:
            handle.remove()


class Entrance:
    """Stands before a module's `__call__`, where torch puts a compiled one; torch leaves it out of copies by itself."""

    def __init__(self, module: nn.Module, root: Hangings | None) -> None:
        self.before = module._compiled_call_impl
        self._inner = self.before or module._call_impl
        self._root = root
        self._depth = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, guarded; the model's own entrance also begins a step."""
        inside_operator = GUARD.join()
        begins = self._root is not None and not self._depth  # not if a model calls itself
        self._depth += 1
        try:
            if begins and self._root is not None:
                self._root.begin_step()
            return self._inner(*args, **kwargs)
        finally:
            self._depth -= 1
            if inside_operator:
                GUARD.leave_operator()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # for modules with a `__getstate__` of their own


def _take_gradient(engine: Engine, parameter: torch.Tensor) -> None:
    if not isinstance(parameter, nn.Parameter) or parameter.grad is None:
        return
    if parameter.grad.requires_grad:
        raise Unstreamable(
            "backward(create_graph=True) keeps a graph of the gradients, which streaming would cut",
            hint="train without second-order gradients, or do not stream this model",
        )
    if parameter.grad.layout is torch.strided and parameter.grad.dtype == parameter.dtype:
        GUARD.settle(engine)
        with GUARD.own_work():
            engine.take_gradient(parameter)
    # sparse gradients stay where autograd left them

"""What hangs on a streamed model: an entrance before each module, and hooks on gradients.

Owns putting them up and taking them down. They are made so that the model stays what it was: no forward hooks (torch's
fused encoder layers run other kernels when there are any), copies and pickles of the model are plain models, and
nothing here keeps the model alive.

[Note: threads] A thread meets a streamed model by calling one of its modules. From then on it is guarded for good: it
may run backward and the optimizer next. A thread that reads streamed parameters and has called no module is not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import stateless

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.activations.offload import Offload
from superpipe_cluster.streaming.activations.recompute import RecomputedBlock
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.slab import may_be_taken
from superpipe_cluster.streaming.watching.guard import GUARD


class Hangings:
    """Everything that hangs on `model`, from construction until `remove()`.

    Args:
        model: the streamed model.
        engine: residency of its slabs.
        recomputed: qualified names of the modules that backward is to run again.
        offload: where what autograd saves goes, if it goes anywhere.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: Engine,
        recomputed: Container[str] = (),
        offload: Offload | None = None,
    ) -> None:
        self._engine = engine
        self.offload = offload
        self._entrances: list[tuple[nn.Module, Entrance]] = []
        self._handles: list[Any] = []
        self._watched: set[nn.Parameter] = set()  # parameters whose gradients are taken
        self._registered: list[tuple[nn.Module, str, nn.Parameter, str]] = []
        for path, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    qualified = f"{path}.{name}" if path else name
                    self._registered.append((module, name, parameter, qualified))
            entrance = Entrance(module, self if module is model else None)
            if path in recomputed:
                entrance.call = RecomputedBlock(module, path, entrance.call)
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
        """The outermost forward starts.

        Raises:
            Unstreamable: a parameter is another object than when streaming began.
        """
        self._refuse_replaced()
        GUARD.begin_step(self._engine)
        if torch.is_grad_enabled():
            self.watch_gradients()

    def _refuse_replaced(self) -> None:
        # The new object would stay where it was made, outside the budget, while the bytes of the old one went on moving
        # and the optimizer went on stepping it.
        for module, name, parameter, qualified in self._registered:
            now = module._parameters.get(name)
            # (Only one like it replaces it: `torch.export` and others put stand-ins in place while they trace.)
            if now is parameter or type(now) is not nn.Parameter or _parameters_are_lent():
                continue
            raise Unstreamable(
                f"the parameter {qualified} has been replaced while its model is streamed",
                hint=f"put the old one back and write into it ({qualified}.data.copy_(...)), or close() the streamer",
            )

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
        self.call: Callable[..., Any] = self.before or module._call_impl
        self._root = root
        self._depth = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, guarded; the model's own entrance also begins a step."""
        if GUARD.resting and self._root is None:
            return self.call(*args, **kwargs)
        inside_operator = not GUARD.resting and GUARD.join()
        begins = self._root is not None and not self._depth  # not if a model calls itself
        self._depth += 1
        try:
            if begins and self._root is not None:
                self._root.begin_step()
                if self._root.offload is not None:
                    with self._root.offload.hooks():
                        return self.call(*args, **kwargs)
            return self.call(*args, **kwargs)
        finally:
            self._depth -= 1
            if inside_operator:
                GUARD.leave_operator()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # for modules with a `__getstate__` of their own


def is_streamed(module: nn.Module) -> bool:
    """Whether `module`, or anything in it, is part of a model that is streamed."""
    return any(isinstance(one._compiled_call_impl, Entrance) for one in module.modules())


def _parameters_are_lent() -> bool:
    """Whether this is inside `torch.func.functional_call`, which puts other parameters in place for one call."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == stateless.__file__:
            return True
        frame = frame.f_back
    return False


def _take_gradient(engine: Engine, parameter: torch.Tensor) -> None:
    if GUARD.resting or not isinstance(parameter, nn.Parameter) or parameter.grad is None:
        return
    if parameter.grad.requires_grad:
        raise Unstreamable(
            "backward(create_graph=True) keeps a graph of the gradients, which streaming would cut",
            hint="train without second-order gradients, or do not stream this model",
        )
    if may_be_taken(parameter.grad, parameter):
        GUARD.settle(engine)
        with GUARD.own_work():
            engine.take_gradient(parameter)

"""Recomputed activations: a block keeps its inputs alone, and backward runs it again for the rest.

Owns running a block under torch's non-reentrant checkpointing such that the second run is the first one over again,
bit for bit, whatever the block does: random numbers and autocast are torch's to restore, the rest is done here.

[Note: the same again] A block may have side effects, and the second run must neither see those of the first nor have
them once more. Its buffers (running statistics, counters) are therefore lent as they were before the first run. Its
arguments are copied as far as they are Python objects (a cache that each call appends to); tensors in them are shared.
A block that writes into a tensor it is given cannot be run twice: it is found out at its first call, whose inputs are
copied for that, and left as it is from then on. What is changed between the two runs by others is noticed by its
version and refused; the plain model would have to fail there too, or would not need the bytes and a second run does.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from superpipe_cluster.errors import Unstreamable

_autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
_Call = Callable[..., Any]
_SHARED = (
    nn.Module,
    Enum,
    type,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.ModuleType,
)


class RecomputedBlock:
    """Calls a block so that backward runs it again; stands before its `__call__`.

    Args:
        module: the block.
        name: its qualified name, for errors.
        call: what calling it does otherwise.
    """

    def __init__(self, module: nn.Module, name: str, call: _Call) -> None:
        self.module = module
        self.name = name
        self.call = call
        self.writes_inputs: bool | None = None  # not known before the first call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block, under checkpointing where gradients are recorded and nobody checkpoints already."""
        if not torch.is_grad_enabled() or self.writes_inputs or _is_checkpointed():
            return self.call(*args, **kwargs)
        run = _Run(self, args, kwargs)
        # As two positional arguments, so that torch finds the devices of all tensors, whose random states it keeps.
        return checkpoint(run, args, kwargs, use_reentrant=False)


class _Run:
    """One call of a block: the first time for its result, each further time for its activations."""

    def __init__(self, block: RecomputedBlock, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._block = block
        self._tensors: list[torch.Tensor] = []
        self._inputs = _Duplicate(self._tensors).of((args, kwargs))
        self._tensors.extend(block.module.parameters())
        self._versions: list[int] | None = None  # after the first run
        self._buffers = {
            module: {name: one.clone() for name, one in module._buffers.items() if one is not None}
            for module in block.module.modules()
            if module._buffers
        }

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._versions is None:
            return self._first(args, kwargs)
        if self._versions != _versions(self._tensors):
            raise Unstreamable(
                f"an input or a weight of {self._block.name} was changed in place between forward and backward, "
                "which must run it again",
                hint='use activations="offload" or "keep"',
            )
        args, kwargs = _Duplicate([]).of(self._inputs)
        with self._buffers_as_before():
            return self._block.call(*args, **kwargs)

    def _first(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        block, before = self._block, _versions(self._tensors)
        copied = _Duplicate([], torch.clone).of(self._inputs) if block.writes_inputs is None else None
        result = block.call(*args, **kwargs)
        self._versions = _versions(self._tensors)
        if before != self._versions:
            if copied is None:
                raise Unstreamable(
                    f"{block.name} has begun to write into its inputs and cannot be run again",
                    hint='use activations="offload" or "keep"',
                )
            self._inputs = copied
        block.writes_inputs = before != self._versions
        return result

    @contextmanager
    def _buffers_as_before(self) -> Iterator[None]:
        now = {module: dict(module._buffers) for module in self._buffers}
        for module, before in self._buffers.items():
            module._buffers.update({name: one.clone() for name, one in before.items()})
        try:
            yield
        finally:
            for module, buffers in now.items():
                module._buffers.update(buffers)


class _Duplicate:
    """Copies Python objects that can change, down to the tensors in them, which are shared (or passed to `leaf`)."""

    def __init__(
        self, found: list[torch.Tensor], leaf: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self._found = found
        self._leaf = leaf
        self._made: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """A copy of `value`, the same for the same object."""
        if isinstance(value, torch.Tensor):
            if self._leaf is None:
                self._found.append(value)
                return value
            return self._made[id(value)] if id(value) in self._made else self._once(value, self._leaf(value))
        if type(value) is tuple:
            return tuple(self.of(one) for one in value)
        if id(value) in self._made:
            return self._made[id(value)]
        if type(value) is list or type(value) is deque:
            made = self._once(value, type(value)())
            made.extend(self.of(one) for one in value)
            return made
        if type(value) is set:
            return self._once(value, set(value))
        if type(value) is dict:
            made = self._once(value, {})
            made.update((key, self.of(one)) for key, one in value.items())
            return made
        if isinstance(value, _SHARED) or not _is_plain_object(value):
            return value
        made = self._once(value, object.__new__(type(value)))
        made.__dict__.update((name, self.of(one)) for name, one in value.__dict__.items())
        return made

    def _once(self, value: Any, made: Any) -> Any:
        self._made[id(value)] = made
        return made


def _is_plain_object(value: Any) -> bool:
    """Whether everything about it is in its `__dict__`, so that a copy of that is a copy of it."""
    kinds = type(value).__mro__
    return (
        hasattr(value, "__dict__")
        and all(
            kind is object or ("__dict__" in kind.__dict__ or not kind.__dict__.get("__slots__", ()))
            for kind in kinds
        )
        and object.__new__ is type(value).__new__
    )


def _versions(tensors: list[torch.Tensor]) -> list[int]:
    return [0 if one.is_inference() else one._version for one in tensors]


def _is_checkpointed() -> bool:
    """Whether this call is within a checkpoint, or within the second run of one."""
    hooks = _autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == checkpoint.__module__

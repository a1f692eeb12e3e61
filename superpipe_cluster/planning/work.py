"""What one operator does, in numbers: its shapes, arithmetic and traffic.

Owns signatures. Two calls with the same signature take the same time on a device, so a step of thousands of operators
is a few dozen signatures with their counts; `rates` says how long each takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor without its values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, each counted once."""
        count = 1
        for extent, step in zip(self.size, self.stride, strict=True):
            count *= extent if step else 1
        return count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Signature:
    """An operator with the shapes that it is called with.

    Attributes:
        name: of the operator, with its overload.
        arguments: positional and keyword arguments, flattened; tensors as `TensorShape`, devices left out.
        flops: floating-point operations of its matrix products, 0 for all others.
        nbytes: bytes that it reads and writes.
    """

    name: str
    arguments: tuple[Any, ...]
    flops: int
    nbytes: int

    @property
    def key(self) -> str:
        """The same text for the same work, in every process."""
        return f"{self.name}({', '.join(map(_text, self.arguments))})"

    @property
    def dtype(self) -> torch.dtype | None:
        """Of its first tensor."""
        return next((one.dtype for one in self.arguments if isinstance(one, TensorShape)), None)


def _text(value: Any) -> str:
    if isinstance(value, TensorShape):
        return f"{value.dtype}{list(value.size)}/{list(value.stride)}".removeprefix("torch.")
    return repr(value)


class Signatures:
    """Gives the operators of a program numbers, one for each signature.

    Attributes:
        all: the signatures by number.
        calls: how to run each again: operator, structure of its arguments.
    """

    def __init__(self) -> None:
        self.all: list[Signature] = []
        self.calls: list[tuple[OpOverload, Any]] = []
        self._numbers: dict[Any, int] = {}

    def number_of(self, operator: OpOverload, args: Any, kwargs: Any, result: Any) -> int:
        """The number of the signature of this call."""
        flat, structure = tree_flatten((args, kwargs))
        arguments = tuple(map(_shape, flat))
        key = (operator, arguments, structure)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.all)
            moved = (*arguments, *map(_shape, tree_flatten(result)[0]))
            self.all.append(
                Signature(
                    name=operator.name(),
                    arguments=arguments,
                    flops=_flops(operator, args, kwargs, result),
                    nbytes=0
                    if operator.is_view
                    else sum(one.nbytes for one in moved if isinstance(one, TensorShape)),
                )
            )
            self.calls.append((operator, structure))
        return number

    def call(self, number: int, make: Callable[[TensorShape], torch.Tensor]) -> Callable[[], Any]:
        """The operator, ready to be run on tensors that `make` makes."""
        operator, structure = self.calls[number]
        made = [make(one) if isinstance(one, TensorShape) else one for one in self.all[number].arguments]
        args, kwargs = tree_unflatten(made, structure)
        return lambda: operator(*args, **kwargs)


def _shape(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return TensorShape(tuple(value.size()), (1,) * value.dim(), value.dtype)
        return TensorShape(tuple(value.size()), value.stride(), value.dtype)
    return value if value is None or isinstance(value, _VALUES) else None  # a generator, a profiler's handle


_VALUES = (bool, int, float, complex, str, torch.dtype, torch.layout, torch.device, torch.memory_format)


def _flops(operator: OpOverload, args: Any, kwargs: Any, result: Any) -> int:
    formula = flop_registry.get(operator.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))

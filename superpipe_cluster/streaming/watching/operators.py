"""What the read guard must know of an operator, and how one over many tensors is run piece by piece.

Owns the reading of schemas and the few operators that need care. Pure: nothing here knows a slab.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

# These neither read nor check the bytes of their input, so they work on an evicted slab.
_PASSES = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
# Neither do those by which tensors without memory are asked what they are (`prim::device`). Autograd asks where no
# exception may pass: one would end the process.
_QUESTIONS = "prim"
_LISTS = ("aten::_foreach_", "aten::_amp_foreach_")
_FUSED = {"aten::_fused_adam_", "aten::_fused_adamw_", "aten::_fused_adagrad_", "aten::_fused_sgd_"}
_JOINS = {torch.ops.aten.cat.default, torch.ops.aten.stack.default}
# These would give a slab's storage another size.
_RESIZES = ("aten::resize_", "aten::resize_as_")
# Autograd has another formula for these while any dispatch mode is on (`isTensorSubclassLike` in its source), with
# other last bits. Found by running torch's whole table of operators with and without a mode.
_OTHER_GRADIENT = ("aten::prod",)


@dataclass(frozen=True)
class Traits:
    """What an operator's schema says of it.

    Attributes:
        operator: the operator itself, kept alive.
        passes: it does not touch the bytes of what it is given.
        writes: positions and names of the arguments that it changes.
        makes_tensors: whether any result is new memory.
        over_lists: it does the same to each tensor of its lists.
        joins: it puts the tensors of its list side by side.
        resizes: it changes the size of the memory that it is given.
        other_gradient: its gradient has other bits under a dispatch mode.
        unwrapped: no kernel of autograd's stands before it; see [Note: as without a mode] in the guard.
    """

    operator: OpOverload
    passes: bool
    writes: tuple[int | str, ...]
    makes_tensors: bool
    over_lists: bool
    joins: bool
    resizes: bool
    other_gradient: bool
    unwrapped: bool


def traits_of(operator: OpOverload) -> Traits:
    """Read the schema of `operator`."""
    schema = operator._schema
    writes: list[int | str] = []
    for at, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            writes.append(argument.name if argument.kwarg_only else at)
    name = operator.name()
    dispatched = torch._C._dispatch_has_kernel(name)  # `prim::device` and its like are not
    return Traits(
        operator=operator,
        passes=operator in _PASSES or operator.namespace == _QUESTIONS,
        writes=tuple(writes),
        makes_tensors=any(result.alias_info is None for result in schema.returns),
        over_lists=schema.name.startswith(_LISTS) or schema.name in _FUSED,
        joins=operator in _JOINS,
        resizes=schema.name in _RESIZES,
        other_gradient=schema.name in _OTHER_GRADIENT,
        unwrapped=dispatched and not torch._C._dispatch_has_kernel_for_dispatch_key(name, "ADInplaceOrView"),
    )


def in_parts(
    run: Callable[[tuple[Any, ...]], Any], args: tuple[Any, ...], part_of: Callable[[list[Any]], Hashable]
) -> Any:
    """Run an operator over lists on one part of them after the other; results are per tensor, so no bit changes.

    Args:
        run: runs the operator on shorter lists.
        args: its arguments; those that are lists of the greatest length are cut.
        part_of: tells from the tensors at one position which part they belong to.
    """
    length = max(len(value) for value in args if isinstance(value, (list, tuple)))
    cut = {at for at, value in enumerate(args) if _length(value) == length}
    parts: dict[Hashable, list[int]] = {}
    for index in range(length):
        parts.setdefault(part_of([args[at][index] for at in cut]), []).append(index)
    results: list[Any] = [None] * length
    returns_list = False
    for indices in parts.values():
        result = run(tuple(_pick(value, indices) if at in cut else value for at, value in enumerate(args)))
        if isinstance(result, (list, tuple)):
            returns_list = True
            for index, one in zip(indices, result, strict=True):
                results[index] = one
    return results if returns_list else None


def joined(
    run: Callable[[OpOverload, tuple[Any, ...]], Any],
    operator: OpOverload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Run an operator that joins tensors one tensor at a time, so that no two of them are needed together.

    Args:
        run: runs another operator.
        operator: `cat` or `stack`.
        args: its arguments.
        kwargs: its keyword arguments.
    """
    tensors = args[0]
    alike = [torch.empty_strided(one.size(), one.stride(), dtype=one.dtype, device="meta") for one in tensors]
    shape = operator(alike, *args[1:], **kwargs)
    result = torch.empty_strided(shape.size(), shape.stride(), dtype=shape.dtype, device=tensors[0].device)
    dim, start = args[1] if len(args) > 1 else kwargs.get("dim", 0), 0
    for at, one in enumerate(tensors):
        if operator is torch.ops.aten.stack.default:
            place = result.select(dim, at)
        elif one.dim() == 1 and not one.numel():  # `cat` leaves these out whatever the others' shape
            continue
        else:
            place = result.narrow(dim, start, one.size(dim))
            start += one.size(dim)
        run(torch.ops.aten.copy_.default, (place, one))
    return result


def _length(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return len(value) if value.dim() == 1 else 0  # one scalar per tensor
    return len(value) if isinstance(value, (list, tuple)) else 0


def _pick(value: Any, indices: list[int]) -> Any:
    return value[indices] if isinstance(value, torch.Tensor) else [value[index] for index in indices]

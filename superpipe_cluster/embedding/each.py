"""Several tensors of one shape as one, each operation done on each of them by itself.

Owns that tensor. A model that is called with it makes one pass over its weights, and each row has the bits that it has
alone: every operator gets the very tensors that it would get then. It knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten


class NotAlike(Exception):
    """The program treats the tensors differently, or mixes them: they have to go one after another."""


class Each(torch.Tensor):
    """Looks like the first of its parts."""

    parts: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, parts: Sequence[torch.Tensor]) -> Each:
        """The parts as one tensor.

        Raises:
            NotAlike: they have different shapes.
        """
        if len({part.shape for part in parts}) > 1:
            raise NotAlike
        each = torch.Tensor._make_subclass(cls, parts[0])
        each.parts = tuple(parts)
        return each

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """`func` on the parts, one after another."""
        given, structure = tree_flatten((args, kwargs or {}))
        if _writes(func, kwargs) and not isinstance(args[0], Each):
            raise NotAlike  # into a tensor that is there once
        made: list[Any] = []
        for number in range(next(len(one.parts) for one in given if isinstance(one, Each))):
            own = [one.parts[number] if isinstance(one, Each) else one for one in given]
            own_args, own_kwargs = tree_unflatten(own, structure)
            made.append(func(*own_args, **own_kwargs))
        return _together(made)


def _writes(func: Callable[..., Any], kwargs: dict[str, Any] | None) -> bool:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name == "__setitem__" or name.startswith("__i") or "out" in (kwargs or {})


def _together(made: list[Any]) -> Any:
    """What `func` made of each part, as what it would make of one."""
    flat = [tree_flatten(one) for one in made]
    leaves: list[Any] = []
    for same in zip(*(values for values, _ in flat), strict=True):
        if isinstance(same[0], torch.Tensor):
            leaves.append(Each.of(same))
        elif all(one == same[0] for one in same):
            leaves.append(same[0])
        else:
            raise NotAlike
    return tree_unflatten(leaves, flat[0][1])

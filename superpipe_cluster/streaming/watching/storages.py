"""Which tensors share one memory: the identity of storages, and how many hold on to one.

Owns these questions. A tensor that shares its memory with one the runtime does not know of must not be moved
away under it: whoever holds the other one would go on with stale bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of the storage of `tensor`, the same for every view of it.

    Raises:
        NotImplementedError: a sparse tensor or another layout without one storage.
    """
    return tensor.untyped_storage()._cdata


def holders(key: int) -> int:
    """Number of tensors (and of runtime objects around them) that keep the storage `key` alive."""
    return torch._C._storage_Use_Count(key)


def tensors_on(tensor: torch.Tensor) -> int:
    """Number of tensors that share the memory of `tensor`, itself among them."""
    return holders(storage_key(tensor)) - _HOLDERS_OF_ONE + 1


def give_memory(tensor: torch.Tensor, memory: torch.Tensor) -> None:
    """Make `tensor` (a parameter, a buffer) mean `memory`; it stays the same object, also if it was on `meta`."""
    if tensor.is_meta and not memory.is_meta:
        kept = vars(tensor)
        new = (
            nn.Parameter(memory, tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else memory.detach()
        )
        torch.utils.swap_tensors(tensor, new)
        vars(tensor).update(kept)
    else:
        tensor.data = memory


def is_gradient_shared(parameter: torch.Tensor) -> bool:
    """Whether anything but `parameter` keeps its gradient, or memory of it, alive."""
    return tensors_on(_gradient(parameter)) > 1 or sys.getrefcount(parameter.grad) > _REFERENCES_OF_GRADIENT


def is_entry_shared(entries: Mapping[str, Any], name: str) -> bool:
    """Whether anything but `entries` keeps its tensor `name`, or memory of it, alive."""
    return tensors_on(entries[name]) > 1 or sys.getrefcount(entries[name]) > _REFERENCES_OF_ENTRY


def is_entry_movable(entries: Mapping[str, Any], name: str) -> bool:
    """Whether the tensor `name` of an optimizer's state can be moved away: it is not shared, and no step counter."""
    value = entries[name]
    if not isinstance(value, torch.Tensor) or value.numel() < 2 or value.layout is not torch.strided:
        return False
    del value  # it would count as one more holder
    return not is_entry_shared(entries, name)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    gradient = parameter.grad
    assert gradient is not None
    return gradient


def _count_one() -> tuple[int, int, int]:
    """What the counts are for a tensor that nobody else holds; it differs between versions of torch."""
    with torch.inference_mode(False):
        parameter = nn.Parameter(torch.zeros(1, device="cpu"))
        parameter.grad = torch.zeros(1, device="cpu")
        entries = {"": torch.zeros(1, device="cpu")}
    storage_key(entries[""])
    return (
        holders(storage_key(_gradient(parameter))),
        sys.getrefcount(parameter.grad),
        sys.getrefcount(entries[""]),
    )


_HOLDERS_OF_ONE, _REFERENCES_OF_GRADIENT, _REFERENCES_OF_ENTRY = _count_one()

"""Ways in which bytes leave torch without an operator: pointers, numpy arrays, pickles, printing, state dicts.

Owns the replacements for the methods of torch that do so, in force while any model is streamed. For a tensor that is on
no slab they are the methods they replace. For one that is, each either brings the bytes first, or hands out the host
copy, or refuses; otherwise it would read memory that is not there. The method behind `Module.to()` is one of them: it
would take every weight off its slab.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from superpipe_cluster.errors import Unstreamable
from superpipe_cluster.streaming.watching.entrance import is_streamed
from superpipe_cluster.streaming.watching.guard import GUARD, Place

_Exit = Callable[..., Any]


def _on_host(place: Place, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's twin in host memory, up to date."""
    if place.on_host:
        with GUARD.own_work():
            place.engine.before_host_use(place.slab, to_write=False)
        return tensor
    GUARD.hand_out(place.engine, place.slab)
    with GUARD.own_work():
        return place.slab.on_host(tensor.detach())


def _read_host_copy(original: _Exit, place: Place, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return original(_on_host(place, tensor), *args, **kwargs)


def _snapshot(original: _Exit, place: Place, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """As from a GPU, an array is a copy. It cannot be written to, as that would be lost."""
    if tensor.requires_grad and torch.is_grad_enabled():
        return original(tensor, *args, **kwargs)  # raises, and says what to call instead
    with GUARD.own_work():
        array = original(_on_host(place, tensor).clone(), *args, **kwargs)
    array.flags.writeable = False
    return array


def _point(original: _Exit, place: Place, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """What is written through a pointer counts as written, if that is done before the next operator on the unit.

    On a GPU it points to the device and is good until then; in RAM it points to the host copy and stays good.
    """
    engine, slab = place.engine, place.slab
    with GUARD.own_work():
        if place.on_host or engine.device.torch_device.type == "cpu":
            engine.evict([slab])
            return original(_on_host(place, tensor), *args, **kwargs)
        engine.require([slab])
        engine.wrote(slab)
        return original(tensor, *args, **kwargs)


def _print(original: _Exit, place: Place, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if not place.on_host:
        with GUARD.own_work():
            place.engine.require([place.slab])
    return original(tensor, *args, **kwargs)


def _copy(original: _Exit, place: Place, tensor: torch.Tensor, memo: dict[int, Any]) -> Any:
    """A copy is made in host memory, where there is room for it."""
    if id(tensor) in memo or not tensor.is_leaf:
        return original(tensor, memo)
    with GUARD.own_work():
        twin = _on_host(place, tensor)
        if isinstance(tensor, nn.Parameter):
            twin = nn.Parameter(twin, tensor.requires_grad)
            vars(twin).update(vars(tensor))
            memo[id(tensor)] = original(twin, {})  # the twin dies, and its id with it
        else:
            memo[id(tensor)] = twin.detach().clone().requires_grad_(tensor.requires_grad)
    return memo[id(tensor)]


def _refuse(original: _Exit, place: Place, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    raise Unstreamable(
        f"{original.__name__}() would share the memory of a streamed tensor, which comes and goes",
        hint="clone() the tensor first",
    )


_REPLACED: list[tuple[type, str, Callable[..., Any]]] = [
    (torch.Tensor, "numpy", _snapshot),
    (torch.Tensor, "tolist", _read_host_copy),
    (torch.Tensor, "data_ptr", _point),
    (torch.Tensor, "__repr__", _print),
    (torch.Tensor, "__reduce_ex__", _read_host_copy),
    (torch.Tensor, "__deepcopy__", _copy),
    (nn.Parameter, "__deepcopy__", _copy),
    (torch.Tensor, "__dlpack__", _refuse),
    (torch.Tensor, "share_memory_", _refuse),
]
_before: list[tuple[type, str, _Exit | None]] = []


def _hand_out_own(original: _Exit) -> _Exit:
    """The entries of a state dict are the host copies: nothing is moved for them, and they are the parameters still."""

    @wraps(original)
    def save_to_state_dict(
        module: nn.Module, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        original(module, destination, prefix, keep_vars)
        for name in () if keep_vars else module._parameters:
            entry = destination.get(prefix + name)
            place = GUARD.place_of(entry) if isinstance(entry, torch.Tensor) else None
            if place is not None and isinstance(entry, torch.Tensor):
                destination[prefix + name] = _on_host(place, entry)

    return save_to_state_dict


def _keep_in_place(original: _Exit) -> _Exit:
    """`to()`, `cuda()`, `half()`, `to_empty()` and all others that end here: refused before anything has changed."""

    @wraps(original)
    def apply(
        module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> nn.Module:
        if is_streamed(module):
            with GUARD.own_work():
                _refuse_conversion(module, convert)
        return original(module, convert, recurse)

    return apply


def _refuse_conversion(module: nn.Module, convert: Callable[[torch.Tensor], torch.Tensor]) -> None:
    kinds = {(one.dtype, one.device, one.dim()) for one in (*module.parameters(), *module.buffers())}
    for dtype, device, dimensions in kinds:
        alike = torch.empty((2,) * dimensions, dtype=dtype, device=device)
        converted = convert(alike)
        if converted is not alike:
            raise Unstreamable(
                f"{type(module).__name__} is being streamed: its {dtype} tensors on {device} cannot be moved or "
                f"converted ({converted.dtype} on {converted.device} was asked for)",
                hint="close() the streamer, move or convert the model, then stream it again",
            )


def guard_exits() -> None:
    """Put the replacements in force."""
    if _before:
        return
    for owner, name, replacement in _REPLACED:
        _replace(owner, name, _for_streamed(getattr(owner, name), replacement))
    _replace(nn.Module, "_apply", _keep_in_place(nn.Module._apply))
    _replace(nn.Module, "_save_to_state_dict", _hand_out_own(nn.Module._save_to_state_dict))


def release_exits() -> None:
    """Give torch its own methods back."""
    for owner, name, own in _before:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
    _before.clear()


def _replace(owner: type, name: str, method: _Exit) -> None:
    _before.append((owner, name, owner.__dict__.get(name)))
    setattr(owner, name, method)


def _for_streamed(original: _Exit, replacement: Callable[..., Any]) -> _Exit:
    @wraps(original)
    def method(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        place = GUARD.place_of(tensor)
        if place is None:
            return original(tensor, *args, **kwargs)
        GUARD.wake()
        return replacement(original, place, tensor, *args, **kwargs)

    return method

"""Filling a model that has no weights yet: from files or a state dict straight to the host copies.

Owns which of the given tensors belongs to which of the model's, and the errors if they do not fit. The format of files
is `weight_files`'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from typing_extensions import override

from superpipe_cluster.errors import BadInput, Unstreamable
from superpipe_cluster.streaming.homes.contents import Contents
from superpipe_cluster.streaming.homes.memory import bytes_of_tensor
from superpipe_cluster.streaming.homes.weight_files import StoredTensor, WeightFiles
from superpipe_cluster.streaming.watching.storages import give_memory

Weights = Mapping[str, torch.Tensor] | Mapping[str, StoredTensor] | Path | str
_NAMED = 4  # names in an error message


class LoadedContents(Contents):
    """The contents of a model's parameters and persistent buffers, from `weights`.

    What is on `meta` must be in `weights`, under any of its names if it is tied; what has data keeps it if it is not
    there, and is overwritten if it is.

    Args:
        model: the model.
        weights: a safetensors file, a folder of such files, or a state dict.

    Raises:
        BadInput: names or shapes do not fit, or a file is damaged.
        FileMissing: there is no file.
        Unstreamable: a buffer on `meta` is not among what is saved of a model.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        given = weights if isinstance(weights, Mapping) else WeightFiles(Path(weights))
        where = "the given tensors" if isinstance(weights, Mapping) else str(weights)
        names = _names(model)
        self._sources: dict[int, StoredTensor | torch.Tensor] = {}
        missing: list[str] = []
        misfits: list[str] = []
        for tensor, own in _by_tensor(names):
            found = next((name for name in own if name in given), None)
            if found is None:
                missing += [own[0]] if tensor.is_meta else []
            elif tuple(given[found].shape) != tuple(tensor.shape):
                misfits.append(
                    f"{found} is {list(given[found].shape)} there and {list(tensor.shape)} in the model"
                )
            else:
                self._sources[id(tensor)] = given[found]
        unexpected = [name for name in given if name not in names]
        problems = [f"missing {_some(missing)}"] if missing else []
        problems += [f"unexpected {_some(unexpected)}"] if unexpected else []
        problems += [_some(misfits)] if misfits else []
        if problems:
            raise BadInput(
                f"weights: {where} do not fit the model: {'; '.join(problems)}",
                hint="give the weights of this very model, or rename them in a mapping of names to tensors",
            )

    @override
    def write(self, tensor: torch.Tensor, into: torch.Tensor) -> None:
        source = self._sources.get(id(tensor))
        if source is None:
            super().write(tensor, into)
        elif isinstance(source, torch.Tensor):
            into.copy_(source.detach())
        else:
            source.read_into(into)

    @override
    def identify(self, tensor: torch.Tensor, tell: Callable[[Any], object]) -> None:
        source = self._sources.get(id(tensor))
        if source is None:
            super().identify(tensor, tell)
        elif isinstance(source, torch.Tensor):
            alike = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            alike.copy_(source.detach())
            tell(b"bytes ")
            tell(bytes_of_tensor(alike))
        else:
            tell(f"file {source.identity} {source.start_bytes} {source.shape} {source.dtype} ".encode())
            tell(f"{tensor.dtype} {tensor.stride()} ".encode())

    def fill(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give what does not stream its contents, in host memory of its own."""
        for tensor in tensors:
            if id(tensor) not in self._sources:
                continue
            into = torch.empty_like(tensor, device="cpu", requires_grad=False)
            self.write(tensor, into)
            if tensor.is_meta:
                give_memory(tensor, into)
            else:
                tensor.data.copy_(into)


def check_weights(model: nn.Module, weights: Weights) -> None:
    """Raise what `stream(model, weights=weights)` would raise because of them; nothing is read but headers."""
    LoadedContents(model, weights)


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """In this `with`, the parameters of modules that are built take no memory; buffers are real.

    For models whose weights come from files: buffers that are computed when the model is built, and never saved, are
    right then. Under `torch.device("meta")` they would have no data.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and type(param) is nn.Parameter and not param.is_meta and not is_lazy(param):
            kept = vars(param)
            param = nn.Parameter(param.to("meta"), param.requires_grad)
            vars(param).update(kept)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _names(model: nn.Module) -> dict[str, torch.Tensor]:
    """All names of what is saved of a model; a tied tensor has several."""
    names: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names[dot + name] = parameter
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if name not in module._non_persistent_buffers_set:
                names[dot + name] = buffer
            elif buffer.is_meta:
                raise Unstreamable(
                    f"the buffer {dot + name} has no data, and it is not among what is saved of a model",
                    hint="build the model in `with superpipe_cluster.streaming.parameters_on_meta():` instead of under "
                    'torch.device("meta"): its buffers are real then',
                )
    return names


def _by_tensor(names: Mapping[str, torch.Tensor]) -> Iterable[tuple[torch.Tensor, list[str]]]:
    found: dict[int, tuple[torch.Tensor, list[str]]] = {}
    for name, tensor in names.items():
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return found.values()


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")

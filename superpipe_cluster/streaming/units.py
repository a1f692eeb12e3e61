"""Which parameters move together: finds the units of any model.

Owns the partition and nothing of its movement. The partition decides speed, never correctness: what an operator reads
is loaded whatever unit it is in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from superpipe_cluster.streaming.watching.storages import storage_key, tensors_on

#: A repeated block that holds more than this share of all bytes is opened if it has repeated blocks inside.
_LARGEST_BLOCK = 0.25
#: What is trained of frozen units (adapters, biases) stays on the device if it is at most this share of all bytes; its
#: gradients and optimizer state, which are about three times as much, then stay there as well.
_RESIDENT_ADAPTERS = 0.02
#: A model without repeated blocks is cut into about this many units.
_UNITS_WITHOUT_BLOCKS = 16


@dataclass
class Unit:
    """A part of a model that moves as one piece.

    Attributes:
        name: qualified name of its module, or `first..last` for a run of modules.
        parameters: qualified name -> parameter, each parameter in one unit only.
        is_block: whether it is one of several repeated blocks; `name` is then a module's.
    """

    name: str
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    is_block: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters, without alignment."""
        return sum(parameter.nbytes for parameter in self.parameters.values())


@dataclass
class Partition:
    """The units of a model in order of registration, and what always stays on the device."""

    units: list[Unit]
    resident: dict[str, torch.Tensor]


def partition(model: nn.Module, device: torch.device | None = None) -> Partition:
    """Split `model` into units.

    Repeated blocks (children of one class in a `ModuleList`, `Sequential` or any other container) are one unit each; a
    block that is large and itself holds repeated blocks is opened. What lies outside blocks (embeddings, norms, heads,
    parameters owned by containers) is gathered, in order of registration, into units of about the size of a block.

    The trained parameters of a mostly frozen unit (adapters) stay on the device if they are few, and else are units of
    their own, so that the frozen ones never have to be copied back.

    Buffers stay on the device, and so do parameters that are no plain dense tensors or that share their storage with
    another parameter object (a parameter object used in several places is simply one parameter). On the device where
    they are already (`device`, if given), so do parameters that share their memory with any other tensor, for instance
    one in a state dict that is still held: nobody notices a change of memory there, as they would after `.to()`.
    """
    streamable, resident = _sort_out(model, device)
    total = sum(parameter.nbytes for parameter in streamable.values())
    names = {id(parameter): name for name, parameter in streamable.items()}

    pieces = list(_pieces(model, "", total, names))
    blocks = [piece for piece in pieces if piece.is_block]
    target = max((piece.nbytes for piece in blocks), default=max(1, total // _UNITS_WITHOUT_BLOCKS))

    units: list[Unit] = []
    run: list[_Piece] = []

    def close_run() -> None:
        if run:
            name = run[0].name if len(run) == 1 else f"{run[0].name}..{run[-1].name}"
            units.append(Unit(name, {n: p for piece in run for n, p in piece.parameters.items()}))
            run.clear()

    for piece in pieces:
        if piece.is_block:
            close_run()
            units.append(Unit(piece.name, piece.parameters, is_block=True))
            continue
        if run and sum(one.nbytes for one in run) + piece.nbytes > target:
            close_run()
        run.append(piece)
    close_run()
    return Partition(_by_training(units, resident, total), resident)


def _by_training(units: list[Unit], resident: dict[str, torch.Tensor], total: int) -> list[Unit]:
    """`units` such that a frozen base is not copied back for the few parameters in it that are trained.

    What is trained of mostly frozen units is added to `resident` if it is little, and else has units of its own.
    """
    adapters: dict[str, dict[str, nn.Parameter]] = {}
    for unit in units:
        trained = {name: one for name, one in unit.parameters.items() if one.requires_grad}
        if trained and 2 * sum(one.nbytes for one in trained.values()) < unit.nbytes:
            adapters[unit.name] = trained
    nbytes = sum(one.nbytes for trained in adapters.values() for one in trained.values())
    stay = nbytes <= _RESIDENT_ADAPTERS * total
    split: list[Unit] = []
    for unit in units:
        trained = adapters.get(unit.name, {})
        if not trained:
            split.append(unit)
            continue
        split.append(replace(unit, parameters={n: p for n, p in unit.parameters.items() if n not in trained}))
        if stay:
            resident.update(trained)
        else:
            split.append(Unit(f"{unit.name} (trained)", trained))
    return split


@dataclass
class _Piece:
    name: str
    parameters: dict[str, nn.Parameter]
    is_block: bool

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters.values())


def _sort_out(
    model: nn.Module, device: torch.device | None
) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    streamable: dict[str, nn.Parameter] = {}
    resident: dict[str, torch.Tensor] = {}
    by_storage: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if _is_plain(parameter):
            streamable[name] = parameter
            by_storage[storage_key(parameter)].append(name)
        else:
            resident[name] = parameter
    for names in by_storage.values():
        sharing = [streamable[name] for name in names]
        seen_elsewhere = sharing[0].device == device and tensors_on(sharing[0]) > len(sharing)
        # Views of one storage (a fused weight, `tied.data = other.data`) can only move as what they are: one memory.
        if seen_elsewhere or (len(sharing) > 1 and _overlap(sharing)):
            resident.update({name: streamable.pop(name) for name in names})
    resident.update(model.named_buffers())
    return streamable, resident


def _is_plain(parameter: torch.Tensor) -> bool:
    """Whether it is an ordinary dense tensor; a fake one (in a profile) is what it stands for."""
    ordinary = type(parameter) is nn.Parameter and type(parameter.data) is torch.Tensor
    if not ordinary and not isinstance(parameter, FakeTensor):
        return False
    if parameter.layout is not torch.strided or parameter.numel() == 0 or parameter.is_quantized:
        return False
    if parameter.is_conj() or parameter.is_neg():  # a copy would be resolved, and take other kernels
        return False
    return (
        torch.empty_like(parameter, device="meta").stride() == parameter.stride() or parameter.is_contiguous()
    )


def _overlap(parameters: list[nn.Parameter]) -> bool:
    ends = 0
    for start, end in sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in parameters):
        if start < ends:
            return True
        ends = end
    return False


def _pieces(module: nn.Module, name: str, total: int, names: dict[int, str]) -> Iterator[_Piece]:
    """Blocks and single owners of parameters under `module`, in order; `names` shrinks as parameters are given out."""
    own = _take(module.parameters(recurse=False), names)
    if isinstance(module, (nn.ParameterList, nn.ParameterDict)):  # a mere shelf: nothing reads it as a whole
        for parameter_name, parameter in own.items():
            yield _Piece(parameter_name, {parameter_name: parameter}, is_block=False)
    elif own:
        yield _Piece(name or type(module).__name__, own, is_block=False)
    blocks = _repeated(module, total, names)
    for child_name, child in module.named_children():
        qualified = f"{name}.{child_name}" if name else child_name
        if child_name in blocks:
            taken = _take(child.parameters(), names)
            if taken:
                yield _Piece(qualified, taken, is_block=True)
        else:
            yield from _pieces(child, qualified, total, names)


def _take(parameters: Iterator[nn.Parameter], names: dict[int, str]) -> dict[str, nn.Parameter]:
    return {names.pop(id(one)): one for one in parameters if id(one) in names}


def _repeated(module: nn.Module, total: int, names: dict[int, str]) -> set[str]:
    """Names of the children of `module` that are blocks to move whole."""
    of_class: dict[type[nn.Module], list[str]] = defaultdict(list)
    children = dict(module.named_children())
    for name, child in children.items():
        if any(
            True for _ in child.children()
        ):  # a leaf is no block: two norms side by side do not make a layer
            of_class[type(child)].append(name)
    blocks: set[str] = set()
    for siblings in of_class.values():
        if len(siblings) < 2:
            continue
        for name in siblings:
            child = children[name]
            size = sum(one.nbytes for one in child.parameters() if id(one) in names)
            if size <= _LARGEST_BLOCK * total or not _has_blocks_inside(child):
                blocks.add(name)
    return blocks


def _has_blocks_inside(module: nn.Module) -> bool:
    for inner in module.modules():
        classes = [type(child) for child in inner.children() if any(True for _ in child.children())]
        if len(classes) != len(set(classes)):
            return True
    return False

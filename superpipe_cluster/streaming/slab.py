"""A slab: one flat piece of device memory with its master copy in host RAM.

Owns the memory layout and the bookkeeping of where the bytes are. It does not decide when they move.

Every unit has up to three slabs: its weights, its gradients, its optimizer state. Tensors of a slab are views of *one*
flat storage, whatever their dtypes, so a load is one copy. [Note: one storage per slab] Eviction resizes that storage
to zero and a load resizes it back, as FSDP2 does for unsharded parameters. Tensors that autograd saved, and views such
as `w.t()`, share the storage object and so stay valid; no checkpointing is needed for training to be correct. The
refill writes through the flat tensor, whose version counter the parameters do not share, so autograd does not take a
refill for an in-place change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from superpipe_cluster.streaming.device import Copy, Device

Part = Literal["weights", "gradients", "state"]

_ALIGNMENT = 256  # bytes; what CUDA kernels may assume of a fresh allocation


@dataclass(frozen=True)
class _Place:
    offset_bytes: int
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]


class Slab:
    """One unit's tensors of one part.

    Attributes:
        number: its number in the window and in the access order.
        unit: number of its unit.
        part: what it holds.
        nbytes: bytes it takes on the device and in host memory, alignment included.
        flat: device bytes, `uint8[nbytes]`; the storage is empty while the slab is away.
        views: key (a parameter, or a parameter and a state name) -> tensor that is a view of `flat`'s storage.
        dirty: the device bytes are newer than the host's.
    """

    def __init__(
        self, unit: int, part: Part, tensors: Mapping[Any, torch.Tensor], device: torch.device
    ) -> None:
        self.number = -1
        self.unit = unit
        self.part = part
        self.dirty = False
        self.flat = torch.empty(0, dtype=torch.uint8, device=device)
        self.host: torch.Tensor | None = None
        self.loading: Copy | None = None
        self.storing: Copy | None = None
        self._places: dict[Any, _Place] = {}
        offset = 0
        for key, tensor in tensors.items():
            stride = _dense_stride(tensor)
            self._places[key] = _Place(offset, tensor.dtype, tensor.size(), stride)
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = offset
        # Views must be made while the storage has its size; it is emptied at once.
        self.flat.untyped_storage().resize_(offset)
        self.flat = self.flat.set_(self.flat.untyped_storage(), 0, (offset,), (1,))
        self.views = {key: _view(self.flat, place) for key, place in self._places.items()}
        self.flat.untyped_storage().resize_(0)

    @property
    def storage_key(self) -> int:
        """Identity of the device storage, the same for every view of it."""
        return self.flat.untyped_storage()._cdata

    @property
    def held(self) -> bool:
        """Whether the device bytes exist (perhaps still being filled)."""
        return self.flat.untyped_storage().nbytes() > 0

    @property
    def host_bytes(self) -> int:
        """Bytes of the host copy."""
        return 0 if self.host is None else self.host.numel()

    def ensure_host(self, device: Device) -> torch.Tensor:
        """The host copy, made now if there is none yet."""
        if self.host is None:
            self.host = device.host_buffer(self.nbytes)
        return self.host

    def host_view(self, key: Any) -> torch.Tensor:
        """The host copy's tensor for `key`; shares memory with the host copy."""
        assert self.host is not None
        return _view(self.host, self._places[key])

    def has_live_gradients(self) -> bool:
        """Whether any parameter's `.grad` is one of this slab's views; if not, its content means nothing."""
        return any(
            parameter.grad is not None and parameter.grad.untyped_storage()._cdata == self.storage_key
            for parameter in self.views
            if isinstance(parameter, torch.Tensor)
        )


def _dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta").stride()


def _view(flat: torch.Tensor, place: _Place) -> torch.Tensor:
    typed = torch.empty(0, dtype=place.dtype, device=flat.device)
    itemsize = typed.element_size()
    return typed.set_(flat.untyped_storage(), place.offset_bytes // itemsize, place.size, place.stride)

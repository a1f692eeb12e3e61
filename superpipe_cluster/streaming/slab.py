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
from typing import TYPE_CHECKING, Any, Literal

import torch

from superpipe_cluster.streaming.devices.device import Copy
from superpipe_cluster.streaming.watching.storages import holders, storage_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from superpipe_cluster.streaming.homes.homes import Home

Part = Literal["weights", "gradients", "state"]

_ALIGNMENT = 256  # bytes; what CUDA kernels may assume of a fresh allocation
#: What is copied through staging buffers is copied in pieces of this size.
PIECE_BYTES = 4 << 20


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
        pieces: all of `flat`, in order, in tensors of at most `PIECE_BYTES`.
        storage_key: identity of the device storage, the same for every view of it.
        dirty: the device bytes are newer than the host's.
        host_work: what a thread is doing with the host copy; to be waited for before that is read or written.
        last_load: the copy to the device that was started last; who overwrites the host copy waits for it.
        claim: called when the program is about to use it, and raises, while an optimizer must have it to itself.
        ready: whether operators may read it now: on the device, arrived, and in the group that runs.
    """

    def __init__(
        self, unit: int, part: Part, tensors: Mapping[Any, torch.Tensor], device: torch.device
    ) -> None:
        self.number = -1
        self.unit = unit
        self.part = part
        self.dirty = False
        self.ready = False
        self.host: torch.Tensor | None = None
        self.loading: Copy | None = None
        self.storing: Copy | None = None
        self.host_work: Future[None] | None = None
        self.last_load: Copy | None = None
        self.claim: Callable[[Slab], None] | None = None
        self._places: dict[Any, _Place] = {}
        offset = 0
        for key, tensor in tensors.items():
            stride = _dense_stride(tensor)
            self._places[key] = _Place(offset, tensor.dtype, tensor.size(), stride)
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = offset
        with torch.inference_mode(False):  # it outlives an inference mode that the program may be in
            self.flat = torch.empty(offset, dtype=torch.uint8, device=device)
            # Views must be made while the storage has its size; it is emptied at once.
            self.views = {key: _view(self.flat, place) for key, place in self._places.items()}
            self.pieces = [self.flat] if offset <= PIECE_BYTES else list(self.flat.split(PIECE_BYTES))
        self.flat.untyped_storage().resize_(0)
        self.storage_key = storage_key(self.flat)
        self._own_holders = holders(self.storage_key)
        self._given: set[Any] = set()

    @property
    def held(self) -> bool:
        """Whether the device bytes exist (perhaps still being filled)."""
        return self.flat.untyped_storage().nbytes() > 0

    @property
    def offsets(self) -> dict[Any, int]:
        """Where the tensor of each key starts, in bytes."""
        return {key: place.offset_bytes for key, place in self._places.items()}

    def ensure_host(self, home: Home) -> torch.Tensor:
        """The host copy, made now if there is none yet."""
        if self.host is None:
            with torch.inference_mode(False):
                self.host = home.give(self)
        return self.host

    def host_view(self, key: Any) -> torch.Tensor:
        """The host copy's tensor for `key`; shares memory with the host copy."""
        assert self.host is not None
        return self.view_on(self.host, key)

    def view_on(self, memory: torch.Tensor, key: Any) -> torch.Tensor:
        """The tensor for `key` on other memory of this slab's layout, `uint8[nbytes]`."""
        return _view(memory, self._places[key])

    def on_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """The host copy's twin of `tensor`, which is any view of this slab; shares memory with the host copy."""
        assert self.host is not None
        offset = int(tensor.storage_offset()) * tensor.element_size()
        with torch.inference_mode(False):
            twin = _view(self.host, _Place(offset, tensor.dtype, tensor.size(), tensor.stride()))
        twin = twin.conj() if tensor.is_conj() else twin
        return torch.ops.aten._neg_view(twin) if tensor.is_neg() else twin

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a view of this slab."""
        return tensor.layout is torch.strided and storage_key(tensor) == self.storage_key

    def fits(self, key: Any, tensor: torch.Tensor) -> bool:
        """Whether `tensor` has the type and size of the one of `key`."""
        place = self._places[key]
        return (place.dtype, place.size) == (tensor.dtype, tensor.size())

    def check_claim(self) -> None:
        """Raise if the program may not use it now."""
        if self.claim is not None:
            self.claim(self)

    def wait_for_host(self) -> None:
        """Return once nobody works on the host copy any more; if that failed, whoever started it tells."""
        if self.host_work is not None:
            work, self.host_work = self.host_work, None
            work.exception()

    # ---- who else holds it ------------------------------------------------------------------------

    def outside_holders(self) -> int:
        """Number of tensors on this slab that are not its own `views`."""
        return holders(self.storage_key) - self._own_holders

    def give(self, key: Any) -> torch.Tensor:
        """A tensor of `key` for the program to keep or to let go; only its own death takes it back."""
        self._given.add(key)
        return self.views[key].detach()

    def may_give(self, key: Any) -> bool:
        """Whether nobody can hold a tensor of `key` that was given before, so that its bytes are free to be reused."""
        if self._given and not self.outside_holders():
            self._given.clear()
        return key not in self._given


def _dense_stride(tensor: torch.Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor, device="meta").stride()


def _view(flat: torch.Tensor, place: _Place) -> torch.Tensor:
    typed = torch.empty(0, dtype=place.dtype, device=flat.device)
    itemsize = typed.element_size()
    return typed.set_(flat.untyped_storage(), place.offset_bytes // itemsize, place.size, place.stride)


def may_be_taken(gradient: torch.Tensor | None, parameter: torch.Tensor) -> bool:
    """Whether the gradient can be kept in a slab; a sparse one, for instance, stays where autograd left it."""
    return gradient is not None and gradient.layout is torch.strided and gradient.dtype == parameter.dtype

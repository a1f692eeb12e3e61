"""What the engine needs of a device: memory, a link, and a count of bytes.

Owns the contract alone. The devices are in `virtual_device` and `cuda_device`.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Copy(Protocol):
    """A copy under way."""

    def done(self) -> bool:
        """Whether the bytes have arrived."""
        ...

    def wait(self) -> None:
        """Let whatever the device computes next come after the copy."""
        ...

    def finish(self) -> None:
        """Return once the bytes have arrived, for a host that is about to read or overwrite them."""
        ...


class Device(Protocol):
    """A device, or a budget's share of one.

    Attributes:
        torch_device: where its tensors are.
        budget_bytes: most bytes of everything that may be in use, None for no limit.
        stall_s: seconds in which the program waited for copies.
        h2d_bytes: bytes copied from the host so far.
        d2h_bytes: bytes copied to the host so far.
        batches_in_flight: transfer batches that are worth having under way at once.
        overhead_bytes: what the device itself takes of the budget.
    """

    torch_device: torch.device
    budget_bytes: int | None
    stall_s: float
    h2d_bytes: int
    d2h_bytes: int
    batches_in_flight: int
    overhead_bytes: int

    def allocate(self, flat: torch.Tensor, nbytes: int) -> None:
        """Give the emptied storage of `flat` its `nbytes` back, contents undefined."""
        ...

    def free(self, flat: torch.Tensor) -> None:
        """Empty the storage of `flat`."""
        ...

    def load(self, flat: torch.Tensor, host: torch.Tensor) -> Copy:
        """Start host -> device."""
        ...

    def store(self, host: torch.Tensor, flat: torch.Tensor) -> Copy:
        """Start device -> host, after what has been computed so far."""
        ...

    def host_buffer(self, nbytes: int) -> torch.Tensor:
        """Exactly `nbytes` of host memory that this device copies from fastest."""
        ...

    def release_host_buffer(self, host: torch.Tensor) -> None:
        """Undo what `host_buffer` did to the memory; the tensor itself stays valid."""
        ...

    def used_bytes(self) -> int:
        """Bytes in use now, of everything."""
        ...

    def peak_bytes(self) -> int:
        """Most bytes that were ever in use."""
        ...

    def charge(self, nbytes: int) -> None:
        """Count bytes that appeared outside `allocate` (negative: that went away)."""
        ...

    def pace(self) -> None:
        """Another unit is about to run: keep the program from deciding too far ahead of the computation."""
        ...

    def finish(self) -> None:
        """Return once all copies have arrived, for a host that is about to overwrite what they read."""
        ...

    def close(self) -> None:
        """Stop what runs in the background."""
        ...

"""What the engine needs of a device: memory, a link, and a count of bytes.

Owns the contract alone. The devices are in `virtual_device` and `cuda_device`.
"""

from __future__ import annotations

from typing import Protocol

import torch

from superpipe_cluster.streaming.homes.memory import HostMemory


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
        spare_bytes: part of the budget that nothing should be fetched ahead into.
        registers: whether host memory has to be registered for it to copy from and to it by itself.
    """

    torch_device: torch.device
    budget_bytes: int | None
    stall_s: float
    h2d_bytes: int
    d2h_bytes: int
    batches_in_flight: int
    overhead_bytes: int
    spare_bytes: int = 0
    registers: bool = False

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
        """Exactly `nbytes` of zeroed host memory that this device can register."""
        return HostMemory.anonymous(nbytes, shared_with_children=self.registers).tensor

    def register(self, host: torch.Tensor, *, read_only: bool = False) -> bool:
        """Make host memory (`uint8[n]`, pages of its own) such that the device copies from and to it by itself.

        Args:
            host: the memory; it must be unregistered before it is unmapped.
            read_only: the memory cannot be written, and nothing will be stored to it.

        Returns:
            Whether that is so; if not, copies are as right and slower.
        """
        del host, read_only
        return True

    def unregister(self, host: torch.Tensor) -> None:
        """Undo `register`; without effect on memory that is not registered."""

    def used_bytes(self) -> int:
        """Bytes in use now, of everything."""
        ...

    def peak_bytes(self) -> int:
        """Most bytes that were ever in use."""
        ...

    def charge(self, nbytes: int) -> None:
        """Count bytes that appeared outside `allocate` (negative: that went away)."""
        ...

    def ran_out(self) -> None:
        """The memory was too small although the count of bytes had room: count on less of it from now on."""
        ...

    def limits_itself(self) -> bool:
        """Whether its limit holds without a count of every tensor: there is none, or it is kept with ease."""
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

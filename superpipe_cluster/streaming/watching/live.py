"""How many bytes the tensors take that operators make: each is counted when it appears and again when it dies.

Owns the counting alone. On a virtual device it is what the memory allocator of a GPU would know; in a profile of a
model that has no memory at all (fake tensors) it is what a run would need.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Container
from typing import Any

import torch


class LiveTensors:
    """Reports the bytes of new storages, and takes them back when the last tensor on one is gone.

    Args:
        charge: called with the bytes of each new storage, and with the negative of it after its death.
        not_counted: storages (by identity) that are accounted for elsewhere.
        is_profile: whether what has no memory is counted as if it had, and not the other way round.
    """

    def __init__(
        self, charge: Callable[[int], None], not_counted: Container[int] = (), *, is_profile: bool = False
    ) -> None:
        self._charge = charge
        self._not_counted = not_counted
        self._is_profile = is_profile
        self._living: dict[int, _Living] = {}
        # Tensors die at any moment, in the middle of counting and in other threads too: a death only leaves a note.
        self._died: deque[int] = deque()

    def see(self, result: Any) -> None:
        """Count the new tensors among the results of an operator."""
        if isinstance(result, torch.Tensor):
            self._see(result)
        elif isinstance(result, (list, tuple)):
            for one in result:
                self.see(one)

    def settle(self) -> None:
        """Take back the bytes of what has died."""
        if self._died:
            nbytes = 0
            while self._died:
                nbytes += self._died.popleft()
            self._charge(-nbytes)

    def _see(self, tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse and other layouts without one storage
            return
        key = storage._cdata
        if key in self._living or key in self._not_counted:
            return
        if (storage.device.type == "meta") is not self._is_profile:
            return  # a model that is only planned, or not loaded yet, beside the one that runs
        nbytes = storage.nbytes()
        if nbytes:
            if self._died:
                self.settle()
            self._charge(nbytes)
            living = self._living[key] = _Living(storage, self._on_death)
            living.key, living.nbytes = key, nbytes

    def _on_death(self, living: _Living) -> None:
        self._living.pop(living.key, None)
        self._died.append(living.nbytes)


class _Living(weakref.ref[torch.UntypedStorage]):
    """A storage that has been counted."""

    __slots__ = ("key", "nbytes")
    key: int
    nbytes: int

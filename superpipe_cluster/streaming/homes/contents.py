"""What is in a model's parameters when streaming begins: their own bytes, or those of a file or of a state dict.

Owns the contract between homes, which have the memory, and what is to be put there (`loading` has the other kinds).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from superpipe_cluster.streaming.homes.memory import bytes_of_tensor


class Contents:
    """The bytes that parameters have by themselves."""

    def write(self, tensor: torch.Tensor, into: torch.Tensor) -> None:
        """Put the contents of `tensor`, a parameter or a buffer, into host memory of the same shape and type."""
        into.copy_(tensor.data)

    def identify(self, tensor: torch.Tensor, tell: Callable[[Any], object]) -> None:
        """Call `tell` with bytes that are the same for the same contents, and for no others."""
        tell(b"bytes ")
        tell(bytes_of_tensor(tensor.data.cpu()))

"""Master weights: the copies in a wider type that an optimizer steps instead of a model's weights in a narrow one.

Owns which parameters have one, and the copies. Who steps them, and where they are, is the optimizer's.
"""

from __future__ import annotations

import torch
from torch import nn

#: What a state dict calls the master weight of a parameter.
MASTER = "master_weight"


class Masters:
    """The master weights of one optimizer.

    Attributes:
        dtype: their type, None if weights are stepped themselves.
        entries: of each parameter that has one by now, as it stands in a state dict.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.entries: dict[nn.Parameter, dict[str, torch.Tensor]] = {}

    def wanted(self, parameter: nn.Parameter) -> bool:
        """Whether the weight of `parameter` is stepped through a master."""
        return self.dtype is not None and parameter.dtype != self.dtype and parameter.is_floating_point()

    def make(self, parameter: nn.Parameter, weight: torch.Tensor) -> torch.Tensor:
        """The master of `parameter`, made from `weight` if there is none yet."""
        if parameter not in self.entries:
            assert self.dtype is not None
            self.entries[parameter] = {MASTER: weight.detach().to(self.dtype)}
        return self.entries[parameter][MASTER]

    def twin(self, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter on the master of `parameter`, with its gradient cast up."""
        assert parameter.grad is not None
        twin = nn.Parameter(self.make(parameter, parameter))
        twin.grad = parameter.grad.detach().to(twin.dtype)
        return twin

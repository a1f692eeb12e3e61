"""The choice of the next token, each request by itself: its temperature, its top_p, its own random numbers.

The distributions are transformers'. Random numbers come from a generator of the request's own, so with a seed it draws
the same tokens whoever else is answered at the time.
"""

from __future__ import annotations

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from superpipe_cluster.serving.asking import Sampling


class Chooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: how.
        device: where scores are.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._warp = LogitsProcessorList()
        self._generator: torch.Generator | None = None
        if sampling.temperature == 0:
            return
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        if sampling.temperature != 1:
            self._warp.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warp.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warp.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, scores: torch.Tensor) -> int:
        """A token by its score: `[vocabulary]`."""
        if self._generator is None:
            return int(scores.argmax())
        warped: torch.Tensor = self._warp(torch.empty(1, 0, dtype=torch.long), scores[None].float())  # pyright: ignore[reportArgumentType]
        return int(torch.multinomial(warped.softmax(-1), 1, generator=self._generator))

"""What is run: the models of the paper's tables 1 to 4 and figure 2, in three sizes, with its grid of k and k'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import models
import torch
from torch import nn
from torch.nn import functional as F

Scale = Literal["tiny", "quick", "full"]


@dataclass(frozen=True)
class Workload:
    """One row group of the result.

    Attributes:
        source: where the paper measures it.
        unit: what one step makes.
        train: whether a step trains, with AdamW, or only infers.
        dtype: of the weights on a GPU; a CPU runs float32.
        build: the model of a size, weights not yet made.
        batch: the model's positional arguments.
        target: what the loss compares the output with.
        windows: (k, k') of the paper.
        naive: k of the paper's naive method.
        frozen: share of the blocks, from the first, that is not trained.
    """

    name: str
    source: str
    unit: str
    train: bool
    dtype: torch.dtype
    build: Callable[[Scale], nn.Module]
    batch: Callable[[Scale], tuple[Any, ...]]
    target: Callable[[Scale], torch.Tensor] | None = None
    windows: tuple[tuple[int, int], ...] = ()
    naive: tuple[int, ...] = (8,)
    frozen: float = 0.0

    def model(self, scale: Scale, *, on_cpu: bool) -> nn.Module:
        """The model in host memory."""
        model = models.with_weights(lambda: self.build(scale), torch.float32 if on_cpu else self.dtype)
        if not self.train:
            return model.requires_grad_(False)
        if self.frozen and isinstance(model, models.Chain):
            model.first.requires_grad_(False)
            for block in model.blocks[: int(len(model.blocks) * self.frozen)]:
                block.requires_grad_(False)
        return model

    def inputs(self, scale: Scale, device: torch.device, *, on_cpu: bool) -> tuple[Any, ...]:
        """The arguments of one step, the same each time."""
        dtype = torch.float32 if on_cpu else self.dtype
        return tuple(
            (one.to(device, dtype) if one.is_floating_point() else one.to(device))
            if torch.is_tensor(one)
            else one
            for one in self.batch(scale)
        )

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What training makes smaller."""
        return F.cross_entropy(output.flatten(0, -2).float(), target.flatten())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _vit(scale: Scale) -> nn.Module:
    if scale == "tiny":
        return models.vit(8, 32, 64, 4, image=56)
    return models.vit(48 if scale == "full" else 24, 1664, 8192, 16)


def _images(count: int) -> Callable[[Scale], tuple[Any, ...]]:
    def batch(scale: Scale) -> tuple[Any, ...]:
        size = (2, 3, 56, 56) if scale == "tiny" else (count, 3, 224, 224)
        return (torch.randn(size, generator=_generator()),)

    return batch


def _llama(scale: Scale) -> nn.Module:
    if scale == "tiny":
        return models.llama(8, 32, 64, 4, 128)
    return models.llama(32 if scale == "full" else 16, 4096, 11008, 32, 32000)


def _tokens(rows: int, length: int) -> Callable[[Scale], tuple[Any, ...]]:
    def batch(scale: Scale) -> tuple[Any, ...]:
        vocabulary, size = (128, (2, 16)) if scale == "tiny" else (32000, (rows, length))
        return (torch.randint(0, vocabulary, size, generator=_generator()),)

    return batch


def _unet(scale: Scale) -> nn.Module:
    return models.unet((32, 64), 16) if scale == "tiny" else models.unet((320, 640, 1280, 1280), 768)


def _latents(scale: Scale) -> tuple[Any, ...]:
    side, context = (8, 16) if scale == "tiny" else (64, 768)
    generator = _generator()
    return (
        torch.randn(2, 4, side, side, generator=generator),
        10,
        torch.randn(2, 77, context, generator=generator),
    )


def _classes(scale: Scale) -> torch.Tensor:
    return torch.randint(0, 1000, (2 if scale == "tiny" else 16,), generator=_generator())


_VIT_WINDOWS = ((4, 2), (6, 3), (10, 8), (14, 12), (19, 16))
_LLAMA_WINDOWS = ((4, 2), (5, 3), (8, 3), (10, 2), (20, 6))

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "vit-infer", "tables 1, 3, 4: ViT-bigG", "16 images", False, torch.bfloat16, _vit, _images(16),
            windows=_VIT_WINDOWS, naive=(2, 8, 15),
        ),
        Workload(
            "llama-infer", "tables 1, 3, 4: LLaMA2", "4 x 512 tokens", False, torch.bfloat16, _llama,
            _tokens(4, 512), windows=_LLAMA_WINDOWS, naive=(2, 8, 15),
        ),
        Workload(
            "llama-token", "tables 1, 3, 4: LLaMA2, one position of 64 sequences", "64 tokens", False,
            torch.bfloat16, _llama, _tokens(64, 1), windows=_LLAMA_WINDOWS,
        ),
        Workload(
            "sd-infer", "tables 1, 3, 4: Stable Diffusion, one of 50 steps", "2 latents", False, torch.float16,
            _unet, _latents, windows=((5, 3), (8, 6), (8, 2), (10, 2)),
        ),
        Workload(
            "vit-train", "figure 2, table 2: ViT-bigG, batch 16", "16 images", True, torch.bfloat16, _vit,
            _images(16), _classes, windows=((6, 3),),
        ),
        Workload(
            "llama-train", "table 2: LLaMA2, half of the layers frozen", "4 x 512 tokens", True, torch.bfloat16,
            _llama, _tokens(4, 512), lambda scale: _tokens(4, 512)(scale)[0], windows=((6, 3),), frozen=0.5,
        ),
    )
}  # fmt: skip

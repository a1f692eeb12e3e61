"""The models of the paper's tables in their shapes, with random weights: speed and bytes do not depend on their values.

Plain torch, so that every contender gets the same modules: a chain of blocks, which is also what those that take only
`nn.Sequential` want. The UNet of Stable Diffusion is no chain; it comes from diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F


class Chain(nn.Module):
    """Blocks between a first and a last module, each taking what the one before returned."""

    def __init__(self, first: nn.Module, blocks: list[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.blocks = nn.ModuleList(blocks)
        self.last = last

    def chunks(self) -> list[nn.Module]:
        return [self.first, *self.blocks, self.last]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for chunk in self.chunks():
            x = chunk(x)
        return x


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class VitBlock(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (_heads(part, self.heads) for part in self.qkv(self.before_attention(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.before_mlp(x))


class Patches(nn.Module):
    def __init__(self, width: int, image: int, patch: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros((image // patch) ** 2, width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.project(images).flatten(2).transpose(1, 2) + self.position


class Pooled(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x.mean(dim=1)))


def vit(layers: int, width: int, inner: int, heads: int, image: int = 224, patch: int = 14) -> Chain:
    return Chain(
        Patches(width, image, patch),
        [VitBlock(width, inner, heads) for _ in range(layers)],
        Pooled(width, 1000),
    )


class LlamaBlock(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.before_mlp = nn.RMSNorm(width)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before_attention(x)
        q, k, v = (_heads(project(y), self.heads) for project in (self.q, self.k, self.v))
        cosine, sine = _rotation(q)
        attended = F.scaled_dot_product_attention(
            _rotate(q, cosine, sine), _rotate(k, cosine, sine), v, is_causal=True
        )
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        y = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _rotation(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length, size = x.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angle = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * frequency
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], dim=-1)


class Logits(nn.Module):
    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def llama(layers: int, width: int, inner: int, heads: int, vocabulary: int) -> Chain:
    blocks: list[nn.Module] = [LlamaBlock(width, inner, heads) for _ in range(layers)]
    return Chain(nn.Embedding(vocabulary, width), blocks, Logits(width, vocabulary))


def unet(widths: tuple[int, ...], context: int) -> nn.Module:
    """Stable Diffusion 1's UNet (diffusers' defaults are its shapes, but for these)."""
    from diffusers import UNet2DConditionModel

    down = ("CrossAttnDownBlock2D",) * (len(widths) - 1) + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(widths) - 1)
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, down_block_types=down, up_block_types=up,
        cross_attention_dim=context, attention_head_dim=8, norm_num_groups=min(32, widths[0] // 2),
    )  # fmt: skip


_BLOCK = 1 << 20


def with_weights(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """The model with the same small random weights each time, filled at the speed of memory: none is drawn twice."""
    with torch.device("meta"):
        model = build().to(dtype)
    assert not list(model.buffers()), "buffers would have to be computed"
    model = model.to_empty(device="cpu")
    drawn = (torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                flat = parameter.view(-1)
                for at in range(0, flat.numel(), _BLOCK):
                    part = flat[at : at + _BLOCK]
                    part.copy_(drawn[: part.numel()])
    return model.eval()


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks that a user would wrap one by one: those of the first list or lists of blocks met on the way down."""
    for child in model.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            yield from child
        else:
            yield from blocks_of(child)

"""The models that the equality tests stream: a batch, a loss, and every way a module may use its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Case:
    """A model with its loss. `loss(model, seed)` returns the outputs to compare and the scalar to train on."""

    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], tuple[torch.Tensor, torch.Tensor]]


def _tokens(seed: int, vocab: int = 128, shape: tuple[int, int] = (2, 12)) -> torch.Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def _lm_loss(model: nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = _tokens(seed)
    out = model(input_ids=tokens, labels=tokens, use_cache=False)
    return out.logits, out.loss


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def llama_checkpointed() -> nn.Module:
    model = llama()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    return model


def gpt2_tied() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=5, n_head=4))
    model.train()  # dropout is on: the streamed run must draw the very same masks
    assert model.lm_head.weight is model.transformer.wte.weight
    return model


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=5, num_attention_heads=4, intermediate_size=64, image_size=16,
            patch_size=4, num_labels=7,
        )
    )  # fmt: skip


def _vit_loss(model: nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 16, 16, generator=generator)
    out = model(pixel_values=images, labels=torch.randint(0, 7, (2,), generator=generator))
    return out.logits, out.loss


class Stage(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.norm(self.first(x)))))


class UNet(nn.Module):
    """Down, middle, up, with skips: early activations are read again at the end. Unequal units, running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Stage(3, 8), Stage(8, 16), Stage(16, 24)])
        self.middle = Stage(24, 24)
        self.up = nn.ModuleList([Stage(48, 16), Stage(32, 8), Stage(16, 8)])
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for stage in self.up:
            x = F.interpolate(x, scale_factor=2)
            x = stage(torch.cat([x, skips.pop()], dim=1))
        return self.head(x)


def _image_loss(model: nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    out = model(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
    return out, out.square().mean()


class Partly(nn.Module):
    """Unused parameters, frozen parameters, a parameter owned by the container, one read after all children ran."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(16))
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(5)]
        )
        self.unused = nn.Linear(16, 16)
        self.readout = nn.Parameter(torch.randn(4, 16))
        for parameter in self.layers[1].parameters():
            parameter.requires_grad_(False)
        self.layers[3][0].weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.scale
        for layer in self.layers:
            x = x + layer(x)
        return x @ self.readout.t() + self.layers[0][0].bias[:4]


class Twice(nn.Module):
    """Blocks that run twice in each pass, the second time in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1)) for _ in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (*self.blocks, *reversed(self.blocks)):
            x = torch.sin(block(x)) + x
        return x


class CheckpointedSpan(nn.Module):
    """One checkpointed region over several units: recomputation reads them in the middle of backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.2)) for _ in range(6)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def half(start: int, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers[start : start + 3]:
                x = layer(x) + x
            return x

        for start in (0, 3):
            x = checkpoint(half, start, x, use_reentrant=False)
        return x


def _vector_loss(model: nn.Module, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    out = model(torch.randn(3, 16, generator=torch.Generator().manual_seed(seed)))
    return out, out.square().mean()


CASES = {
    "llama": Case(llama, _lm_loss),
    "llama-checkpointed": Case(llama_checkpointed, _lm_loss),
    "gpt2-tied": Case(gpt2_tied, _lm_loss),
    "vit": Case(vit, _vit_loss),
    "unet": Case(UNet, _image_loss),
    "unused-and-frozen": Case(Partly, _vector_loss),
    "called-twice": Case(Twice, _vector_loss),
    "checkpointed-span": Case(CheckpointedSpan, _vector_loss),
}

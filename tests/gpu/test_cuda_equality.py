"""On a CUDA device: streamed equals plain on the same device, bit for bit. `python -m pytest tests/gpu`.

Needs torch alone; cases that are about transformers, timm or diffusers are skipped where these are not installed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpu.gpu_twins import CUDA, MIB, Wide, assert_same_on_gpu, budget_with, loss_of, rows, train_steps
from streaming.models import CASES, Case

AdamW, SGD = torch.optim.AdamW, torch.optim.SGD


class _Move(nn.Module):
    """Sends the batch that a case makes on the CPU to the device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = [model]  # in a list: not a submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner[0](
            *(a.to(CUDA) for a in args),
            **{k: v.to(CUDA) if torch.is_tensor(v) else v for k, v in kwargs.items()},
        )


def _training(case: Case):
    def program(model, make_optimizer):
        optimizer, losses, moved = make_optimizer(AdamW, lr=1e-2), [], _Move(model)
        for step in range(4):
            _, loss = case.loss(moved, step)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
        return losses

    return program


@pytest.mark.parametrize("k", [2, 3, 1000], ids=["k2", "k3", "kn"])
@pytest.mark.parametrize("name", CASES)
def test_training(name: str, k: int) -> None:
    case = CASES[name]
    if any(part in name for part in ("llama", "gpt2", "vit")):
        pytest.importorskip("transformers")
    assert_same_on_gpu(_training(case), case.build, k=k)


@pytest.mark.parametrize("policy", ["optimal", "sliding", "naive"])
def test_policies(policy: str) -> None:
    assert_same_on_gpu(lambda model, make: train_steps(model, make(AdamW, lr=1e-3)), k=4, policy=policy)


@pytest.mark.parametrize("room_mib", [160, 320, 560])
def test_training_in_a_byte_budget(room_mib: int) -> None:
    """160 MiB of weights, as much of gradients, twice that of state; the smallest room is a quarter of the whole."""
    stats = assert_same_on_gpu(
        lambda model, make: train_steps(model, make(AdamW, lr=1e-3)), budget=budget_with(room_mib * MIB)
    )
    assert stats.d2h_bytes > 0


@pytest.mark.parametrize("room_mib", [96, 160])
def test_inference_in_a_byte_budget(room_mib: int) -> None:
    def program(model, make):
        with torch.no_grad():
            return [model(rows(seed)) for seed in range(4)]

    stats = assert_same_on_gpu(
        program, lambda: Wide().requires_grad_(False), budget=budget_with(room_mib * MIB)
    )
    assert stats.d2h_bytes == 0


def test_bfloat16_autocast() -> None:
    def program(model, make):
        optimizer, losses = make(AdamW, lr=1e-3), []
        for step in range(3):
            with torch.autocast("cuda", torch.bfloat16):
                loss = loss_of(model, step)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
        return losses

    assert_same_on_gpu(program, k=3)


def test_float16_autocast_with_a_gradient_scaler() -> None:
    def program(model, make):
        optimizer, losses = make(AdamW, lr=1e-3), []
        scaler = torch.amp.GradScaler(
            "cuda", init_scale=2.0**24, growth_interval=2
        )  # the first steps overflow
        for step in range(6):
            with torch.autocast("cuda", torch.float16):
                loss = loss_of(model, step) * 1e3
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses += [loss.detach(), torch.tensor(scaler.get_scale())]
        return losses

    assert_same_on_gpu(program, k=3)


def test_bfloat16_weights() -> None:
    assert_same_on_gpu(_bfloat16_training, lambda: Wide().to(torch.bfloat16), k=3)


def _bfloat16_training(model, make):
    optimizer, losses = make(AdamW, lr=1e-3), []
    for step in range(3):
        loss = model(rows(step).bfloat16()).float().square().mean()
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AdamW, {"lr": 1e-3}),
        (AdamW, {"lr": 1e-3, "fused": True}),
        (AdamW, {"lr": 1e-3, "foreach": True, "amsgrad": True}),
        (SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        (torch.optim.RMSprop, {"lr": 1e-3, "centered": True}),
        (torch.optim.Adagrad, {"lr": 1e-2}),
        (torch.optim.NAdam, {"lr": 1e-3}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)
def test_optimizers_on_the_device(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    assert_same_on_gpu(lambda model, make: train_steps(model, make(kind, **options)), k=3)


def test_accumulation_and_clipping() -> None:
    def program(model, make):
        optimizer, norms = make(SGD, lr=1e-2, momentum=0.9), []
        for step in range(3):
            for part in range(3):
                loss_of(model, 3 * step + part).backward()
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
            optimizer.step()
            optimizer.zero_grad()
        return norms

    assert_same_on_gpu(program, k=3)


class Checkpointed(Wide):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for layer in self.layers:
            x = checkpoint(
                lambda x, layer=layer: nn.functional.dropout(x + layer(x), 0.1), x, use_reentrant=False
            )
        return self.outside(x)


def test_checkpointing_draws_the_same_dropout() -> None:
    assert_same_on_gpu(lambda model, make: train_steps(model, make(AdamW, lr=1e-3)), Checkpointed, k=3)


@pytest.mark.parametrize("activations", ["recompute", "offload"])
def test_activations_elsewhere(activations: str) -> None:
    def program(model, make):
        optimizer, losses = make(AdamW, lr=1e-3), []
        for step in range(3):
            loss = model(rows(step, 2048)).square().mean()  # saved tensors of 8 MiB and more
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
        return losses

    assert_same_on_gpu(program, k=4, activations=activations)


@pytest.mark.parametrize("host", ["shared", "disk"])
def test_other_homes_of_the_host_copy(host: str, tmp_path: Any) -> None:
    options = {"host_folder": tmp_path} if host == "disk" else {}
    assert_same_on_gpu(
        lambda model, make: train_steps(model, make(AdamW, lr=1e-3)), k=3, host=host, **options
    )


def test_generate_with_a_cache() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8
    )

    def program(model, make):
        start = torch.arange(12, device=CUDA).view(2, 6)
        greedy = model.generate(start, max_new_tokens=10, do_sample=False, pad_token_id=0)
        return [greedy, model.generate(start, max_new_tokens=10, do_sample=True, pad_token_id=0)]

    def build() -> nn.Module:
        return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)

    assert_same_on_gpu(program, build, k=3)


def test_a_convolutional_network_of_timm() -> None:
    timm = pytest.importorskip("timm")

    def program(model, make):
        optimizer, losses = make(SGD, lr=1e-2), []
        for step in range(3):
            images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(step)).to(CUDA)
            loss = model(images).square().mean()
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
        return losses

    assert_same_on_gpu(program, lambda: timm.create_model("resnet26", num_classes=10), k=3)


def test_the_unet_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")

    def program(model, make):
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(1, 4, 16, 16, generator=generator).to(CUDA)
        context = torch.randn(1, 7, 32, generator=generator).to(CUDA)
        with torch.no_grad():
            return [model(latents, step, context).sample for step in (900, 500, 100)]

    def build() -> nn.Module:
        return diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=8,
            norm_num_groups=16,
        ).eval().requires_grad_(False)  # fmt: skip

    assert_same_on_gpu(program, build, k=3)

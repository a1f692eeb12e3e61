"""LoRA adapters in a frozen base: the base only ever comes, the adapters stay, and the bits are PEFT's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from streaming.twins import Blocks, assert_equal, assert_same_run, train
from superpipe_cluster.streaming import stream

# PEFT calls what the newest transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

AdamW = torch.optim.AdamW


class Low(nn.Module):
    """A linear layer with a low-rank update."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.down.t() @ self.up.t()


def _adapted(width: int, rank: int) -> nn.Module:
    model = Blocks(width)
    model.requires_grad_(False)
    for layer in model.layers:
        layer[0] = Low(layer[0], rank)
    return model


def _program(width: int):
    def program(model, make_optimizer):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, width, generator=generator)
        return train(model, make_optimizer(AdamW, lr=0.1), 4, lambda one, step: one(x + step).square().mean())

    return program


def test_few_adapters_stay_and_nothing_goes_back() -> None:
    stats = assert_same_run(_program(64), lambda: _adapted(64, 1))
    assert stats.loads > stats.units
    assert stats.d2h_bytes == 0


def test_many_adapters_move_without_their_base() -> None:
    stats = assert_same_run(_program(16), lambda: _adapted(16, 4))
    model = _adapted(16, 4)
    adapters = sum(256 * -(-p.nbytes // 256) for p in model.parameters() if p.requires_grad)
    steps = 4
    assert stats.loads > stats.units
    assert 0 < stats.d2h_bytes <= steps * 4 * adapters, "weights, gradients and two moments of adapters alone"


def test_a_base_that_is_thawed_later() -> None:
    def program(model, make_optimizer):
        losses = _program(64)(model, make_optimizer)
        model.requires_grad_(True)
        return losses + _program(64)(model, make_optimizer)

    assert_same_run(program, lambda: _adapted(64, 1))


def test_units_that_are_mostly_trained_stay_whole() -> None:
    def build():
        model = Blocks()
        for layer in model.layers:
            layer[0].bias.requires_grad_(False)
        return model

    stats = assert_same_run(lambda m, make: train(m, make(AdamW, lr=0.1)), build)
    assert stats.units == 8


# ---- the package itself ------------------------------------------------------------------------------------


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=5, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def _lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=1, lora_dropout=0.1, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def _loss(model: nn.Module, seed: int) -> torch.Tensor:
    tokens = torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(seed))
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


@pytest.mark.parametrize("activations", ["keep", "recompute"])
@pytest.mark.parametrize("where", ["on_device", "on_host"])
def test_lora(where: Any, activations: Any) -> None:
    plain = _lora(_llama())
    model = copy.deepcopy(plain)
    torch.manual_seed(2)
    expected = train(plain, AdamW([p for p in plain.parameters() if p.requires_grad], lr=0.01), 4, _loss)
    torch.manual_seed(2)
    with stream(model, k=2, poison=True, activations=activations) as streamer:
        actual = train(model, streamer.optimizer(AdamW, where=where, lr=0.01), 4, _loss)
        stats = streamer.stats()
        assert stats.peak_units <= 2
        assert stats.loads > stats.units
        assert stats.d2h_bytes == 0, "the base only ever comes, the adapters stay"
        assert_equal(expected, actual)
        assert_equal(plain.state_dict(), model.state_dict())
        assert_equal(plain.merge_and_unload().state_dict(), model.merge_and_unload().state_dict())
    assert_equal(plain.merge_and_unload().state_dict(), model.merge_and_unload().state_dict())


def test_adapters_added_while_the_base_is_streamed() -> None:
    plain, model = _llama(), _llama()
    with stream(model, k=2, poison=True) as streamer:
        assert_equal(_loss(plain, 0).detach(), _loss(model, 0).detach())
        plain, model = _lora(plain), _lora(model)
        torch.manual_seed(2)
        expected = train(plain, AdamW([p for p in plain.parameters() if p.requires_grad], lr=0.01), 4, _loss)
        torch.manual_seed(2)
        before = streamer.stats()
        chosen = [p for p in model.parameters() if p.requires_grad]
        actual = train(model, streamer.optimizer(AdamW, chosen, lr=0.01), 4, _loss)
        assert_equal(expected, actual)
        assert streamer.stats().d2h_bytes == before.d2h_bytes == 0
        assert streamer.stats().loads > before.loads
    assert_equal(plain.state_dict(), model.state_dict())


def test_what_stays_is_counted() -> None:
    model = _adapted(64, 1)
    with stream(model, k=2, poison=True) as streamer:
        assert streamer.stats().held_bytes == sum(p.nbytes for p in model.parameters() if p.requires_grad)

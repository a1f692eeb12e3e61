"""A pass for many sequences gives each the bits that transformers' own `generate` gives it alone."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from superpipe_cluster.errors import BadInput
from superpipe_cluster.serving.packed import Packed, Piece
from superpipe_cluster.streaming import stream

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 200,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    # Scores that are capped, and windows; sinks, and experts.
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
    "gpt_oss": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8, "num_local_experts": 8},
    # Mixtures of experts: plain, beside one for all with a gate, many small ones, and chosen by sigmoids.
    "mixtral": {"num_key_value_heads": 2},
    "qwen2_moe": {
        "num_key_value_heads": 2, "num_experts": 8, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 16, "moe_intermediate_size": 32},
    "glm4_moe": {
        "num_key_value_heads": 2, "head_dim": 16, "n_routed_experts": 16, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
    },
}  # fmt: skip
DEEPSEEK = {
    "n_routed_experts": 16, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32, "num_experts_per_tok": 2,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 32, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "first_k_dense_replace": 1,
}  # fmt: skip
LENGTHS, STEPS = (3, 17, 1, 30, 9), 12


def build(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, **MODELS.get(kind, {}), **more})
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)  # so that it says something of its own to each prompt
    return model.to(dtype)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 200, (length,), generator=generator).tolist() for length in LENGTHS]


def by_generate(model: PreTrainedModel, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Tokens and scores of a prompt alone."""
    tokens = torch.tensor([prompt])
    out = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=STEPS, do_sample=False, eos_token_id=None,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)


def by_passes(packed: Packed) -> list[tuple[list[int], torch.Tensor]]:
    """The same for all prompts in common passes, each joining two passes after the one before it."""
    asked = prompts()
    tokens = [list(prompt) for prompt in asked]
    caches = [packed.new_cache() for _ in asked]
    scores: list[list[torch.Tensor]] = [[] for _ in asked]
    for turn in range(STEPS + 2 * len(asked)):
        here = [n for n in range(len(asked)) if turn >= 2 * n and len(scores[n]) < STEPS]
        new = {n: tokens[n] if not scores[n] else tokens[n][-1:] for n in here}
        pieces = [Piece(new[n], len(tokens[n]) - len(new[n]), caches[n]) for n in here]
        for n, row in zip(here, packed.run(pieces, CPU).scores if here else (), strict=True):
            scores[n].append(row.float())
            tokens[n].append(int(row.argmax()))
    return [(made[len(p) :], torch.stack(row)) for made, p, row in zip(tokens, asked, scores, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_each_sequence_has_the_bits_that_it_has_alone(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype)
    alone = [by_generate(model, prompt) for prompt in prompts()]
    together = by_passes(Packed(model))
    for (tokens, scores), (same_tokens, same_scores) in zip(alone, together, strict=True):
        assert same_tokens == tokens
        assert torch.equal(same_scores, scores)
    assert len({tuple(tokens) for tokens, _ in alone}) == len(LENGTHS)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_so_it_has_while_the_model_streams(kind: str) -> None:
    alone = [by_generate(build(kind), prompt) for prompt in prompts()]
    model = build(kind)
    with stream(model, k=2) as streamer:
        together = by_passes(Packed(model))
        stats = streamer.stats()
    assert stats.loads > 3 * stats.units
    for (tokens, scores), (same_tokens, same_scores) in zip(alone, together, strict=True):
        assert same_tokens == tokens
        assert torch.equal(same_scores, scores)


@pytest.mark.parametrize(
    ("targets", "dora", "rows"),
    [
        ("all-linear", False, 64),
        ("all-linear", True, 64),
        ("all-linear", True, 128),
        (["embed_tokens", "q_proj"], True, 64),
    ],
)
# What PEFT and its callees say about each other.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning")
def test_adapters_add_the_same_bits_to_each(targets: Any, dora: bool, rows: int) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets, use_dora=dora)
    torch.manual_seed(1)
    model = peft.get_peft_model(build("llama"), config).get_base_model().eval()
    for name, weight in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            weight.data = 0.1 * torch.randn_like(weight)
    packed = Packed(model)
    # As many rows as the matrices of DoRA have.
    pieces = [Piece([token], 0, packed.new_cache()) for token in range(rows)]
    alone = [packed.run([Piece(one.tokens, 0, packed.new_cache())], CPU).scores[0] for one in pieces]
    together = packed.run(pieces, CPU).scores
    assert all(torch.equal(one, same) for one, same in zip(alone, together, strict=True))


def test_what_is_cached_otherwise_than_by_generate_has_the_bits_that_it_has_alone_here() -> None:
    """DeepSeek keeps what keys and values are computed from; last bits depend on when that is done."""
    model = build("deepseek_v3", **DEEPSEEK)
    generated = [by_generate(model, prompt) for prompt in prompts()]
    packed = Packed(model)
    together = by_passes(packed)
    for prompt, (tokens, scores), (same_tokens, same_scores) in zip(
        prompts(), generated, together, strict=True
    ):
        cache = packed.new_cache()
        pieces = [
            Piece(prompt, 0, cache),
            *(Piece([t], len(prompt) + n, cache) for n, t in enumerate(tokens)),
        ]
        alone = torch.cat([packed.run([piece], CPU).scores for piece in pieces[:STEPS]])
        assert torch.equal(same_scores, alone)
        assert same_tokens == tokens
        torch.testing.assert_close(same_scores, scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_multiplied_together_only_last_bits_differ(kind: str) -> None:
    model = build(kind)
    alone = [by_generate(model, prompt)[1] for prompt in prompts()]
    together = by_passes(Packed(model, exact=False))
    for scores, (_, same_scores) in zip(alone, together, strict=True):
        torch.testing.assert_close(same_scores, scores, rtol=1e-4, atol=1e-3)
    assert not all(torch.equal(s, t) for s, (_, t) in zip(alone, together, strict=True)), (
        "else `exact` is for nothing"
    )


def test_vectors_beside_answers_are_means_of_the_last_hidden_states() -> None:
    model = build("llama")
    first, second, third = prompts()[:3]
    hidden = [model.model(torch.tensor([tokens])).last_hidden_state[0].mean(0) for tokens in (first, third)]
    expected = torch.nn.functional.normalize(torch.stack(hidden), dim=-1)
    alone = by_generate(model, second)[1][0]
    packed = Packed(model)
    passed = packed.run(
        [Piece(first, vector=True), Piece(second, 0, packed.new_cache()), Piece(third, vector=True)], CPU
    )
    assert passed.vectors is not None
    assert torch.equal(passed.vectors, expected)
    assert torch.equal(passed.scores[0], alone)
    only = packed.run([Piece(third, vector=True)], CPU)
    assert only.scores.shape[0] == 0
    assert only.vectors is not None
    assert torch.equal(only.vectors[0], expected[1])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_an_encoder_gives_each_text_the_vector_that_it_has_alone(kind: str) -> None:
    torch.manual_seed(0)
    names = {"dim": 64, "hidden_dim": 128, "n_layers": 4, "n_heads": 4} if kind == "distilbert" else {}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**SMALL, **names})).eval()
    with torch.no_grad():
        hidden = [model(torch.tensor([tokens])).last_hidden_state[0].mean(0) for tokens in prompts()]
    expected = torch.nn.functional.normalize(torch.stack(hidden), dim=-1)
    with stream(model, k=2):
        packed = Packed(model)
        passed = packed.run([Piece(tokens, vector=True) for tokens in prompts()], CPU)
    assert not packed.makes_text
    assert passed.vectors is not None
    assert torch.equal(passed.vectors, expected)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mamba", {"state_size": 4}),
        ("bloom", {"n_head": 4}),
        ("qwen3_next", {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 8}),
    ],
)
def test_what_keeps_more_than_a_cache_or_attends_its_own_way_is_refused(
    kind: str, more: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=f"{kind} cannot answer many requests in one pass"):
        Packed(build(kind, **more))


@pytest.mark.parametrize("kind", ["diffllama", "nemotron"])
def test_attention_that_is_not_called_as_others_call_it_is_refused_at_the_first_pass(kind: str) -> None:
    """One attends twice in each layer; the other does not pass on what its forward was called with."""
    model = build(kind, num_key_value_heads=2)
    alone = by_generate(model, [1, 2, 3])
    packed = Packed(model)
    with pytest.raises(BadInput, match=f"{kind} cannot answer many requests in one pass"):
        packed.run([Piece([1, 2, 3], 0, packed.new_cache())], CPU)
    assert torch.equal(by_generate(model, [1, 2, 3])[1], alone[1]), "the model is as it was before"

"""Makes the configuration of any model small, by what its fields are called.

Owns the rules and knows no model. A field that no rule fits keeps its value; nothing is made larger.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

WIDTH, HEADS, LAYERS, VOCABULARY, IMAGE = 32, 4, 3, 128, 32
_PADDING, _BEGIN, _END = 0, 1, 2

#: What a rule gives: a number, or a share of the width.
_Small = int | Callable[[int], int]

#: The first pattern that fits a whole name decides. Whole numbers above the value become the value.
_RULES: list[tuple[str, _Small]] = [
    (r"num_feat_extract_layers|num_conv_pos.*", 1 << 30),  # counts of lists that keep their length
    (r".*rotary_dim", 4),
    (r"mask_(time|feature)_length", 2),
    (r"(attn_|attention_)?window_size", 2),
    (r"(.*_)?vocab(ulary)?_size(_.*)?|n_vocab|num_tokens|codebook_size|num_embeddings", VOCABULARY),
    (r"(.*_)?(num|n)_(group|groups)|topk_group|n_group", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|n_shared_experts|num_shared_experts", 1),
    (r"(.*_)?(num|n)?_?(hidden_)?layers?|num_.*_layers|.*_layers|depth|.*_depth|n_layer|num_blocks", LAYERS),
    (r".*(kv_heads|key_value_heads|query_groups|heads_kv)", HEADS // 2),
    (r".*heads?|n_head|num_attention_heads.*", HEADS),
    (r".*head_dim|d_kv|d_head|.*head_size|.*per_head|kv_channels", lambda width: width // HEADS),
    (r".*lora_rank|.*_rank", 8),
    (r".*(num|n)_(local_|routed_)?experts|moe_num_experts|num_local_experts", 4),
    (r".*experts_per_tok(en)?|moe_k|moe_topk|top_k_experts|num_experts_per_.*", 2),
    (r"(.*_)?(intermediate|ffn|feed_?forward|mlp|inner|fc)_?(hidden_)?(size|dim|embed_dim)?(_mlp)?|d_ff|n_inner|"
     r"d_inner|(encoder|decoder)_ffn_dim|.*intermediate_size.*|dim_feedforward", lambda width: 2 * width),
    (r"(mamba_|ssm_)?(d_state|state_size)|linear_num_.*|time_step_rank", 4),
    (r"(mamba_)?chunk_size|sliding_window|attention_window|attention_chunk_size|block_size|.*chunk_len.*", 8),
    (r"(crop_|input_|base_)?image_size|img_size|input_size", IMAGE),
    (r"(spatial_|conv_)?patch_size", 8),
    (r"num_frames|tubelet_size", 4),
    (r"(.*_)?max_(source_|target_|position|seq).*|n_positions|seq_len(gth)?|.*max_.*positions?|n_ctx", 64),
    (r"num_mel_bins|n_mels|num_buckets", 16),
    (r"(.*_)?(hidden|embed|embedding|embeddings|projection|model|out|output|fusion|channel)_?(size|dim|dims)|d_model|"
     r"n_embd|dim|d_embed|.*_hidden_size|.*_dim|.*hidden_size|lru_width|.*hidden_channels|.*_width|width",
     lambda width: width),
    (r"num_queries|num_query_tokens|.*num_latents|num_object_queries", 8),
]  # fmt: skip
_RULES_OF_LISTS: list[tuple[str, int]] = [
    (r"depths?|.*layers_per.*|layers|num_blocks|.*layers|.*depths", 1),
    (r".*heads", HEADS // 2),
    (r"(crop_|base_)?image_size|img_size|input_size", IMAGE),
    (r"patch_size", 8),
]


def shrink(fields: Mapping[str, Any], width: int = WIDTH) -> dict[str, Any]:
    """The fields that change, with their new values, for layers of about `width` features."""
    changed: dict[str, Any] = {}
    tokens = sorted(name for name, value in fields.items() if _is_token(name) and isinstance(value, int))
    for name, value in fields.items():
        if isinstance(value, bool) or name in ("model_type", "transformers_version"):
            continue
        if isinstance(value, int):
            new = _token(name, tokens) if _is_token(name) else _by_rule(name, value, width)
        elif isinstance(value, (list, tuple)) and value:
            new = _shrunk_list(name, value, width)
        elif isinstance(value, dict) and "mrope_section" in value:  # shares of half a head
            half = int(width // HEADS * value.get("partial_rotary_factor", 1)) // 2
            new = {**value, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
        else:
            continue
        if new != value:
            changed[name] = new
    return changed


def _is_token(name: str) -> bool:
    return re.fullmatch(r".*(token_id|token_index|token_type_id|_id|token_ids)", name) is not None


def _token(name: str, all_of_them: list[str]) -> int:
    if name.startswith("pad_"):
        return _PADDING
    if name.startswith(("bos_", "decoder_start")):
        return _BEGIN
    if name.startswith("eos_"):
        return _END
    return VOCABULARY - 1 - all_of_them.index(name)


def _by_rule(name: str, value: int, width: int) -> int:
    for pattern, small in _RULES:
        if re.fullmatch(pattern, name):
            return min(value, small if isinstance(small, int) else small(width))
    return value


def _shrunk_list(name: str, values: Any, width: int) -> Any:
    if _is_token(name):
        return type(values)([_END])
    if all(isinstance(value, str) for value in values) and re.fullmatch(
        r".*(layer|block|mlp|attn).*types?", name
    ):
        kinds = list(dict.fromkeys(values))
        return type(values)([kinds[at % len(kinds)] for at in range(LAYERS)])
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return values
    for pattern, small in _RULES_OF_LISTS:
        if re.fullmatch(pattern, name):
            return type(values)([min(value, small) for value in values])
    if re.fullmatch(r".*(hidden_sizes|embed_dims?|dims?|hidden_size|channels|num_channels|widths)", name):
        return type(values)([min(value, width) for value in values])
    return values

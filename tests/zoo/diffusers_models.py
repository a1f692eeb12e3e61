"""Specimens from diffusers: denoisers of every kind, autoencoders and what is put beside them, with tiny settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zoo.torchvision_names import torchvision_can_be_imported
from zoo.trial import Specimen

torchvision_can_be_imported()
import diffusers  # noqa: E402


class _Random:
    """A batch of two, seeded."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=self._generator)

    def whole(self, end: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, end, (2, *shape), generator=self._generator)


@dataclass(frozen=True)
class _Kind:
    settings: dict[str, Any]
    inputs: Callable[[_Random], dict[str, Any]]
    class_name: str | None = None  # the specimen's name, if not given


_LATENT = (4, 8, 8)
_UNET = {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
}  # fmt: skip
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32), "norm_num_groups": 8, "latent_channels": 4,
}  # fmt: skip
_UNET_2D = {
    **_UNET, "cross_attention_dim": 32, "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def _text_and_latent(r: _Random) -> dict[str, Any]:
    return {"sample": r(*_LATENT), "timestep": torch.tensor(7), "encoder_hidden_states": r(5, 32)}


def _ids(length: int) -> torch.Tensor:
    return torch.stack([torch.zeros(length), torch.arange(length) // 4, torch.arange(length) % 4], -1)


_KINDS: dict[str, _Kind] = {
    "UNet2DModel": _Kind(
        {
            **_UNET, "in_channels": 4, "out_channels": 4, "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        lambda r: {"sample": r(*_LATENT), "timestep": torch.tensor(7)},
    ),
    "UNet2DConditionModel": _Kind(_UNET_2D, _text_and_latent),
    "UNet2DConditionModel, SDXL": _Kind(
        {
            **_UNET_2D, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80, "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        },
        lambda r: {
            **_text_and_latent(r),
            "added_cond_kwargs": {"text_embeds": r(32), "time_ids": r.whole(8, 6)},
        },
        "UNet2DConditionModel",
    ),
    "UNet3DConditionModel": _Kind(
        {
            **_UNET, "cross_attention_dim": 32, "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
        lambda r: {"sample": r(4, 3, 8, 8), "timestep": torch.tensor(7), "encoder_hidden_states": r(5, 32)},
    ),
    "UNet1DModel": _Kind(
        {
            "block_out_channels": (8, 32), "in_channels": 4, "out_channels": 4, "extra_in_channels": 16,
            "sample_size": 16, "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
            "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"), "mid_block_type": "UNetMidBlock1D",
        },
        lambda r: {"sample": r(4, 16), "timestep": torch.tensor(7)},
    ),
    "UNetMotionModel": _Kind(
        {
            **_UNET, "cross_attention_dim": 32, "num_attention_heads": 2, "motion_num_attention_heads": 2,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        },
        lambda r: {
            "sample": r(4, 3, 8, 8), "timestep": torch.tensor(7),
            "encoder_hidden_states": r(15, 32).view(6, 5, 32),
        },
    ),
    "ControlNetModel": _Kind(
        {
            "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 32,
            "attention_head_dim": 8, "conditioning_embedding_out_channels": (8, 16),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        },
        lambda r: {**_text_and_latent(r), "controlnet_cond": r(3, 16, 16)},
    ),
    "DiTTransformer2DModel": _Kind(
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "num_layers": 3,
            "sample_size": 8, "num_embeds_ada_norm": 12, "norm_num_groups": 8,
        },
        lambda r: {"hidden_states": r(*_LATENT), "timestep": r.whole(9), "class_labels": r.whole(12)},
    ),
    "PixArtTransformer2DModel": _Kind(
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "sample_size": 8,
            "cross_attention_dim": 32, "caption_channels": 24, "use_additional_conditions": False,
        },
        lambda r: {
            "hidden_states": r(*_LATENT), "encoder_hidden_states": r(5, 24), "timestep": r.whole(9),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "Transformer2DModel": _Kind(
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 32, "num_layers": 3,
            "cross_attention_dim": 32, "norm_num_groups": 8, "dropout": 0.1,
        },
        lambda r: {"hidden_states": r(32, 8, 8), "encoder_hidden_states": r(5, 32)},
    ),
    "SD3Transformer2DModel": _Kind(
        {
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
            "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 24,
            "pooled_projection_dim": 16, "qk_norm": "rms_norm",
        },
        lambda r: {
            "hidden_states": r(*_LATENT), "encoder_hidden_states": r(5, 24), "pooled_projections": r(16),
            "timestep": r.whole(9),
        },
    ),
    "FluxTransformer2DModel": _Kind(
        {
            "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
        },
        lambda r: {
            "hidden_states": r(16, 4), "encoder_hidden_states": r(5, 32), "pooled_projections": r(16),
            "timestep": torch.rand(2), "img_ids": _ids(16), "txt_ids": torch.zeros(5, 3),
        },
    ),
    "AuraFlowTransformer2DModel": _Kind(
        {
            "sample_size": 8, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 8,
            "num_attention_heads": 4, "joint_attention_dim": 32, "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
        lambda r: {"hidden_states": r(*_LATENT), "encoder_hidden_states": r(5, 32), "timestep": torch.rand(2)},
    ),
    "SanaTransformer2DModel": _Kind(
        {
            "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
            "num_attention_heads": 4, "num_cross_attention_heads": 4, "cross_attention_head_dim": 8,
            "cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8, "patch_size": 1,
        },
        lambda r: {"hidden_states": r(*_LATENT), "encoder_hidden_states": r(5, 24), "timestep": r.whole(9)},
    ),
    "CogVideoXTransformer3DModel": _Kind(
        {
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
            "num_layers": 3, "text_embed_dim": 24, "time_embed_dim": 8, "sample_width": 8, "sample_height": 8,
            "sample_frames": 5, "max_text_seq_length": 5,
        },
        lambda r: {
            "hidden_states": r(2, *_LATENT), "encoder_hidden_states": r(5, 24), "timestep": r.whole(9),
        },
    ),
    "WanTransformer3DModel": _Kind(
        {
            "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
            "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 3, "rope_max_seq_len": 32,
        },
        lambda r: {"hidden_states": r(4, 2, 8, 8), "encoder_hidden_states": r(5, 16), "timestep": r.whole(9)},
    ),
    "LTXVideoTransformer3DModel": _Kind(
        {
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8,
            "cross_attention_dim": 32, "num_layers": 3, "caption_channels": 24,
        },
        lambda r: {
            "hidden_states": r(16, 4), "encoder_hidden_states": r(5, 24), "timestep": r.whole(9, 1),
            "encoder_attention_mask": torch.ones(2, 5), "num_frames": 1, "height": 4, "width": 4,
        },
    ),
    "HunyuanDiT2DModel": _Kind(
        {
            "sample_size": 16, "num_layers": 4, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 4,
            "in_channels": 4, "cross_attention_dim": 32, "cross_attention_dim_t5": 32, "pooled_projection_dim": 4,
            "hidden_size": 32, "activation_fn": "gelu-approximate", "text_len": 5, "text_len_t5": 5,
            "use_style_cond_and_image_meta_size": False, "mlp_ratio": 2.0,
        },
        lambda r: {
            "hidden_states": r(4, 16, 16), "encoder_hidden_states": r(5, 32), "timestep": r.whole(9).float(),
            "encoder_hidden_states_t5": r(5, 32), "text_embedding_mask": torch.ones(2, 5),
            "text_embedding_mask_t5": torch.ones(2, 5),
            "image_rotary_emb": list(torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(3))),
        },
    ),
    "PriorTransformer": _Kind(
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "embedding_dim": 16,
         "num_embeddings": 5, "additional_embeddings": 4},
        lambda r: {
            "hidden_states": r(16), "timestep": r.whole(9), "proj_embedding": r(16),
            "encoder_hidden_states": r(5, 16),
        },
    ),
    "StableAudioDiTModel": _Kind(
        {
            "sample_size": 8, "in_channels": 4, "num_layers": 3, "attention_head_dim": 8, "num_attention_heads": 4,
            "num_key_value_attention_heads": 2, "out_channels": 4, "cross_attention_dim": 16,
            "time_proj_dim": 8, "global_states_input_dim": 16, "cross_attention_input_dim": 16,
        },
        lambda r: {
            "hidden_states": r(4, 8), "timestep": torch.rand(2), "encoder_hidden_states": r(5, 16),
            "global_hidden_states": r(1, 16),
            "rotary_embedding": tuple(torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(3))),
        },
    ),
    "AutoencoderKL": _Kind(_VAE, lambda r: {"sample": r(3, 16, 16)}),
    "AsymmetricAutoencoderKL": _Kind(
        {
            **_VAE, "down_block_out_channels": (16, 32), "up_block_out_channels": (16, 32), "block_out_channels": ...,
            "layers_per_down_block": 1, "layers_per_up_block": 1,
        },
        lambda r: {"sample": r(3, 16, 16), "mask": (r(1, 16, 16) > 0).float()},
    ),
    "AutoencoderTiny": _Kind(
        {
            "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1),
        },
        lambda r: {"sample": r(3, 16, 16)},
    ),
    "AutoencoderDC": _Kind(
        {
            "in_channels": 3, "latent_channels": 4, "attention_head_dim": 2,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
            "encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,)),
            "encoder_layers_per_block": (1, 1), "decoder_layers_per_block": [1, 1],
            "downsample_block_type": "conv", "upsample_block_type": "interpolate",
            "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
        },
        lambda r: {"sample": r(3, 16, 16)},
    ),
    "AutoencoderKLTemporalDecoder": _Kind(
        {"down_block_types": _VAE["down_block_types"], "block_out_channels": (32, 32), "latent_channels": 4},
        lambda r: {"sample": r(3, 16, 16), "num_frames": 2},
    ),
    "VQModel": _Kind(
        {
            "down_block_types": _VAE["down_block_types"], "up_block_types": _VAE["up_block_types"],
            "block_out_channels": (16, 32), "norm_num_groups": 8, "num_vq_embeddings": 24, "latent_channels": 3,
        },
        lambda r: {"sample": r(3, 16, 16)},
    ),
    "StableCascadeUNet": _Kind(
        {
            "in_channels": 4, "out_channels": 4, "conditioning_dim": 16, "block_out_channels": (16, 32),
            "num_attention_heads": (0, 2), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
            "down_blocks_repeat_mappers": (1, 1), "up_blocks_repeat_mappers": (1, 1),
            "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                                      ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")),
            "clip_text_in_channels": None, "clip_text_pooled_in_channels": 16, "clip_image_in_channels": None,
            "switch_level": None, "effnet_in_channels": None, "pixel_mapper_in_channels": None, "patch_size": 1,
            "timestep_ratio_embedding_dim": 16, "timestep_conditioning_type": ("sca", "crp"),
        },
        lambda r: {"sample": r(*_LATENT), "timestep_ratio": torch.rand(2), "clip_text_pooled": r(1, 16)},
    ),
}  # fmt: skip


def names() -> list[str]:
    """Every specimen of this library."""
    return list(_KINDS)


def version() -> str:
    """The library's version."""
    return diffusers.__version__


def specimen(name: str) -> Specimen:
    """The specimen called `name`."""
    kind = _KINDS[name]
    settings = {key: value for key, value in kind.settings.items() if value is not ...}
    return Specimen(
        "diffusers",
        name,
        lambda: getattr(diffusers, kind.class_name or name)(**settings),
        lambda model, seed: ((), kind.inputs(_Random(seed))),
    )

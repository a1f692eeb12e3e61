"""Tiny text-to-image pipelines with random weights, one of each family, as folders that `diffusers` reads."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from zoo.torchvision_names import torchvision_can_be_imported

torchvision_can_be_imported()
import diffusers  # noqa: E402

#: Of the text encoders: width, layers, tokens of a prompt.
_WIDTH, _LAYERS, _LENGTH = 32, 3, 16
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Letters, alone and at the end of a word."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=_LENGTH)


def t5_tokenizer() -> T5TokenizerFast:
    """Letters."""
    pieces = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase)]
    return T5TokenizerFast(tokenizer_object=Tokenizer(Unigram(pieces, unk_id=2)), model_max_length=_LENGTH)


def _clip(kind: type[Any] = CLIPTextModel) -> Any:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=_WIDTH, intermediate_size=64, num_hidden_layers=_LAYERS, num_attention_heads=4,
        max_position_embeddings=_LENGTH, projection_dim=_WIDTH, **_ENDS,
    )  # fmt: skip
    return kind(config).eval()


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=_WIDTH, d_kv=8, d_ff=64, num_layers=_LAYERS, num_heads=4)
    ).eval()


def _vae(channels: int = 4, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32), norm_num_groups=8, latent_channels=channels, **more,
    ).eval()  # fmt: skip


def _unet(**more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=2, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=more.pop("cross_attention_dim", _WIDTH), **more,
    ).eval()  # fmt: skip


def stable_diffusion(folder: Path) -> Any:
    """As Stable Diffusion 1 and 2 are."""
    return diffusers.StableDiffusionPipeline(
        vae=_vae(), text_encoder=_clip(), tokenizer=clip_tokenizer(folder), unet=_unet(),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(folder: Path) -> Any:
    """Two text encoders, and conditions on sizes."""
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(), text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(folder), tokenizer_2=clip_tokenizer(folder),
        unet=_unet(
            cross_attention_dim=2 * _WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + _WIDTH, transformer_layers_per_block=(1, 2),
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> Any:
    """A transformer that denoises, and three text encoders."""
    return diffusers.StableDiffusion3Pipeline(
        vae=_vae(shift_factor=0.1), text_encoder=_clip(CLIPTextModelWithProjection),
        text_encoder_2=_clip(CLIPTextModelWithProjection), text_encoder_3=_t5(),
        tokenizer=clip_tokenizer(folder), tokenizer_2=clip_tokenizer(folder), tokenizer_3=t5_tokenizer(),
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=16, pos_embed_max_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=4,
            attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=_WIDTH, pooled_projection_dim=2 * _WIDTH,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


def flux(folder: Path) -> Any:
    """Two kinds of transformer blocks."""
    return diffusers.FluxPipeline(
        vae=_vae(1, shift_factor=0.0, scaling_factor=1.0, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(), text_encoder_2=_t5(), tokenizer=clip_tokenizer(folder), tokenizer_2=t5_tokenizer(),
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=_WIDTH, pooled_projection_dim=_WIDTH, axes_dims_rope=(4, 4, 8),
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


FAMILIES = (stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux)


def saved(make: Any, folder: Path) -> Path:
    """The folder of a pipeline of this family."""
    torch.manual_seed(0)
    make(folder / "tokenizer").save_pretrained(folder)
    return folder

"""What `paint_tiny_model.yaml` runs: a Stable Diffusion of a million and a half parameters, all of them random."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH, LENGTH = 32, 16
torch.manual_seed(0)

# A tokenizer that knows the letters, alone and at the end of a word.
letters = string.ascii_lowercase
tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
Path("tokenizer").mkdir(exist_ok=True)
Path("tokenizer/vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
Path("tokenizer/merges.txt").write_text("#version: 0.2\n")

text_config = CLIPTextConfig(
    vocab_size=len(tokens),
    hidden_size=WIDTH,
    intermediate_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=1,
)
unet = UNet2DConditionModel(
    sample_size=32,
    block_out_channels=(32, 64),
    layers_per_block=2,
    norm_num_groups=8,
    attention_head_dim=8,
    cross_attention_dim=WIDTH,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
vae = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(16, 32),
    norm_num_groups=8,
    latent_channels=4,
)
pipeline = StableDiffusionPipeline(
    vae=vae,
    text_encoder=CLIPTextModel(text_config),
    tokenizer=CLIPTokenizer.from_pretrained("tokenizer", model_max_length=LENGTH),
    unet=unet,
    scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
)
pipeline.save_pretrained(".")

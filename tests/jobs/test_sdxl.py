"""`jobs:paint` names a pipeline of the hub. Its shapes are public, and can be planned without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTextConfig

from pipelines import clip_tokenizer
from superpipe_cluster import bundled, spec
from superpipe_cluster.planning import Plan
from superpipe_cluster.planning.__main__ import answer
from superpipe_cluster.spec import ByteRange

#: Podell et al., "SDXL" (2023), table 1, and the configurations that stabilityai/stable-diffusion-xl-base-1.0 has.
UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True,
}  # fmt: skip
ENCODERS = {
    "text_encoder": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "text_encoder_2": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20},
}
SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "beta_end": 0.012}
PARTS = {
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_shapes(folder: Path) -> None:
    """The pipeline's folder but for its weights; its tokenizers know letters."""

    def write(name: str, content: dict[str, Any]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    write("model_index.json", {"_class_name": "StableDiffusionXLPipeline", **PARTS})
    write("unet/config.json", UNET)
    write("vae/config.json", VAE)
    write("scheduler/scheduler_config.json", SCHEDULER)
    for number, (name, shape) in enumerate(ENCODERS.items()):
        width = shape["hidden_size"]
        config = CLIPTextConfig(
            **shape, intermediate_size=4 * width, projection_dim=width, vocab_size=49408,
            bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
        config.save_pretrained(folder / name)
        tokenizer = clip_tokenizer(folder / ("tokenizer_2" if number else "tokenizer"))
        tokenizer.model_max_length = 77
        tokenizer.save_pretrained(folder / ("tokenizer_2" if number else "tokenizer"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # libraries of each other
def test_stable_diffusion_xl_can_run_in_what_the_job_file_asks_for(tmp_path: Path) -> None:
    write_shapes(tmp_path)
    job = spec.load(bundled.job_path("paint"))
    asked = spec.dump(job)
    asked["model"]["source"] = str(tmp_path)
    program = str(bundled.worker_path(job.worker))
    made = answer({"job": asked, "program": program, "cuda": True, "device": None})["plan"]
    plan = Plan.from_dict(made)
    assert plan.model_bytes == pytest.approx(2 * 3.47e9, rel=0.01), "3.5 billion parameters of two bytes"
    assert isinstance(job.resources.gpu_memory, ByteRange)
    print(f"floor {plan.floor_bytes}, whole {plan.whole_bytes}, host {plan.host_bytes}")
    assert plan.floor_bytes <= job.resources.gpu_memory.min_bytes
    assert plan.whole_bytes <= job.resources.gpu_memory.max_bytes
    assert plan.host_bytes <= (job.resources.host_memory_bytes or 0)

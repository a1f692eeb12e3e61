"""Painting with diffusers alone, as its own pages have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import pipelines


def plain(folder: Path) -> Any:
    """The pipeline of a folder."""
    pipeline = pipelines.diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def painted(folder: Path, settings: Mapping[str, Any]) -> list[Image.Image]:
    """The pictures of a job file's `paint`: batches of `batch_size`, of one prompt each."""
    pipeline, size = plain(folder), settings["batch_size"]
    made: list[Image.Image] = []
    for prompt in settings["prompts"]:
        for _ in range(0, settings["images_per_prompt"], size):
            seeds = range(settings["seed"] + len(made), settings["seed"] + len(made) + size)
            made += pipeline(
                [prompt] * size, negative_prompt=[settings["negative_prompt"]] * size,
                num_inference_steps=settings["steps"], guidance_scale=settings["guidance"],
                width=settings["width"], height=settings["height"],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            ).images  # fmt: skip
    return made

"""Training an image classifier: `kind: vision`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from superpipe_cluster.spec.base import StrictModel
from superpipe_cluster.spec.fields import (
    Count,
    CountOrZero,
    Patterns,
    Positive,
    PositiveOrZero,
    Seed,
    Share,
    Text,
)
from superpipe_cluster.spec.job_base import JobBase


class ImagesSection(StrictModel):
    """The images to train on, and their classes."""

    train: Patterns
    """A folder with a folder of images for each class, globs of such images, .parquet files, or `generated:`."""
    eval: Patterns | None = None
    """Images to evaluate on; null for `eval_share` of those to train on."""
    eval_share: Share = 0.1
    """Share of the images that is evaluated on and not trained on, where `eval` names none."""
    image_field: Text = "image"
    """The column with the encoded image, in .parquet files."""
    label_field: Text = "label"
    """The column with the class, a number or a name, in .parquet files."""


class VisionTrainSection(StrictModel):
    """How to train."""

    epochs: Count
    """Passes over the images."""
    batch_size: Count = 32
    """Images per forward pass."""
    accumulate: Count = 1
    """Forward passes per optimizer step."""
    image_size: Count | None = None
    """Height and width of the images in the model; null for the model's own."""
    augment: Literal["none", "crop", "rand"] = "crop"
    """`crop` cuts a random part and mirrors, `rand` also distorts by RandAugment, `none` only resizes."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes under autocast; weights keep the model's dtype."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""
    lr: Positive = 3e-4
    """Learning rate, at its highest."""
    weight_decay: PositiveOrZero = 0.0
    """Weight decay."""
    label_smoothing: Share = 0.0
    """How much of the target is spread over all classes."""
    grad_clip: Positive | None = None
    """Largest global norm of the gradients; null for no clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate goes on after warming up."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises from zero."""
    seed: Seed = 0
    """Seed of the order of the images, of augmentation and of dropout."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints."""
    eval_every: Count | None = None
    """Steps between two evaluations; null for one at the end of each epoch."""
    log_every: Count = 10
    """Steps between two reports of the loss."""


class VisionJob(JobBase):
    """Train an image classifier."""

    needed: ClassVar[Mapping[str, str]] = {
        "model": "model: {source: ORG/MODEL}",
        "images": "images: {train: FOLDER}",
        "train": "train: {epochs: 10}",
    }

    kind: Literal["vision"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Text = "train_vision"
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    images: ImagesSection | None = None
    """The images to train on, and their classes."""
    train: VisionTrainSection | None = None
    """How to train."""

"""Training a language model on text from scratch or from given weights: `kind: train`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from superpipe_cluster.spec.base import Complaint, StrictModel
from superpipe_cluster.spec.fields import Count, CountOrZero, Positive, PositiveOrZero, Seed, Text
from superpipe_cluster.spec.job_base import JobBase
from superpipe_cluster.spec.sections import DataSection


class TrainSection(StrictModel):
    """How to train."""

    steps: Count
    """Optimizer steps to make."""
    batch_size: Count = 4
    """Sequences per forward pass."""
    sequence_length: Count = 128
    """Tokens per sequence."""
    accumulate: Count = 1
    """Forward passes per optimizer step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""
    lr: Positive = 3e-4
    """Learning rate, at its highest."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay."""
    grad_clip: Positive | None = None
    """Largest global norm of the gradients; null for no clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after warming up."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises from zero."""
    seed: Seed = 0
    """Seed of the order of the data and of dropout."""
    checkpoint_every: Count = 50
    """Steps between two checkpoints."""
    log_every: Count = 10
    """Steps between two reports of the loss."""
    optimizer_on: Literal["device", "host"] = "device"
    """Where the optimizer computes; on the host its state never crosses the link, and last bits differ from a GPU's."""

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Warming up ends before the training does."""
        steps, warmup = given.get("steps"), given.get("warmup_steps")
        if isinstance(steps, int) and isinstance(warmup, int) and warmup > steps > 0:
            yield Complaint(("warmup_steps",), f"warms up for {warmup} steps, but there are only {steps}")


class TrainJob(JobBase):
    """Train a model."""

    needed: ClassVar[Mapping[str, str]] = {
        "model": "model: {source: ORG/MODEL}",
        "data": 'data: {files: ["texts/**/*.txt"]}',
        "train": "train: {steps: 200}",
    }

    kind: Literal["train"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Text = "train_lm"
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    data: DataSection | None = None
    """The text to train on."""
    train: TrainSection | None = None
    """How to train."""

    @property
    def steps(self) -> int | None:
        """Those of the optimizer."""
        return self.train.steps if self.train is not None else None

"""Making one vector of each text or image: `kind: embed`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from superpipe_cluster.spec.base import Complaint, StrictModel
from superpipe_cluster.spec.fields import AutoOrCount, Count, Flag, Patterns, Text
from superpipe_cluster.spec.job_base import JobBase


class EmbedSection(StrictModel):
    """What to embed, and how."""

    texts: Patterns | None = None
    """Text files: .jsonl, .csv, .parquet have a text in `field` of each row, .txt one per line, others are one each."""
    images: Patterns | None = None
    """Images: a folder, globs of image files, or .parquet files with an encoded image in `field` of each row."""
    field: Text | None = None
    """The column with the text or the image; null for `text` or `image`."""
    id_field: Text | None = None
    """The column with the ids; null for row numbers, or the path where each file is one row."""
    prompt: Text | None = None
    """Which of the model's prompts goes before every text; null for the model's default."""
    pooling: Literal["mean", "cls", "max", "lasttoken"] | None = None
    """How a vector is made of those of the tokens; null for what the model says, else `mean`, for images `cls`."""
    normalize: Flag | None = None
    """Whether vectors are scaled to length 1; null for what the model says."""
    max_length: Count | None = None
    """Tokens of a text at most, what is longer is cut; null for the model's own limit."""
    batch_size: AutoOrCount = 32
    """Texts or images per forward pass; with `auto` each has the vector that it has alone, and a pass over the weights
    brings as many as there is room for."""
    format: Literal["parquet", "npy"] = "parquet"
    """`embeddings.parquet` with `id` and `embedding`, or `embeddings.npy` with `ids.jsonl`."""
    checkpoint_every: Count = 20
    """Batches between two checkpoints."""

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Texts or images."""
        if "texts" in given and "images" in given:
            yield Complaint(("images",), "given beside texts, but a job embeds one of them", "make two jobs")
        elif "texts" not in given and "images" not in given:
            hint = "write texts: [docs.jsonl], or images: photos"
            yield Complaint((), "neither texts nor images are given", hint, lacks=(("texts",), ("images",)))


class EmbedJob(JobBase):
    """Make one vector of each text or image."""

    needed: ClassVar[Mapping[str, str]] = {
        "model": "model: {source: ORG/MODEL}",
        "embed": "embed: {texts: docs.jsonl}",
    }

    kind: Literal["embed"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Text = "embed"
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    embed: EmbedSection | None = None
    """What to embed, and how."""

"""Continuing prompts with a language model: `kind: generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from superpipe_cluster.spec.base import StrictModel
from superpipe_cluster.spec.fields import (
    AutoOrCount,
    Count,
    PositiveOrZero,
    Probability,
    Prompts,
    Seed,
    Text,
)
from superpipe_cluster.spec.job_base import JobBase


class GenerateSection(StrictModel):
    """What to generate, and how."""

    prompts: Prompts
    """A .txt file (one prompt per line), a .jsonl file (`{"prompt": ...}` per line), or a list of texts."""
    max_new_tokens: Count = 64
    """Tokens to add to each prompt, at most."""
    batch_size: AutoOrCount = "auto"
    """Prompts in one pass over the weights, at most; `auto` for as many as their keys and values have room for."""
    temperature: PositiveOrZero = 0.0
    """0 takes the most likely token; higher is more varied."""
    top_k: Count | None = None
    """Choose among this many most likely tokens; null for all."""
    top_p: Probability = 1.0
    """Choose among the most likely tokens that have so much of the probability together."""
    seed: Seed = 0
    """Seed of the choices, with a temperature above 0."""


class GenerateJob(JobBase):
    """Run a model on prompts."""

    needed: ClassVar[Mapping[str, str]] = {
        "model": "model: {source: ORG/MODEL}",
        "generate": "generate: {prompts: prompts.txt}",
    }

    kind: Literal["generate"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Text = "generate"
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    generate: GenerateSection | None = None
    """What to generate, and how."""

    @property
    def steps(self) -> int | None:
        """Prompts; how many are in a file, only the file tells."""
        prompts = self.generate.prompts if self.generate is not None else ""
        return None if isinstance(prompts, str) or self.own_program else len(prompts)

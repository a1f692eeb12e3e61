"""Painting pictures from texts: `kind: paint`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, cast

from superpipe_cluster.spec.base import Complaint, StrictModel
from superpipe_cluster.spec.fields import AnyText, Count, PositiveOrZero, Prompts, Seed, Text
from superpipe_cluster.spec.job_base import JobBase


class PaintSection(StrictModel):
    """What to paint, and how."""

    prompts: Prompts
    """A .txt file (one prompt per line), a .jsonl file (`{"prompt": ...}` per line), or a list of texts."""
    negative_prompt: AnyText | None = None
    """What the pictures should not show, where the pipeline knows such a thing."""
    images_per_prompt: Count = 1
    """Pictures of each prompt."""
    batch_size: Count = 1
    """Pictures at once: each pass over the weights serves all of them."""
    steps: Count = 30
    """Denoising steps of each picture."""
    guidance: PositiveOrZero | None = None
    """How closely to follow the prompt; null for the pipeline's own."""
    width: Count | None = None
    """Pixels; null for the pipeline's own."""
    height: Count | None = None
    """Pixels; null for the pipeline's own."""
    seed: Seed = 0
    """The first picture's seed; the next one has the next number, and so on."""

    def steps_of(self, pictures: int) -> int:
        """Denoising steps in which so many pictures are painted, batch by batch."""
        return -(-pictures // self.batch_size) * self.steps


class PaintJob(JobBase):
    """Paint pictures."""

    needed: ClassVar[Mapping[str, str]] = {
        "model": "model: {source: ORG/MODEL}",
        "paint": "paint: {prompts: prompts.txt}",
    }

    kind: Literal["paint"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Text = "paint"
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    paint: PaintSection | None = None
    """What to paint, and how."""

    @property
    def steps(self) -> int | None:
        """Denoising steps of all batches; how many prompts are in a file, only the file tells."""
        settings = self.paint
        if settings is None or isinstance(settings.prompts, str) or self.own_program:
            return None
        return settings.steps_of(len(settings.prompts) * settings.images_per_prompt)

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """A pipeline is many models: it comes from somewhere."""
        yield from super().rules(given)
        model = given.get("model")
        section = cast("dict[str, object]", model) if isinstance(model, dict) else {}
        for field in ("config", "tokenizer"):
            if section.get(field) is not None:
                hint = "write model: {source: ./folder}, as save_pretrained() wrote it, or a hub name"
                yield Complaint(("model", field), "a pipeline has its own, with its weights", hint)

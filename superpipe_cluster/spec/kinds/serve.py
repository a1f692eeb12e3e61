"""Answering requests with a language model, online: `kind: serve`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from superpipe_cluster.spec.base import StrictModel
from superpipe_cluster.spec.fields import Count, CountOrZero, Duration, Flag, Text
from superpipe_cluster.spec.job_base import JobBase


class ServeSection(StrictModel):
    """How requests are answered."""

    task: Literal["generate", "embed"] = "generate"
    """`generate` text with a causal language model, which embeds as well; `embed` with any encoder, and that only."""
    context: Count | None = None
    """Tokens of the longest request, prompt and answer together; null for what the model has, 4096 at most."""
    max_tokens: Count = 256
    """Tokens of an answer whose request names no `max_tokens`."""
    max_requests: Count = 16
    """Requests answered at the same time; fewer while their caches together do not fit the guaranteed memory."""
    queue: CountOrZero = 64
    """Requests that may wait for their turn; further ones are refused with 429 and told when to come again."""
    exact: Flag = True
    """Give each request the very bits it would have alone; false is faster where the whole model fits the budget."""
    idle_after: Duration | None = 300.0
    """Without requests for so long, give back all but the guaranteed memory until the next; null to keep all of it."""
    end_after: Duration | None = None
    """Without requests for so long, the job ends; null to run until it is cancelled."""


class ServeJob(JobBase):
    """Serve a model behind OpenAI-compatible routes on the cluster's own address."""

    needed: ClassVar[Mapping[str, str]] = {"model": "model: {source: ORG/MODEL}"}

    kind: Literal["serve"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Text = "serve"
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    serve: ServeSection = ServeSection()
    """How requests are answered."""

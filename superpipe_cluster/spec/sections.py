"""The sections about the work that jobs of several kinds have: model, data, resources, streaming.

Owns their fields, defaults and the rules inside one section. Those that one kind alone has are with it in `kinds`;
those about the queue are in `queueing`. The text under each field is its description in the JSON schema and in error
hints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import SkipJsonSchema

from superpipe_cluster.spec import files
from superpipe_cluster.spec.base import Complaint, StrictModel
from superpipe_cluster.spec.fields import (
    Count,
    Flag,
    HostMemory,
    Memory,
    Seed,
    Share,
    Text,
)


class LoraSection(StrictModel):
    """The adapter, in PEFT's terms."""

    r: Count = 16
    """Rank."""
    alpha: Count = 32
    """Scale: the update counts `alpha / r` times."""
    dropout: Share = 0.0
    """Dropout of what the adapter reads."""
    target_modules: Text | tuple[Text, ...] = "all-linear"
    """Names of the layers to adapt, a regular expression over their full names, or `all-linear`."""
    use_rslora: Flag = False
    """Scale by `alpha / sqrt(r)` instead, for high ranks."""
    dora: Flag = False
    """Train lengths and directions of weights apart (DoRA): closer to `full` at low ranks, and slower."""
    modules_to_save: tuple[Text, ...] = ()
    """Modules to train whole beside it, `[embed_tokens, lm_head]` for new tokens; they are in the adapter's folder."""


class ModelSection(StrictModel):
    """Which model, and from where."""

    source: Text | None = None
    """A local folder, a hub name like `org/model`, or `job:NAME` for what another job made; a model or an adapter."""
    config: dict[str, JsonValue] | None = None
    """A Hugging Face configuration, `{model_type: llama, ...}`: the model starts from random weights."""
    seed: Seed = 0
    """Seed of the random weights, with `config`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights."""
    tokenizer: Text | None = None
    """`bytes` (one token per byte), a local folder or a hub name; null for the source's own, else `bytes`."""
    planned_lora: SkipJsonSchema[LoraSection | None] = None
    """In plans, not in job files: the adapter that another job is yet to make of this model."""

    @model_serializer(mode="wrap")
    def _as_in_job_files(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = dump(self)
        if self.planned_lora is None:
            dumped.pop("planned_lora", None)
        return dumped

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Exactly one of `source` and `config`, and a `job:` that names one."""
        if "source" in given and "config" in given:
            yield Complaint(("config",), "given beside a source, but a model has one of them", "remove one")
        elif "source" not in given and "config" not in given:
            hint = "write source: ORG/MODEL, or a config"
            yield Complaint(
                (), "neither a source nor a config is given", hint, lacks=(("source",), ("config",))
            )
        elif given.get("source") == files.JOB_PREFIX:
            yield Complaint(("source",), "names no job", "write job: and the id or name of a job")

    @property
    def source_job(self) -> str | None:
        """Id or name of the job whose output is the model, if it is one's."""
        source = self.source or ""
        return source.removeprefix(files.JOB_PREFIX) if source.startswith(files.JOB_PREFIX) else None


class DataSection(StrictModel):
    """The text to train on."""

    files: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Paths or globs, relative to the job file; `python-stdlib:` names the sources of the running Python."""
    format: Literal["auto", "text", "jsonl"] = "auto"
    """How to read them; `auto` goes by the file's extension."""
    field: Text = "text"
    """The key that holds the text, in JSONL files."""

    def paths(self) -> list[Path]:
        """The files that the patterns name, in their order, each once.

        Raises:
            FileMissing: a pattern matches nothing.
        """
        return files.expand_patterns(self.files)


class ResourcesSection(StrictModel):
    """What the job may hold."""

    gpu_memory: Memory = "auto"
    """All device bytes: `12GiB`, or `10GiB..24GiB` for guaranteed..wanted; `auto` follows the plan."""
    host_memory: HostMemory = "auto"
    """Host RAM; `auto` follows the plan."""
    host: Literal["pinned", "shared", "disk"] = "pinned"
    """Where weights wait: own RAM; `shared` with jobs on the same frozen weights; `disk` for models larger than RAM."""
    cpus: Count = 1
    """CPU cores."""

    @property
    def host_memory_bytes(self) -> int | None:
        """Host RAM in bytes, None for `auto`."""
        return None if self.host_memory == "auto" else self.host_memory


class StreamingSection(StrictModel):
    """How units of the model come and go on the device; by default everything follows from the budget."""

    k: Count | None = None
    """Units on the device at once; null for what the budget holds."""
    k_prime: Count | None = None
    """Units per transfer batch."""
    policy: Literal["optimal", "sliding", "naive", "whole"] = "optimal"
    """Which unit to fetch and evict next."""
    activations: Literal["keep", "recompute", "offload"] = "keep"
    """What training does with what backward will need: keep it, compute it again, or hold it in host memory."""

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """A transfer batch fits into the window."""
        k, k_prime = given.get("k"), given.get("k_prime")
        if isinstance(k, int) and isinstance(k_prime, int) and k_prime > k > 0:
            yield Complaint(("k_prime",), f"a batch of {k_prime} units does not fit a window of k = {k}")

"""Fine-tuning a pretrained language model, an adapter or all of it: `kind: finetune`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field

from superpipe_cluster.spec.base import Complaint, StrictModel
from superpipe_cluster.spec.fields import (
    Count,
    CountOrZero,
    Flag,
    Positive,
    PositiveOrZero,
    Seed,
    Share,
    Text,
)
from superpipe_cluster.spec.job_base import JobBase
from superpipe_cluster.spec.sections import LoraSection, ModelSection


class ExamplesSection(StrictModel):
    """The examples to learn from."""

    files: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Paths or globs, relative to the job file; `python-stdlib:` names the sources of the running Python."""
    eval_files: tuple[Text, ...] = ()
    """The same for examples that are not trained on, for the evaluation loss."""
    eval_fraction: Share = 0.0
    """Part of the examples that is held out for the evaluation loss, without `eval_files`."""
    format: Literal["auto", "jsonl", "parquet", "csv", "text"] = "auto"
    """How to read the files; `auto` goes by their extensions."""
    rows: Literal["auto", "text", "prompt", "alpaca", "messages", "sharegpt"] = "auto"
    """What a row is: a text, prompt and completion, instruction/input/output, a chat in `messages`, or ShareGPT's in
    `conversations`; `auto` goes by its columns."""
    columns: dict[str, Text] = Field(default_factory=dict[str, str])
    """Columns under other names, `{prompt: question, completion: answer}`."""
    chat_template: Text | None = None
    """A Jinja file to format turns with, in place of the tokenizer's own chat template."""
    as_chat: Flag = True
    """Instruction rows become a user's and an assistant's turn where there is a chat template; else plain text."""
    train_on: Literal["completion", "all"] = "completion"
    """What counts in the loss: completions and assistant turns, or prompts as well. Of a text, all of it counts."""
    too_long: Literal["refuse", "cut", "skip"] = "refuse"
    """What becomes of conversations and instructions longer than `sequence_length`; texts are split."""
    packing: Flag = False
    """Several examples in each sequence, as many as fit; none sees another."""

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Examples are held out once, and only known columns have other names."""
        if given.get("eval_files") and given.get("eval_fraction"):
            yield Complaint(
                ("eval_fraction",), "given beside eval_files, which are the examples held out", "remove one"
            )
        columns = given.get("columns")
        for name in cast("dict[str, object]", columns) if isinstance(columns, dict) else ():
            if name not in COLUMNS:
                yield Complaint(
                    ("columns", name), "not a column of any kind of row", f"one of {', '.join(COLUMNS)}"
                )


#: Columns that rows have, by what a row is.
COLUMNS_OF_ROWS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
}
COLUMNS = (
    *dict.fromkeys(name for names in COLUMNS_OF_ROWS.values() for name in names),
    "input",
    "system",
    "tools",
)


class FinetuneSection(StrictModel):
    """How to fine-tune."""

    method: Literal["lora", "full"] = "lora"
    """Train an adapter beside frozen weights, or all weights."""
    lora: LoraSection = LoraSection()
    """The adapter, with `method: lora`."""
    share_base: Flag | None = None
    """Keep one host copy of the frozen base for all jobs of a machine that use it; null: with `method: lora`."""
    epochs: Count = 1
    """Passes over the examples."""
    steps: Count | None = None
    """Optimizer steps to make, instead of whole epochs."""
    batch_size: Count = 4
    """Sequences per forward pass."""
    sequence_length: Count = 512
    """Tokens per sequence, at most."""
    accumulate: Count = 1
    """Forward passes per optimizer step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""
    lr: Positive = 2e-4
    """Learning rate, at its highest; full fine-tuning usually wants a tenth of this."""
    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay."""
    grad_clip: Positive | None = 1.0
    """Largest global norm of the gradients; null for no clipping."""
    schedule: Literal[
        "constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
    ] = "linear"
    """How the learning rate goes on after warming up, as in `transformers.get_scheduler`."""
    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises from zero."""
    seed: Seed = 0
    """Seed of the adapter, of the order of the examples and of dropout."""
    eval_every: Count = 50
    """Steps between two evaluations."""
    patience: Count | None = None
    """Stop after so many evaluations in a row without a smaller loss; null to go on to the end."""
    checkpoint_every: Count = 50
    """Steps between two checkpoints."""
    log_every: Count = 10
    """Steps between two reports of the loss."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the curves go beside the log: event files in the output, or Weights & Biases."""
    optimizer_on: Literal["device", "host"] = "device"
    """Where the optimizer computes; on the host its state never crosses the link, and last bits differ from a GPU's."""
    master_weights: Flag = True
    """With `method: full` and `dtype: bfloat16`: the optimizer steps copies in float32, as usual."""

    @property
    def shares_base(self) -> bool:
        """Whether the frozen base has one host copy for all."""
        return self.method == "lora" if self.share_base is None else self.share_base

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Warming up ends before the training does, and a base is shared only where it is frozen."""
        steps, warmup = given.get("steps"), given.get("warmup_steps")
        if isinstance(steps, int) and isinstance(warmup, int) and warmup > steps > 0:
            yield Complaint(("warmup_steps",), f"warms up for {warmup} steps, but there are only {steps}")
        if given.get("method") == "full" and given.get("share_base"):
            yield Complaint(("share_base",), "there is no frozen base with method: full", "remove it")


class FinetuneJob(JobBase):
    """Fine-tune a language model."""

    needed: ClassVar[Mapping[str, str]] = {
        "model": "model: {source: ORG/MODEL}",
        "data": 'data: {files: ["examples/*.jsonl"]}',
        "finetune": "finetune: {method: lora}",
    }

    kind: Literal["finetune"]  # pyright: ignore[reportIncompatibleVariableOverride]
    """The kind of work."""
    worker: Text = "finetune_lm"
    """The program that does the work: a bundled one by name, or your own by path, `./mine.py`."""
    data: ExamplesSection | None = None
    """The examples to learn from."""
    finetune: FinetuneSection | None = None
    """How to fine-tune."""

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """Sections that belong together fit together."""
        yield from super().rules(given)
        model, data, tune = (_section(given, name) for name in ("model", "data", "finetune"))
        if model.get("dtype") == "float16":
            yield Complaint(
                ("model", "dtype"), "float16 overflows without a scaled loss", "use bfloat16 or float32"
            )
        if tune.get("patience") is not None and not (data.get("eval_files") or data.get("eval_fraction")):
            at = ("finetune", "patience")
            yield Complaint(at, "nothing is held out to evaluate", "write data: {eval_fraction: 0.05, ...}")
        home = _section(given, "resources").get("host")
        if tune.get("share_base") is True and home in ("pinned", "disk"):
            at = ("resources", "host")
            yield Complaint(at, f"{home}, but finetune.share_base shares the base", "write host: shared")

    @property
    def makes(self) -> ModelSection | None:
        """With an adapter: a new one, or the one that was there and is trained further."""
        if self.model is None or self.finetune is None or self.finetune.method == "full":
            return super().makes
        return self.model.model_copy(update={"planned_lora": self.model.planned_lora or self.finetune.lora})

    @property
    def model_folders(self) -> tuple[str, ...]:
        """The best model where there are evaluations to say which that is, else the last."""
        evaluates = self.data is not None and (self.data.eval_files or self.data.eval_fraction)
        return ("best", "last") if evaluates else ("last",)

    @property
    def steps(self) -> int | None:
        """Those of the optimizer; how many an epoch has, only the examples tell."""
        return self.finetune.steps if self.finetune is not None else None

    @property
    def host(self) -> Literal["pinned", "shared", "disk"]:
        """Where weights wait: `resources.host`, or `shared` where the base is and nothing else was asked for."""
        shares = self.finetune is not None and self.finetune.shares_base and self.resources.host == "pinned"
        return "shared" if shares else self.resources.host


def _section(given: Mapping[str, object], name: str) -> Mapping[str, object]:
    section = given.get(name)
    return cast("dict[str, object]", section) if isinstance(section, dict) else {}

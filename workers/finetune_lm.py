"""Fine-tune a causal language model, a LoRA adapter beside it or all of it, streamed within the job's budget.

One flat program: read it from `main` down. `output/last` is where training ended and `output/best` where the evaluation
loss was smallest: PEFT adapter folders, or Hugging Face models with `method: full`. A job that is started again goes on
from its last checkpoint with the very bits it would have had.
"""

from __future__ import annotations

import math
import shutil
import time
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superpipe_cluster.adapters import load_adapter, save_adapter
from superpipe_cluster.errors import BadInput
from superpipe_cluster.finetuning import Curves, Sequences, read_examples
from superpipe_cluster.language_models import (
    build_model,
    build_to_stream,
    check_length,
    load_config,
    load_tokenizer,
)
from superpipe_cluster.outputs import require_writable
from superpipe_cluster.pretrained import adapter_of, build_adapted
from superpipe_cluster.spec import ExamplesSection, FinetuneJob, FinetuneSection
from superpipe_cluster.training_state import (
    load_training,
    load_weights,
    make_optimizer,
    make_schedule,
    save_model,
    save_training,
    training_probe,
    unique_weights,
    weights_file,
)

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.language_models import Tokenizer
    from superpipe_cluster.planning import Probe

Batch = dict[str, torch.Tensor]


def main(job: Job) -> None:
    """Set up, resume, train, evaluate, save."""
    asked = job.spec
    assert isinstance(asked, FinetuneJob)  # the job file was checked: its sections are there
    assert asked.model is not None
    assert asked.data is not None
    assert asked.finetune is not None
    settings = asked.finetune
    require_writable(job.output)
    tokenizer = load_tokenizer(asked.model)
    config = load_config(asked.model, tokenizer)
    check_length(config, settings.sequence_length, "finetune.sequence_length")
    training, held_out = read_data(asked.data, settings, tokenizer)
    per_epoch = math.ceil(len(training) / (settings.batch_size * settings.accumulate))
    steps = settings.steps or settings.epochs * per_epoch
    job.log(
        f"{training.examples:,} examples of {training.tokens:,} tokens in {len(training):,} sequences, "
        f"{held_out.examples if held_out else 0:,} held out; {steps} steps, {per_epoch} an epoch"
    )

    checkpoint = job.latest_checkpoint()
    model, weights = build(asked, config, checkpoint)
    check_packing(asked.data, model)
    if settings.method == "lora" and adapter_of(asked.model) is not None:
        job.log(f"trains the adapter {asked.model.source} further")
    with (
        Curves(settings.report_to, job.output, name=job.name, run=f"{job.name}-{job.id}") as curves,
        job.stream(model, weights=weights) as streamer,
    ):
        where = "on_host" if settings.optimizer_on == "host" else "on_device"
        optimizer = make_optimizer(
            settings, partial(streamer.optimizer, where=where, master_weights=master_weights(asked))
        )
        schedule = make_schedule(settings, optimizer, steps)
        torch.manual_seed(settings.seed)
        step, best, stale = 0, math.inf, 0
        if checkpoint is not None:
            counters = load_training(checkpoint, optimizer, schedule)
            step, best, stale = counters["step"], counters["best"], counters["stale"]
            job.log(f"resumed at step {step}, attempt {job.attempt}")
        stats = streamer.stats()
        job.log(
            f"{stats.units} units, {stats.k} on the device at once; {stats.model_bytes / 2**20:.0f} MiB of weights, "
            f"{stats.shared_bytes / 2**20:.0f} MiB of them shared"
        )

        def save(folder: Path) -> None:
            tensors = save_adapter(model) if settings.method == "lora" else unique_weights(model)
            save_training(folder, tensors, optimizer, schedule, step=step, best=best, stale=stale)

        def is_over() -> bool:
            return step >= steps or (settings.patience is not None and stale >= settings.patience)

        saved, since, fresh = step, time.monotonic(), 0
        while not is_over() and not job.should_stop:
            batches = [training.batch(chosen) for chosen in chosen_at(len(training), settings, step)]
            tokens = sum(map(trained_in, batches))
            loss = 0.0
            for batch in batches:
                # Each token counts the same, however many there are in its batch.
                part = loss_of(model, batch, streamer.device) * (trained_in(batch) / tokens)
                part.backward()
                loss += part.item()
            numbers = {"loss": loss, "lr": optimizer.param_groups[0]["lr"], "epoch": (step + 1) / per_epoch}
            if settings.grad_clip is not None:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
                numbers["grad_norm"] = norm.item()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            fresh += 1

            if held_out and (step % settings.eval_every == 0 or step == steps):
                found = evaluate(model, held_out, settings.batch_size, streamer.device)
                numbers["eval_loss"] = found
                job.log(f"step {step}/{steps}  evaluation loss {found:.4f}")
                best, stale = (found, 0) if found < best else (best, stale + 1)
                if stale == 0:
                    write_model(job.output / "best", model, tokenizer)
            job.progress(step=step, steps=steps, **numbers)
            curves.add(step, **numbers)
            if step % settings.log_every == 0 or is_over():
                pace = (time.monotonic() - since) / fresh
                job.log(f"step {step}/{steps}  loss {loss:.4f}  {pace:.3f} s/step")
                since, fresh = time.monotonic(), 0
            if step % settings.checkpoint_every == 0:
                job.save(step, save)
                saved = step
        if step > saved:
            job.save(step, save)

        if is_over():
            write_model(job.output / "last", model, tokenizer)
            if step < steps:
                job.log(f"stopped early: {stale} evaluations in a row above {best:.4f}")
            job.log(f"written to {job.output}: last{', best' if held_out else ''}")


def probe(job: FinetuneJob) -> Probe:
    """One micro-batch of this job's training at its longest, for the plan made before it runs."""
    assert job.model is not None
    assert job.data is not None
    assert job.finetune is not None
    settings = job.finetune
    config = load_config(job.model, load_tokenizer(job.model))
    if settings.method == "lora":
        model, _ = build_adapted(job.model, config, settings.lora, settings.seed, weights=False)
    else:
        model = build_model(job.model, config, weights=False)
    model.train()
    shape = (settings.batch_size, settings.sequence_length)
    ids = torch.zeros(shape, dtype=torch.long)
    positions = torch.arange(settings.sequence_length).repeat(settings.batch_size, 1)
    apart = {"position_ids": positions} if job.data.packing else {"attention_mask": torch.ones_like(ids)}
    batch = {"input_ids": ids, "labels": torch.zeros_like(ids), **apart}

    def step() -> None:
        loss_of(model, batch, torch.device("cpu")).backward()

    return training_probe(model, step, settings, master_weights=master_weights(job))


# ---- data ---------------------------------------------------------------------------------------------


def read_data(
    data: ExamplesSection, settings: FinetuneSection, tokenizer: Tokenizer
) -> tuple[Sequences, Sequences | None]:
    """What to train on, and what is held out to evaluate."""
    packed_to = settings.sequence_length if data.packing else None

    def read(patterns: tuple[str, ...], field: str) -> Sequences:
        found = Sequences(tokenizer.eos_token_id, packed_to)
        found.add(read_examples(data, patterns, tokenizer, settings.sequence_length))
        if not len(found):
            raise BadInput(
                f"{field}: no example in {', '.join(patterns)}", hint="name files with something to train on"
            )
        return found

    training = read(data.files, "data.files")
    if data.eval_files:
        return training, read(data.eval_files, "data.eval_files")
    return training, training.hold_out(data.eval_fraction, settings.seed) if data.eval_fraction else None


def chosen_at(count: int, settings: FinetuneSection, step: int) -> list[list[int]]:
    """The sequences of a step, batch by batch: each epoch in an order that follows from the seed and its number."""
    together = settings.batch_size * settings.accumulate
    epoch, place = divmod(step, math.ceil(count / together))
    generator = torch.Generator().manual_seed((settings.seed << 32) + epoch)
    order = torch.randperm(count, generator=generator)[place * together : (place + 1) * together]
    return [chosen.tolist() for chosen in order.split(settings.batch_size)]


def trained_in(batch: Batch) -> int:
    """Tokens of a batch that the loss is about."""
    return int((batch["labels"] != -100).sum())


def check_packing(data: ExamplesSection, model: Any) -> None:
    """Refuse to pack for a model that cannot keep the examples of a sequence apart."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if data.packing and "position_ids" not in signature(base.forward).parameters:
        raise BadInput(
            f"data.packing: {type(base).__name__} takes no positions, so packed examples would see each other",
            hint="write data: {packing: false}",
        )


# ---- model --------------------------------------------------------------------------------------------


def build(asked: FinetuneJob, config: Any, checkpoint: Path | None) -> tuple[Any, Any]:
    """The model to train, and what to stream its weights from; what an earlier attempt has trained is in it."""
    assert asked.model is not None
    assert asked.finetune is not None
    settings = asked.finetune
    if settings.method == "full":
        model, weights = build_to_stream(asked.model, config, weights_file(checkpoint))
    else:
        model, weights = build_adapted(asked.model, config, settings.lora, settings.seed)
        if checkpoint is not None:
            load_adapter(model, load_weights(checkpoint))
    model.train()
    return model, weights


def loss_of(model: Any, batch: Batch, device: torch.device) -> torch.Tensor:
    """Mean loss of the tokens that have a label."""
    return model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False).loss


@torch.no_grad()
def evaluate(model: Any, held_out: Sequences, batch_size: int, device: torch.device) -> float:
    """Mean loss of a token of what is held out."""
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(held_out), batch_size):
        batch = held_out.batch(range(start, min(start + batch_size, len(held_out))))
        count = trained_in(batch)
        total += loss_of(model, batch, device).item() * count
        tokens += count
    model.train()
    return total / tokens


def master_weights(asked: FinetuneJob) -> torch.dtype | None:
    """The type in which the optimizer keeps copies of the weights, where theirs is too coarse for its steps."""
    assert asked.model is not None
    assert asked.finetune is not None
    coarse = asked.finetune.method == "full" and asked.model.dtype == "bfloat16"
    return torch.float32 if coarse and asked.finetune.master_weights else None


# ---- output -------------------------------------------------------------------------------------------


def write_model(folder: Path, model: Any, tokenizer: Tokenizer) -> None:
    """The model or its adapter as a folder that others load; it is replaced as a whole."""
    new = folder.with_name(f".{folder.name}")
    shutil.rmtree(new, ignore_errors=True)
    if hasattr(model, "peft_config"):
        model.save_pretrained(new)
    else:
        save_model(model, new)
    tokenizer.save(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.replace(folder)

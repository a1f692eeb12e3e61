"""Train a causal language model on text, streamed within the job's budget.

One flat program: read it from `main` down. It is run by path by the worker actor (`spcluster submit`), resumes from
the job's last checkpoint by itself, and then goes on with the very bits it would have had. Copy it and change it as you
like: `worker: ./mine.py` runs your copy in the same way.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors.torch import save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from superpipe_cluster.errors import BadInput
from superpipe_cluster.language_models import (
    build_model,
    build_to_stream,
    check_length,
    load_config,
    load_tokenizer,
    read_tokens,
)
from superpipe_cluster.planning import Probe
from superpipe_cluster.spec import TrainJob, TrainSection

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from superpipe_cluster.execution.job import Job

Made = TypeVar("Made")


def main(job: Job) -> None:
    """Set up, resume, train, save."""
    asked = job.spec
    assert isinstance(asked, TrainJob)  # the job file was checked: its sections are there
    assert asked.model is not None
    assert asked.data is not None
    assert asked.train is not None
    settings = asked.train
    tokenizer = load_tokenizer(asked.model)
    config = load_config(asked.model, tokenizer)
    check_length(config, settings.sequence_length, "train.sequence_length")
    tokens = read_tokens(asked.data, tokenizer)
    if len(tokens) <= settings.sequence_length:
        raise BadInput(
            f"data.files: {len(tokens)} tokens are too few for train.sequence_length {settings.sequence_length}",
            hint="give more text or shorter sequences",
        )
    job.log(f"{len(tokens):,} tokens of text")

    checkpoint = job.latest_checkpoint()
    saved = checkpoint / "model.safetensors" if checkpoint is not None else None
    model, weights = build_to_stream(asked.model, config, saved)
    model.train()

    with job.stream(model, weights=weights) as streamer:
        where = "on_host" if settings.optimizer_on == "host" else "on_device"
        optimizer = make_optimizer(settings, partial(streamer.optimizer, where=where))
        schedule = LambdaLR(optimizer, lambda step: rate_at(settings, step))
        torch.manual_seed(settings.seed)
        step = 0
        if checkpoint is not None:
            step = load_training(checkpoint, optimizer, schedule)
            job.log(f"resumed at step {step}, attempt {job.attempt}")
        stats = streamer.stats()
        job.log(
            f"{stats.units} units, {stats.k} on the device at once; {stats.model_bytes / 2**20:.0f} MiB of weights"
        )

        saved, since, fresh = step, time.monotonic(), 0
        while step < settings.steps and not job.should_stop:
            loss = 0.0
            for micro in range(settings.accumulate):
                batch = batch_at(tokens, settings, step * settings.accumulate + micro).to(streamer.device)
                part = model(input_ids=batch, labels=batch, use_cache=False).loss / settings.accumulate
                part.backward()
                loss += part.item()
            if settings.grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            fresh += 1

            job.progress(step=step, steps=settings.steps, loss=loss)
            if step % settings.log_every == 0 or step == settings.steps:
                pace = (time.monotonic() - since) / fresh
                job.log(f"step {step}/{settings.steps}  loss {loss:.4f}  {pace:.3f} s/step")
                since, fresh = time.monotonic(), 0
            if step % settings.checkpoint_every == 0:
                job.save(
                    step, lambda folder, step=step: save_training(folder, model, optimizer, schedule, step)
                )
                saved = step
        if step > saved:
            job.save(step, lambda folder: save_training(folder, model, optimizer, schedule, step))

    if step == settings.steps:
        write_model(job.output, model)
        tokenizer.save(job.output)
        job.log(f"model written to {job.output}")


def probe(job: TrainJob) -> Probe:
    """One micro-batch of this job's training, for the plan made before it runs."""
    assert job.model is not None
    assert job.train is not None
    settings = job.train
    config = load_config(job.model, load_tokenizer(job.model))
    model = build_model(job.model, config, weights=False)
    model.train()
    batch = torch.zeros(settings.batch_size, settings.sequence_length, dtype=torch.long)

    def step() -> None:
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip or 0.0)

    return Probe(
        model,
        step,
        lambda parameters: make_optimizer(settings, lambda kind, **o: kind(parameters, **o)),
        accumulate=settings.accumulate,
        before_update=clip if settings.grad_clip is not None else None,
    )


# ---- data ---------------------------------------------------------------------------------------------


def batch_at(tokens: torch.Tensor, settings: TrainSection, index: int) -> torch.Tensor:
    """Batch number `index`, `int64[batch, sequence]`: windows at places that follow from the seed and `index` alone."""
    generator = torch.Generator().manual_seed((settings.seed << 32) + index)
    starts = torch.randint(
        len(tokens) - settings.sequence_length, (settings.batch_size,), generator=generator
    )
    return torch.stack([tokens[start : start + settings.sequence_length] for start in starts.tolist()]).long()


# ---- optimization -------------------------------------------------------------------------------------


def make_optimizer(settings: TrainSection, make: Callable[..., Made]) -> Made:
    """The optimizer that the job asks for, made by `make(kind, **options)`."""
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return make(torch.optim.SGD, momentum=0.9, **options)
    return make(torch.optim.AdamW, **options)


def rate_at(settings: TrainSection, step: int) -> float:
    """Learning rate at `step`, as a share of the highest: linear warm-up, then constant, linear or cosine decay."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return max(0.0, 1.0 - done)
    if settings.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0


# ---- checkpoints --------------------------------------------------------------------------------------


def save_training(
    folder: Path, model: torch.nn.Module, optimizer: Optimizer, schedule: LambdaLR, step: int
) -> None:
    """Everything that the next step depends on."""
    weights, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights are written once
            seen.add(tensor.data_ptr())
            weights[name] = tensor.cpu()
    save_file(weights, folder / "model.safetensors")
    training = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(training, folder / "training.pt")


def load_training(folder: Path, optimizer: Optimizer, schedule: LambdaLR) -> int:
    """The rest of a checkpoint; returns its step."""
    training = torch.load(folder / "training.pt", weights_only=True)
    optimizer.load_state_dict(training["optimizer"])
    schedule.load_state_dict(training["schedule"])
    torch.set_rng_state(training["random"])
    if training["random_cuda"]:
        torch.cuda.set_rng_state_all(training["random_cuda"])
    return training["step"]


def write_model(folder: Path, model: PreTrainedModel) -> None:
    """The trained model as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)

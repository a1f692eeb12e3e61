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
from typing import TYPE_CHECKING

import torch
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
from superpipe_cluster.spec import TrainJob, TrainSection
from superpipe_cluster.training_state import (
    load_training,
    make_optimizer,
    save_model,
    save_training,
    training_probe,
    unique_weights,
    weights_file,
)

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.planning import Probe


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
    model, weights = build_to_stream(asked.model, config, weights_file(checkpoint))
    model.train()

    with job.stream(model, weights=weights) as streamer:
        where = "on_host" if settings.optimizer_on == "host" else "on_device"
        optimizer = make_optimizer(settings, partial(streamer.optimizer, where=where))
        schedule = LambdaLR(optimizer, lambda step: rate_at(settings, step))
        torch.manual_seed(settings.seed)
        step = 0
        if checkpoint is not None:
            step = load_training(checkpoint, optimizer, schedule)["step"]
            job.log(f"resumed at step {step}, attempt {job.attempt}")
        stats = streamer.stats()
        job.log(
            f"{stats.units} units, {stats.k} on the device at once; {stats.model_bytes / 2**20:.0f} MiB of weights"
        )

        def save(folder: Path) -> None:
            save_training(folder, unique_weights(model), optimizer, schedule, step=step)

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
                job.save(step, save)
                saved = step
        if step > saved:
            job.save(step, save)

    if step == settings.steps:
        save_model(model, job.output)
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

    return training_probe(model, step, settings)


# ---- data ---------------------------------------------------------------------------------------------


def batch_at(tokens: torch.Tensor, settings: TrainSection, index: int) -> torch.Tensor:
    """Batch number `index`, `int64[batch, sequence]`: windows at places that follow from the seed and `index` alone."""
    generator = torch.Generator().manual_seed((settings.seed << 32) + index)
    starts = torch.randint(
        len(tokens) - settings.sequence_length, (settings.batch_size,), generator=generator
    )
    return torch.stack([tokens[start : start + settings.sequence_length] for start in starts.tolist()]).long()


# ---- optimization -------------------------------------------------------------------------------------


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

"""Let a causal language model continue prompts, streamed within the job's budget: prompts in, JSON lines out.

One flat program: read it from `main` down. `output/completions.jsonl` has one line per prompt, in the order of the
prompts. A job that is started again goes on behind the last whole line, with the bits it would have had.
"""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superpipe_cluster.language_models import (
    build_model,
    build_to_stream,
    check_length,
    load_config,
    load_tokenizer,
    read_prompts,
)
from superpipe_cluster.planning import Probe
from superpipe_cluster.spec import GenerateJob, GenerateSection

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.language_models import Tokenizer


def main(job: Job) -> None:
    """Set up, find where to go on, generate batch by batch."""
    asked = job.spec
    assert isinstance(asked, GenerateJob)
    assert asked.model is not None
    assert asked.generate is not None
    settings = asked.generate
    tokenizer = load_tokenizer(asked.model)
    config = load_config(asked.model, tokenizer)
    prompts = read_prompts(settings.prompts)
    encoded = [tokenizer.encode(prompt) or [tokenizer.eos_token_id] for prompt in prompts]
    check_length(config, max(map(len, encoded)) + settings.max_new_tokens, "generate.max_new_tokens")
    model, weights = build_to_stream(asked.model, config)
    model.eval().requires_grad_(False)  # weights that never change can be shared with other jobs

    path = job.output / "completions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = keep_whole_batches(path, settings.batch_size)
    with job.stream(model, weights=weights) as streamer, path.open("a", encoding="utf-8") as out:
        stats = streamer.stats()
        job.log(
            f"{len(prompts)} prompts, {done} done; {stats.units} units, {stats.k} of them on the device at once"
        )
        job.progress(step=done, steps=len(prompts))
        while done < len(prompts) and not job.should_stop:
            batch = encoded[done : done + settings.batch_size]
            torch.manual_seed((settings.seed << 32) + done)  # a batch's draws depend on its place alone
            completions = generate(model, batch, settings, tokenizer, streamer.device)
            for number, completion in enumerate(completions, start=done):
                out.write(
                    json.dumps({"index": number, "prompt": prompts[number], "completion": completion}) + "\n"
                )
            out.flush()
            done += len(batch)
            job.progress(step=done, steps=len(prompts))
            job.log(f"{done}/{len(prompts)} prompts")
    if done == len(prompts):
        job.log(f"completions written to {path}")


def generate(
    model: Any,  # a PreTrainedModel that can generate
    batch: list[list[int]],
    settings: GenerateSection,
    tokenizer: Tokenizer,
    device: torch.device,
) -> list[str]:
    """Continue each prompt of a batch; shorter prompts are padded on the left."""
    width = max(map(len, batch))
    padded = [[tokenizer.eos_token_id] * (width - len(prompt)) + prompt for prompt in batch]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in batch]
    sampling = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_k": settings.top_k or 0}
    with torch.no_grad():
        result = model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    return [tokenizer.decode(until(row, tokenizer.eos_token_id)) for row in result[:, width:].tolist()]


def until(tokens: list[int], end: int) -> list[int]:
    """The tokens before the first `end`."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


def keep_whole_batches(path: Path, batch_size: int) -> int:
    """Cut the output of an earlier attempt back to whole batches of whole lines; returns the prompts that are done."""
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    # A batch that was cut is generated again, and so is a short last one: its draws are the same.
    kept = whole[: len(whole) // batch_size * batch_size]
    path.write_text("".join(kept), encoding="utf-8")
    return len(kept)


def probe(job: GenerateJob) -> Probe:
    """The widest forward of this job: the longest prompt and all new tokens, with their cache."""
    assert job.model is not None
    assert job.generate is not None
    settings = job.generate
    tokenizer = load_tokenizer(job.model)
    config = load_config(job.model, tokenizer)
    model = build_model(job.model, config, weights=False)
    model.eval()
    longest = max(len(tokenizer.encode(prompt)) for prompt in read_prompts(settings.prompts))
    batch = torch.zeros(settings.batch_size, max(1, longest) + settings.max_new_tokens, dtype=torch.long)

    # Generation computes the scores of the last position only, where the model can do that.
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}

    def step() -> None:
        with torch.no_grad():
            model(input_ids=batch, use_cache=True, **last_only)

    return Probe(model, step)

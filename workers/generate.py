"""Let a causal language model continue prompts, streamed within the job's budget: prompts in, JSON lines out.

One flat program: read it from `main` down. Every pass over the streamed weights brings as many prompts forward by a
token as their keys and values have room for, and whoever is done makes room for the next. Each prompt has the tokens
that it would have alone: there is no padding, and its random numbers are its own. `output/completions.jsonl` has one
line per prompt, in their order; a job that is started again goes on behind the last whole line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from superpipe_cluster.errors import BadInput, DeviceOutOfMemory
from superpipe_cluster.language_models import (
    build_frozen,
    check_length,
    load_config,
    load_tokenizer,
    read_prompts,
)
from superpipe_cluster.outputs import require_writable
from superpipe_cluster.planning import Probe
from superpipe_cluster.serving.asking import News, Request, Said, Sampling
from superpipe_cluster.serving.engine import Engine, Limits
from superpipe_cluster.serving.packed import Packed, Piece
from superpipe_cluster.spec import ByteRange, GenerateJob, GenerateSection

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.language_models import Tokenizer

#: Prompts in one pass, at most, where `batch_size` is `auto`: the rest of the budget is better used by weights.
MOST = 64


def main(job: Job) -> None:
    """Set up, find where to go on, generate, write in order."""
    asked = job.spec
    assert isinstance(asked, GenerateJob)
    assert asked.model is not None
    assert asked.generate is not None
    settings = asked.generate
    tokenizer = load_tokenizer(asked.model)
    config = load_config(asked.model, tokenizer)
    prompts = read_prompts(settings.prompts)
    encoded = [tokenizer.encode(prompt) or [tokenizer.eos_token_id] for prompt in prompts]
    check_length(config, longest(encoded, settings), "generate.max_new_tokens")
    model, weights = build_frozen(asked.model, config)

    path = job.output / "completions.jsonl"
    require_writable(path.parent, path.name)
    done = keep_whole_lines(path)
    with job.stream(model, weights=weights) as streamer, path.open("a", encoding="utf-8") as out:
        stats = streamer.stats()
        job.log(f"{len(prompts)} prompts, {done} done; {stats.units} units, {stats.k} on the device at once")
        job.progress(step=done, steps=len(prompts))

        def room_bytes(needed_bytes: int) -> int:
            """Bytes for keys and values: what is guaranteed beside what a pass needs. All else is for weights."""
            budget = asked.resources.gpu_memory
            held = (
                min(job.budget_bytes, budget.min_bytes) if isinstance(budget, ByteRange) else job.budget_bytes
            )
            return held - needed_bytes

        if packed := packable(model, streamer.device):
            engine = Engine(
                packed,
                streamer.device,
                tokenizer.decode,
                ends_of(model, tokenizer),
                limits_of(encoded, settings),
            )
            engine.rehearse()
            streamer.rehearsed()
            needed_bytes = streamer.stats().floor_bytes or 0
            texts = together(engine, encoded, settings, done, lambda: room_bytes(needed_bytes))
        else:
            job.log("this model cannot take many prompts in one pass: one after another")
            texts = one_by_one(model, encoded, settings, tokenizer, streamer.device, done)
        for finished in texts:
            for completion in finished:
                line = {"index": done, "prompt": prompts[done], "completion": completion}
                out.write(json.dumps(line) + "\n")
                done += 1
            if finished:
                out.flush()
                job.log(f"{done}/{len(prompts)} prompts")
            job.progress(step=done, steps=len(prompts))
            if job.should_stop:
                break
    if done == len(prompts):
        job.log(f"completions written to {path}")


def together(
    engine: Engine,
    encoded: list[list[int]],
    settings: GenerateSection,
    first: int,
    room_bytes: Callable[[], int],
) -> Iterator[list[str]]:
    """After each pass, the completions that are next in line: of prompt `first` and all later ones, each once."""
    said: dict[int, str] = {}
    ready: dict[int, str] = {}

    def hear(index: int, news: News) -> None:
        if not isinstance(news, Said):
            raise DeviceOutOfMemory(getattr(news, "message", ""), hint="give the job more gpu_memory")
        said[index] = said.get(index, "") + news.text
        if news.finish is not None:
            ready[index] = said.pop(index)

    for index in range(first, len(encoded)):
        sampling = Sampling(
            settings.temperature, settings.top_p, seed_of(settings, index), top_k=settings.top_k or 0
        )
        engine.submit(Request(encoded[index], partial(hear, index), settings.max_new_tokens, sampling))
    while first < len(encoded):
        engine.hold(room_bytes())
        engine.run()
        finished: list[str] = []
        while first in ready:
            finished.append(ready.pop(first))
            first += 1
        yield finished


def one_by_one(
    model: Any,  # a PreTrainedModel that can generate
    encoded: list[list[int]],
    settings: GenerateSection,
    tokenizer: Tokenizer,
    device: torch.device,
    first: int,
) -> Iterator[list[str]]:
    """The completions of prompt `first` and all later ones, by transformers' own `generate`."""
    options: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        options = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
        options["top_k"] = settings.top_k or 0
    for index in range(first, len(encoded)):
        torch.manual_seed(seed_of(settings, index))
        prompt = torch.tensor([encoded[index]], device=device)
        with torch.no_grad():
            made = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=settings.max_new_tokens,
                pad_token_id=tokenizer.eos_token_id,
                eos_token_id=list(ends_of(model, tokenizer)),
                **options,
            )[0, prompt.shape[1] :].tolist()
        ends = ends_of(model, tokenizer)
        until = next((place for place, token in enumerate(made) if token in ends), len(made))
        yield [tokenizer.decode(made[:until])]


def packable(model: Any, device: torch.device) -> Packed | None:
    """The model as one that takes many sequences in one pass; None if it cannot, which shows in the first at last."""
    try:
        packed = Packed(model)
        packed.run([Piece([0], 0, packed.new_cache())], device)
    except BadInput:
        return None
    return packed


def seed_of(settings: GenerateSection, index: int) -> int:
    """The seed of a prompt's random numbers: its own, whoever else is in a pass."""
    return ((settings.seed << 32) + index) % 2**63


def ends_of(model: Any, tokenizer: Tokenizer) -> set[int]:
    """The tokens that end a completion: the model may have several of its own."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = named if isinstance(named, list) else [] if named is None else [named]
    return {tokenizer.eos_token_id, *own}


def longest(encoded: list[list[int]], settings: GenerateSection) -> int:
    """Tokens of the longest prompt and its completion."""
    return max(map(len, encoded)) + settings.max_new_tokens


def limits_of(encoded: list[list[int]], settings: GenerateSection) -> Limits:
    """How much is generated at once."""
    most = MOST if settings.batch_size == "auto" else settings.batch_size
    return Limits(longest(encoded, settings), min(most, len(encoded)), queue=len(encoded))


def keep_whole_lines(path: Path) -> int:
    """Cut the output of an earlier attempt back to whole lines; returns the prompts that are done."""
    whole = path.read_bytes()
    whole = whole[: whole.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    return whole.count(b"\n")


def probe(job: GenerateJob) -> Probe:
    """The largest pass of this job: a sequence of full length beside one token for each of the others."""
    assert job.model is not None
    assert job.generate is not None
    settings = job.generate
    tokenizer = load_tokenizer(job.model)
    config = load_config(job.model, tokenizer)
    model, _ = build_frozen(job.model, config, weights=False)
    encoded = [tokenizer.encode(prompt) or [0] for prompt in read_prompts(settings.prompts)]
    packed = packable(model, torch.device("cpu"))
    if packed is not None:
        limits = limits_of(encoded, settings)
        engine = Engine(packed, torch.device("cpu"), tokenizer.decode, (), limits)
        # A pass brings each by a token; those that end early, or have no room beside the others, are not foreseen.
        return Probe(model, engine.rehearse, steps=limits.max_requests / settings.max_new_tokens)
    batch = torch.zeros(1, longest(encoded, settings), dtype=torch.long)

    def step() -> None:
        with torch.no_grad():
            model(input_ids=batch, use_cache=True)

    return Probe(model, step, steps=1 / settings.max_new_tokens)

"""Serve a language model online, streamed within the job's budget: OpenAI's routes on the cluster's address.

One flat program: read it from `main` down. Every pass over the streamed weights brings all requests under way forward
by a token, so eight of them take about as long as one. The job runs until it is cancelled; what is being answered then
is answered to its end, if that is soon. A job that is started again has nothing to resume: clients are told to come
again (503, Retry-After), and do so by themselves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from superpipe_cluster.language_models import check_length, load_config, load_tokenizer
from superpipe_cluster.planning import Probe
from superpipe_cluster.pretrained import AutoClass, build_frozen
from superpipe_cluster.serving.app import OpenAIApp
from superpipe_cluster.serving.engine import Engine, Limits
from superpipe_cluster.serving.house import open_house
from superpipe_cluster.serving.packed import Packed
from superpipe_cluster.spec import ByteRange, ServeJob, ServeSection

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.language_models import Tokenizer
    from superpipe_cluster.streaming import Streamer

#: What transformers builds for each task.
CLASSES: dict[str, AutoClass] = {"generate": "AutoModelForCausalLM", "embed": "AutoModel"}
#: Tokens of the longest request, unless the job file or the model says less.
LONGEST = 4096
#: Seconds between two step boundaries while nobody asks: as often the cluster can resize or stop an idle model.
TICK_S = 0.1
#: Seconds in which those under way may finish when the job ends; after ten, it is killed.
DRAIN_S = 7.0


def main(job: Job) -> None:
    """Set up, rehearse, answer until the end, finish what is under way."""
    asked = job.spec
    assert isinstance(asked, ServeJob)
    assert asked.model is not None
    settings = asked.serve
    tokenizer = load_tokenizer(asked.model)
    config = load_config(asked.model, tokenizer)
    model, weights = build_frozen(asked.model, config, CLASSES[settings.task])

    with job.stream(model, weights=weights) as streamer:
        packed = Packed(model, exact=settings.exact)
        limits = limits_of(settings, config, packed.first_place)
        engine = Engine(packed, streamer.device, tokenizer.decode, ends_of(model, tokenizer), limits)
        engine.rehearse()
        streamer.rehearsed()
        stats = streamer.stats()
        needed_bytes = stats.floor_bytes or 0
        job.log(
            f"{stats.units} units, {stats.k} of them on the device at once; {limits.max_requests} requests at a time, "
            f"{limits.context} tokens each"
        )
        body = Body(job, streamer)
        app = OpenAIApp(engine, tokenizer, settings.max_tokens).build()
        with open_house(job.door, app):
            job.log(f"serving as {job.name}")
            job.progress(requests=0, tokens=0, active=0, waiting=0)
            idle_since_s, at_work = time.monotonic(), False
            while not job.should_stop:
                engine.hold(for_caches(job) - needed_bytes)
                if engine.waiting or engine.active:
                    body.grow()
                if engine.run():
                    idle_since_s, at_work = time.monotonic(), True
                    tell(job, engine)
                    continue
                if at_work:
                    tell(job, engine)
                    job.flush()
                    at_work = False
                idle_s = time.monotonic() - idle_since_s
                if settings.end_after is not None and idle_s >= settings.end_after:
                    job.log(f"nobody has asked for {idle_s:.0f} s: ending")
                    break
                if settings.idle_after is not None and idle_s >= settings.idle_after:
                    body.shrink()
                engine.wait(TICK_S)
            finish(engine)
        tell(job, engine)
        job.log(f"{engine.answered} requests answered with {engine.made} tokens in {engine.passes} passes")


class Body:
    """How much of the model is on the device: what the budget holds or, while nobody asks, one unit.

    Of its budget it then has use for no more than is guaranteed; the rest is for others.
    """

    def __init__(self, job: Job, streamer: Streamer) -> None:
        self._job = job
        self._streamer = streamer
        self._small_in_bytes: int | None = None  # the budget in which it was made small

    def shrink(self) -> None:
        """Hold one unit. To be asked again while it lasts: a new budget undoes it."""
        if self._small_in_bytes != self._job.budget_bytes:
            self._streamer.resize(self._job.budget_bytes, k=1)
            self._small_in_bytes = self._job.budget_bytes
            self._job.flush()
            self._job.wants(0)

    def grow(self) -> None:
        """Hold what the budget holds; it comes with the next pass, and more as the cluster has it."""
        if self._small_in_bytes is not None:
            self._job.wants(None)
            self._streamer.resize(self._job.budget_bytes, k=self._job.spec.streaming.k)
            self._small_in_bytes = None


def for_caches(job: Job) -> int:
    """Bytes in which caches must fit: those that are guaranteed. What comes on top is for weights, which can leave."""
    asked = job.spec.resources.gpu_memory
    return min(job.budget_bytes, asked.min_bytes) if isinstance(asked, ByteRange) else job.budget_bytes


def finish(engine: Engine) -> None:
    """Answer those under way to their end, as far as there is time."""
    engine.close()
    until_s = time.monotonic() + DRAIN_S
    while time.monotonic() < until_s and engine.run():
        pass
    engine.abandon()


def tell(job: Job, engine: Engine) -> None:
    """Numbers for `spcluster show`; they are sent a few times a second."""
    job.progress(requests=engine.answered, tokens=engine.made, active=engine.active, waiting=engine.waiting)


def ends_of(model: Any, tokenizer: Tokenizer) -> set[int]:
    """The tokens that end an answer: the model may have several of its own."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = named if isinstance(named, list) else [] if named is None else [named]
    return {tokenizer.eos_token_id, *own}


def limits_of(settings: ServeSection, config: Any, first_place: int) -> Limits:
    """How much is answered at once; the model must have positions for it, from `first_place` on."""
    if settings.context is not None:
        check_length(config, first_place + settings.context, "serve.context")
    positions = getattr(config, "max_position_embeddings", None)
    longest = LONGEST if positions is None else min(positions - first_place, LONGEST)
    return Limits(settings.context or longest, settings.max_requests, settings.queue)


def probe(job: ServeJob) -> Probe:
    """The largest pass: a request of full length beside one token for each of the others, with their caches."""
    assert job.model is not None
    tokenizer = load_tokenizer(job.model)
    config = load_config(job.model, tokenizer)
    model, _ = build_frozen(job.model, config, CLASSES[job.serve.task], weights=False)
    packed = Packed(model, exact=job.serve.exact)
    limits = limits_of(job.serve, config, packed.first_place)
    engine = Engine(packed, torch.device("cpu"), tokenizer.decode, (), limits)
    return Probe(model, engine.rehearse)

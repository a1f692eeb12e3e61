"""The generate worker: each prompt has the tokens that it has alone, however many go together, also after `kill -9`."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from plain_runs.generation import greedy
from superpipe_cluster import bundled
from superpipe_cluster.errors import JobFileError
from superpipe_cluster.planning.model_plan import recorded
from superpipe_cluster.spec import parse
from worker_runs import Run

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "max_position_embeddings": 128, "vocab_size": 257, "bos_token_id": 256,
    "eos_token_id": 256,
}  # fmt: skip
PROMPTS = [f"{'a longer beginning of ' * (n % 3)}f{n}(" for n in range(11)]
BUDGET = 900_000


def job(model: dict[str, Any] = LLAMA, **generate: Any) -> dict[str, Any]:
    settings = {"prompts": PROMPTS, "max_new_tokens": 16, **generate}
    return {"kind": "generate", "name": "g", "model": {"config": model}, "generate": settings}


def streamed(run: Run) -> None:
    assert run.progress["loads"] > run.progress["units"]
    assert run.progress["peak_bytes"] <= BUDGET
    assert run.progress["k"] < run.progress["units"]


def completions(run: Run) -> list[str]:
    lines = [json.loads(line) for line in (run.output / "completions.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(len(PROMPTS)))
    assert [line["prompt"] for line in lines] == PROMPTS
    return [line["completion"] for line in lines]


def test_greedy_completions_are_those_of_generate_alone(tmp_path: Path) -> None:
    run = Run(tmp_path / "job", job(), BUDGET)
    run.here()
    streamed(run)
    assert run.progress["step"] == run.progress["steps"] == parse(job()).steps
    expected = greedy(LLAMA, PROMPTS, 16)
    assert completions(run) == expected
    assert len(set(expected)) > 1


def test_a_forecast_is_of_prompts_as_they_are_counted() -> None:
    asked = parse(job(batch_size=4))
    trace = recorded(lambda: runpy.run_path(str(bundled.worker_path("generate")))["probe"](asked))
    assert trace.counted_as == 4 / 16, "a pass brings four prompts by a token, and each has 16"


def test_a_killed_run_draws_the_same_tokens_whatever_goes_together(tmp_path: Path) -> None:
    drawn = {"temperature": 0.9, "top_p": 0.95, "top_k": 100, "seed": 5}
    alone = Run(tmp_path / "alone", job(batch_size=1, **drawn), 64 << 20)
    alone.here()
    cut = Run(tmp_path / "cut", job(batch_size=2, **drawn), BUDGET)
    cut.kill_at(cut.start(), 4)
    written = (cut.output / "completions.jsonl").read_bytes()
    (cut.output / "completions.jsonl").write_bytes(written[:-9])  # as if the last line had been cut
    cut.here()
    streamed(cut)
    begun = [int(done) for done in re.findall(r"11 prompts, (\d+) done", cut.log())]
    assert begun[0] == 0
    assert begun[1] >= 3
    assert (cut.output / "completions.jsonl").read_bytes() == (
        alone.output / "completions.jsonl"
    ).read_bytes()
    assert len(set(completions(cut))) == len(PROMPTS)


@pytest.mark.parametrize("kind", ["mamba", "diffllama"])
def test_a_model_that_cannot_be_packed_goes_on_alone(tmp_path: Path, kind: str) -> None:
    """One is known by its class, the other by its first pass."""
    model = {**LLAMA, "num_hidden_layers": 4} if kind == "diffllama" else {"hidden_size": 32, "state_size": 8}
    named = {"model_type": kind, "num_hidden_layers": 4, "vocab_size": 257, "eos_token_id": 256}
    run = Run(tmp_path / "job", job({**model, **named}, max_new_tokens=3), 64 << 20)
    run.here()
    assert "one after another" in run.log()
    assert len(completions(run)) == len(PROMPTS)


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 0), ("batch_size", "many"), ("top_p", 0), ("top_p", 1.5)]
)
def test_what_no_generation_can_have(field: str, value: Any) -> None:
    with pytest.raises(JobFileError) as caught:
        parse(job(**{field: value}))
    assert f"generate.{field}" in caught.value.problems[0]

"""The bundled workers, run as the actor runs them: streamed equals whole, and a killed run ends with the same bits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from superpipe_cluster.errors import BadInput, BudgetTooSmall
from worker_runs import Run

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "max_position_embeddings": 128, "attention_dropout": 0.1,
}  # fmt: skip
TRAIN = {
    "kind": "train", "name": "t", "model": {"config": LLAMA}, "data": {"files": ["python-stdlib:json/*.py"]},
    "train": {
        "steps": 12, "batch_size": 2, "sequence_length": 32, "accumulate": 2, "grad_clip": 1.0, "lr": 1e-3,
        "schedule": "cosine", "warmup_steps": 2, "checkpoint_every": 4, "log_every": 4,
    },
}  # fmt: skip
WHOLE, HALF, SMALL = 64 << 20, 7 << 19, 800_000


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole") / "job", TRAIN, WHOLE)
    run.here()
    # safetensors takes pointers, and what they were used for is not known: each of two checkpoints on the way counts.
    assert run.progress["loads"] == 3 * run.progress["units"], "with room for all, nothing else loads twice"
    return run


def test_a_streamed_killed_and_stopped_training_ends_with_the_same_bits(
    undisturbed: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "job", {**TRAIN, "resources": {"host": "disk"}}, HALF)
    run.kill_at(run.start(), 5)
    run.here(stop_at=9)
    run.here()
    assert "resumed at step 4, attempt 2" in run.log()
    assert "resumed at step 9, attempt 3" in run.log()
    name = "model.safetensors"
    assert (run.output / name).read_bytes() == (undisturbed.output / name).read_bytes()
    assert run.progress["loads"] > run.progress["units"]
    assert 0 < run.progress["peak_bytes"] <= HALF
    assert run.progress["peak_units"] <= run.progress["k"]


def test_generation_goes_on_where_it_was_cut(undisturbed: Run, tmp_path: Path) -> None:
    job = {
        "kind": "generate", "name": "g", "model": {"source": str(undisturbed.output)},
        "generate": {
            "prompts": [f"def f{n}(" for n in range(7)], "max_new_tokens": 12, "batch_size": 2, "temperature": 0.9,
        },
    }  # fmt: skip
    whole = Run(tmp_path / "whole", job, WHOLE)
    whole.here()
    expected = (whole.output / "completions.jsonl").read_bytes()
    assert [json.loads(line)["index"] for line in expected.splitlines()] == list(range(7))

    cut = Run(tmp_path / "cut", {**job, "resources": {"host": "shared"}}, SMALL)
    cut.output.mkdir()
    (cut.output / "completions.jsonl").write_bytes(expected[: len(expected) // 2])
    cut.here()
    assert (cut.output / "completions.jsonl").read_bytes() == expected
    assert cut.progress["loads"] > cut.progress["units"]
    assert cut.progress["peak_bytes"] <= SMALL


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"config": {"model_type": "llamma"}}}, "model.config: cannot load llamma"),
        ({"model": {"config": {**LLAMA, "vocab_size": 99}}}, "vocab_size: 99 is less than the 257"),
        ({"model": {"config": LLAMA, "tokenizer": "/nowhere"}}, "model.tokenizer: cannot load /nowhere"),
        ({"train": {**TRAIN["train"], "sequence_length": 256}}, "256 tokens are more than the 128 positions"),
        (
            {
                "data": {"files": ["python-stdlib:__phello__/__init__.py"]},
                "train": {**TRAIN["train"], "sequence_length": 128},
            },
            "are too few for train.sequence_length",
        ),
    ],
    ids=["model_type", "vocabulary", "tokenizer", "positions", "text"],
)
def test_what_cannot_be_trained_is_said_before_training(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run = Run(tmp_path / "job", {**TRAIN, **change}, WHOLE)
    with pytest.raises(BadInput, match=re.escape(said)) as refused:
        run.here()
    assert refused.value.hint
    assert "step" not in run.progress


def test_a_budget_that_cannot_hold_a_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetTooSmall, match="at least"):
        Run(tmp_path / "job", TRAIN, 100_000).here()

"""The bundled programs, as they are, under budgets that change while they run: their results keep every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from superpipe_cluster.execution.supervisor import Supervisor
from waiting import wait_until
from worker_runs import Run

MIB = 2**20
LLAMA = {
    "config": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 6,
        "num_attention_heads": 4, "max_position_embeddings": 128,
    }
}  # fmt: skip
TRAIN = {
    "kind": "train", "name": "tiny", "model": LLAMA, "data": {"files": ["python-stdlib:json/*.py"]},
    "train": {"steps": 60, "batch_size": 2, "sequence_length": 32, "lr": 1e-3},
}  # fmt: skip
GENERATE = {
    "kind": "generate", "name": "tiny", "model": LLAMA,
    "generate": {
        "prompts": [f"prompt {number}" for number in range(16)], "max_new_tokens": 12, "batch_size": 1,
    },
}  # fmt: skip


def until_acknowledged(run: Run, supervisor: Supervisor, revision: int) -> dict[str, Any]:
    def look() -> bool:
        assert supervisor.wait(0) is None, run.log()
        run.progress.update(supervisor.take_progress())
        return run.progress.get("budget_revision") == revision

    wait_until(look, f"budget {revision} is acknowledged", 60)
    return run.progress


@pytest.mark.parametrize(
    ("job", "result"),
    [
        (TRAIN, "model.safetensors"),
        pytest.param(GENERATE, "completions.jsonl", marks=pytest.mark.slow),
    ],
)
def test_a_bundled_program_shrinks_and_grows_without_changing_a_bit(
    tmp_path: Path, job: dict[str, Any], result: str
) -> None:
    alone = Run(tmp_path / "alone", job, 48 * MIB)
    alone.here()
    smaller = alone.progress["floor_bytes"] + MIB // 4
    assert smaller < alone.progress["peak_bytes"]
    run = Run(tmp_path / "resized", job, 48 * MIB)
    supervisor = run.start()
    supervisor.ask_budget(smaller, 1)  # heard before its first step, and put in force after it
    told = until_acknowledged(run, supervisor, 1)
    assert (told["budget_bytes"], told["budget_refused"]) == (smaller, None)
    assert told["held_bytes"] <= smaller
    supervisor.ask_budget(48 * MIB, 2)
    assert until_acknowledged(run, supervisor, 2)["budget_bytes"] == 48 * MIB
    assert run.finish(supervisor).reason == "ok", run.log()
    assert (run.output / result).read_bytes() == (alone.output / result).read_bytes()

"""The bundled programs, as they are, under budgets that change while they run: their results keep every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from superpipe_cluster import bundled, spec
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import Supervisor
from superpipe_cluster.machine import parse_device
from waiting import wait_until

MIB = 2**20
LLAMA = {
    "config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
}
TRAIN = {
    "kind": "train",
    "name": "tiny",
    "model": LLAMA,
    "data": {"files": ["python-stdlib:json/*.py"]},
    "train": {"steps": 60, "batch_size": 2, "sequence_length": 32, "lr": 1e-3},
}
GENERATE = {
    "kind": "generate",
    "name": "tiny",
    "model": LLAMA,
    "generate": {
        "prompts": [f"prompt {number}" for number in range(16)],
        "max_new_tokens": 12,
        "batch_size": 1,
    },
}


class Run:
    def __init__(self, root: Path, job: dict[str, Any], budget_bytes: int) -> None:
        self.folder = JobFolder(root)
        root.mkdir()
        parsed = spec.parse(job)
        Attempt(
            id="7",
            attempt=1,
            epoch=1,
            job=spec.dump(parsed),
            device=parse_device("cpu:64MiB@8GB/s"),
            budget_bytes=budget_bytes,
            program=str(bundled.worker_path(parsed.worker)),
            output=str(self.folder.output),
        ).write(self.folder)
        self.supervisor = Supervisor(root)
        self.said: dict[str, Any] = {}

    def until_acknowledged(self, revision: int) -> dict[str, Any]:
        def look() -> bool:
            assert self.supervisor.wait(0) is None, self.folder.log.read_text()
            self.said.update(self.supervisor.take_progress())
            return self.said.get("budget_revision") == revision

        wait_until(look, f"budget {revision} is acknowledged", 60)
        return self.said

    def result(self, name: str) -> bytes:
        end = self.supervisor.wait(100)
        assert end is not None
        assert (end.reason, end.message) == ("ok", None), self.folder.log.read_text()
        for _ in range(2):
            self.said.update(self.supervisor.take_progress())
        return (self.folder.output / name).read_bytes()


@pytest.mark.parametrize(("job", "result"), [(TRAIN, "model.safetensors"), (GENERATE, "completions.jsonl")])
def test_a_bundled_program_shrinks_and_grows_without_changing_a_bit(
    tmp_path: Path, job: dict[str, Any], result: str
) -> None:
    alone = Run(tmp_path / "alone", job, 48 * MIB)
    alone.supervisor.start()
    undisturbed = alone.result(result)
    smaller = alone.said["floor_bytes"] + MIB // 4
    assert smaller < alone.said["peak_bytes"]
    run = Run(tmp_path / "resized", job, 48 * MIB)
    run.supervisor.ask_budget(smaller, 1)  # heard before its first step, and put in force after it
    run.supervisor.start()
    told = run.until_acknowledged(1)
    assert (told["budget_bytes"], told["budget_refused"]) == (smaller, None)
    assert told["held_bytes"] <= smaller
    run.supervisor.ask_budget(48 * MIB, 2)
    assert run.until_acknowledged(2)["budget_bytes"] == 48 * MIB
    assert run.result(result) == undisturbed

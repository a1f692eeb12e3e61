"""Which jobs share a copy of their frozen weights, as the ledger sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from superpipe_cluster import bundled, spec
from superpipe_cluster.head.shared_copies import shared_copy_of
from superpipe_cluster.planning import Plan
from superpipe_cluster.planning.__main__ import answer

# What PEFT and its callees say about each other.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning")

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 2, "vocab_size": 257, "max_position_embeddings": 64,
}  # fmt: skip
WEIGHTS_BYTES = 4 * (2 * 257 * 64 + 4 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.txt"
    path.write_text("one\n\ntwo\n")
    return str(path)


def finetune(data: str, seed: int = 0, resources: dict[str, Any] | None = None, **settings: Any) -> Any:
    return {
        "kind": "finetune", "name": "f", "model": {"config": CONFIG, "seed": seed}, "data": {"files": [data]},
        "finetune": {"batch_size": 1, "sequence_length": 16, **settings}, "resources": resources or {},
    }  # fmt: skip


def copy_of(job: dict[str, Any]) -> tuple[str | None, int]:
    parsed = spec.parse(job)
    program = str(bundled.worker_path(parsed.worker))
    made = answer({"job": job, "program": program, "cuda": False, "device": None})["plan"]
    return shared_copy_of(parsed, Plan.from_dict(made))


def test_adapters_of_any_shape_on_one_base_share_it(data: str) -> None:
    name, size = copy_of(finetune(data))
    assert name is not None
    assert WEIGHTS_BYTES <= size <= WEIGHTS_BYTES + 50 * 256  # each tensor starts at a multiple of 256
    assert copy_of(finetune(data, lora={"r": 2, "target_modules": ["q_proj"]}, lr=1.0)) == (name, size)
    assert copy_of(finetune(data, seed=1)) != (name, size)


def test_what_is_trained_is_nobody_elses(data: str) -> None:
    assert copy_of(finetune(data, method="full")) == (None, 0)
    assert copy_of(finetune(data, share_base=False)) == (None, 0)
    assert copy_of(finetune(data, resources={"host": "disk"})) == (None, 0)


def test_completions_share_with_others_that_read_the_same_files(tmp_path: Path) -> None:
    def generate(count: int, host: str = "shared") -> Any:
        return {
            "kind": "generate", "name": "g", "model": {"config": CONFIG}, "resources": {"host": host},
            "generate": {"prompts": ["a"] * count, "max_new_tokens": 4},
        }  # fmt: skip

    name, size = copy_of(generate(1))
    assert size >= WEIGHTS_BYTES
    assert copy_of(generate(3)) == (name, size)
    assert copy_of(generate(1, host="pinned")) == (None, 0)


def test_a_folder_whose_files_have_changed_holds_another_model(tmp_path: Path) -> None:
    plan = Plan((8,), 8, 0, 8, 8, frozen_bytes=(8,))

    def copy() -> str | None:
        job = {
            "kind": "serve",
            "name": "s",
            "model": {"source": str(tmp_path)},
            "resources": {"host": "shared"},
        }
        return shared_copy_of(spec.parse(job), plan)[0]

    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1")
    before = copy()
    assert before == copy()
    weights.write_bytes(b"12")
    assert copy() != before


def test_a_program_of_ones_own_has_its_copy_to_itself() -> None:
    plan = Plan((8,), 8, 0, 8, 8, frozen_bytes=(8,))
    job = {"kind": "train", "name": "t", "model": {"config": CONFIG}, "resources": {"host": "shared"}}
    assert shared_copy_of(spec.parse({**job, "worker": "/home/mine.py"}), plan) == (None, 0)

"""Programs whose step asks for values: planned they cannot be, run they can, in what their job file gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from superpipe_cluster import spec
from superpipe_cluster.errors import Unplannable
from superpipe_cluster.planning.__main__ import answer

PROGRAM = """
import torch
from superpipe_cluster.planning import Probe

def probe(job):
    model = torch.nn.Linear(4, 4)
    return Probe(model, lambda: float(model(torch.ones(4)).sum()))
"""


def test_a_size_needs_no_plan_and_auto_cannot_do_without(tmp_path: Path) -> None:
    program = tmp_path / "mine.py"
    program.write_text(PROGRAM)

    def asked(gpu_memory: str) -> dict[str, object]:
        job = spec.parse({
            "kind": "train", "name": "t", "worker": str(program), "resources": {"gpu_memory": gpu_memory},
        })  # fmt: skip
        return {"job": spec.dump(job), "program": str(program), "cuda": False, "device": None, "measure": []}

    assert answer(asked("1MiB..2MiB")) == {"plan": None}
    with pytest.raises(Unplannable, match="depends on values") as refused:
        answer(asked("auto"))
    assert "resources.gpu_memory a size" in str(refused.value.hint)

"""The process in which a job is planned: its start, its answer, its failures.

Owns the boundary. Whoever asks for a plan (the head) never loads torch, and a user's program that crashes while it is
probed takes nothing else down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from superpipe_cluster import errors, spec
from superpipe_cluster.planning.plan import Plan


def plan_job(
    job: spec.JobSpec, program: Path, *, cuda: bool = False, timeout_s: float = 180.0
) -> Plan | None:
    """Plan `job` in a process of its own.

    Args:
        job: the job as parsed; `model.source` must be readable here (a directory, a hub name) if it is used.
        program: the worker program.
        cuda: whether it will run on a CUDA GPU.
        timeout_s: after this the attempt is given up.

    Returns:
        The plan, or None if the program declares no `probe`.

    Raises:
        BadInput: the program or the model it names cannot be built; the message is the program's own.
    """
    request = json.dumps({"job": spec.dump(job), "program": str(program), "cuda": cuda})
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "superpipe_cluster.planning"],
            input=request, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise errors.BadInput(
            f"planning {job.name} took longer than {timeout_s:.0f} s",
            hint="give resources.gpu_memory a size, and leave `probe` out of your worker program",
        ) from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise errors.BadInput(
            f"planning {job.name} failed: {last}", hint="run the worker program by hand to see why"
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if (problem := answer.get("error")) is not None:
        raise errors.BadInput(problem["message"], hint=problem["hint"])
    return Plan.from_dict(answer["plan"]) if answer["plan"] is not None else None

"""The process in which a job is planned: its start, its answer, its failures.

Owns the boundary. Whoever asks for a plan (the head) never loads torch, and a user's program that crashes while it is
probed takes nothing else down.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from superpipe_cluster import errors, spec
from superpipe_cluster.planning.forecast import Measured
from superpipe_cluster.planning.plan import Plan, PlannedDevice


def plan_job(
    job: spec.JobSpec,
    program: Path,
    *,
    cuda: bool = False,
    device: PlannedDevice | None = None,
    hide_gpus: bool = True,
    timeout_s: float = 180.0,
) -> Plan | None:
    """Plan `job` in a process of its own.

    Args:
        job: the job as parsed; `model.source` must be readable here (a directory, a hub name) if it is used.
        program: the worker program.
        cuda: whether it will run on a CUDA GPU.
        device: what to forecast seconds for, None for bytes alone.
        hide_gpus: whether the process must leave GPUs alone, for they are other jobs'.
        timeout_s: after this the attempt is given up.

    Returns:
        The plan, or None if the program declares no `probe`.

    Raises:
        BadInput: the program or the model it names cannot be built; the message is the program's own.
    """
    request = {"cuda": cuda, "device": None if device is None else asdict(device), "measure": []}
    answer = _ask(job, program, request, hide_gpus=hide_gpus, timeout_s=timeout_s)
    return Plan.from_dict(answer["plan"]) if answer["plan"] is not None else None


def measure_job(
    job: spec.JobSpec,
    program: Path,
    device: PlannedDevice,
    budgets: Sequence[int],
    *,
    timeout_s: float = 1800.0,
) -> list[Measured]:
    """Run some steps of `job` at each of `budgets`, in a process of its own.

    Args:
        job: as for `plan_job`.
        program: as for `plan_job`.
        device: a virtual one, or the first GPU that is to be seen.
        budgets: device bytes.
        timeout_s: as for `plan_job`.

    Raises:
        BadInput: the program or the model it names cannot be built, or does not run.
    """
    request = {"cuda": device.gpu is not None, "device": asdict(device), "measure": list(budgets)}
    answer = _ask(job, program, request, hide_gpus=False, timeout_s=timeout_s)
    return [Measured(**one) for one in answer["measured"]]


def _ask(
    job: spec.JobSpec, program: Path, request: dict[str, Any], *, hide_gpus: bool, timeout_s: float
) -> dict[str, Any]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(job.resources.cpus),  # as the job itself will have
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if hide_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    asked = json.dumps({**request, "job": spec.dump(job), "program": str(program)})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "superpipe_cluster.planning"],
            input=asked, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False,
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
    return answer

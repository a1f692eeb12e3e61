"""One task of `sweep.yaml`: a small network learns to copy its input, with the learning rate of the task's index.

Read it from `main` down. Each task leaves `result.json` in its own output folder.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import nn

from superpipe_cluster.planning import Probe

if TYPE_CHECKING:
    from superpipe_cluster.execution.job import Job
    from superpipe_cluster.spec import TrainJob

WIDTH, DEPTH, BATCH = 256, 8, 32


def main(job: Job) -> None:
    """Train and write down how it went."""
    assert job.array_index is not None  # the job file makes it an array
    lr = job.params["lr"][job.array_index]
    steps = job.params["steps"]
    torch.manual_seed(0)  # the tasks differ in the learning rate alone
    model = network()
    last = float("nan")
    with job.stream(model) as streamer:
        optimizer = streamer.optimizer(torch.optim.SGD, lr=lr, momentum=0.9)
        for step in range(1, steps + 1):
            if job.should_stop:
                return  # it is seconds of work: begun anew, without a checkpoint
            loss = squared_error(model, torch.randn(BATCH, WIDTH, device=streamer.device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            last = loss.item()
            job.progress(step=step, steps=steps, loss=last)
    job.log(f"learning rate {lr}: loss {last:.4f}")
    (job.output / "result.json").write_text(json.dumps({"lr": lr, "loss": last}) + "\n")


def probe(job: TrainJob) -> Probe:
    """One step of it, for the plan made before it runs."""
    model, batch = network(), torch.zeros(BATCH, WIDTH)
    return Probe(
        model,
        lambda: squared_error(model, batch).backward(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    )


def network() -> nn.Module:
    """Eight equal blocks."""
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)))


def squared_error(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """How far the network's answer is from what it was given."""
    return (model(batch) - batch.tanh()).square().mean()

"""The whole model on the device, as the paper's `standard`, and on the CPU, as its `CPU-only`."""

from __future__ import annotations

from typing import Any

import torch

from contenders.door import Contender, Task, adamw


class Standard(Contender):
    name = "standard"

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        super().__init__(task, setting)
        self.model = task.model().to(task.device)
        self.optimizer = adamw(self.model.parameters()) if task.workload.train else None


class CpuOnly(Contender):
    name = "cpu"
    exact = False  # other kernels

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        super().__init__(task, setting)
        self.model = task.model()
        self.optimizer = adamw(self.model.parameters()) if task.workload.train else None

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.task.inputs(torch.device("cpu"))

    @property
    def target(self) -> torch.Tensor:
        return self.task.target(torch.device("cpu"))

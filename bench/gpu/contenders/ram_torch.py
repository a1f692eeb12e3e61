"""RamTorch's `OffloadModel`: a chain of chunks through a window of slots, some pinned; gradients gather on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from models import Chain
from workloads import Scale, Workload

from contenders.door import Contender, NotHere, Task, adamw


class RamTorch(Contender):
    name = "RamTorch OffloadModel"
    package = "ramtorch"
    exact = False  # its optimizer runs on the CPU

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        from ramtorch import OffloadModel

        super().__init__(task, setting)
        chain = task.model()
        assert isinstance(chain, Chain)
        self.model = OffloadModel(chain.chunks(), device=task.device, keep_activations=True, **setting)
        self.optimizer = adamw(self.model.parameters()) if task.workload.train else None

    @classmethod
    def settings(cls, workload: Workload, scale: Scale) -> list[dict[str, Any]]:
        return [{"window": 2}, {"window": 2, "pin": 8}] if scale == "full" else [{"window": 2}]

    @classmethod
    def check(cls, workload: Workload) -> None:
        super().check(workload)
        if workload.name.startswith("sd"):
            raise NotHere("takes chains of modules, and a UNet is none")

    def train(self) -> torch.Tensor:
        engine: Any = self.model
        assert self.optimizer is not None
        result = engine.step(*self.inputs, targets=self.target, loss_fn=self.task.workload.loss)
        engine.flush_grads()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.as_tensor(result.loss).detach()

    def close(self) -> None:
        engine: Any = self.model
        engine.close()

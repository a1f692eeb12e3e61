"""RoundPipe (`roundpipe` on PyPI): a chain of layers uploaded by stages, recomputed in backward; a CPU optimizer."""

from __future__ import annotations

from typing import Any

import torch
from models import Chain
from torch import nn
from workloads import Workload

from contenders.door import Contender, NotHere, Task, adamw


class RoundPipe(Contender):
    name = "RoundPipe"
    package = "roundpipe"
    exact = False  # its optimizer runs on the CPU

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        if task.on_cpu:
            raise NotHere("needs a GPU")
        from roundpipe import RoundPipe as Wrapped
        from roundpipe import RoundPipeRunConfig

        super().__init__(task, setting)
        chain = task.model()
        assert isinstance(chain, Chain)
        config = RoundPipeRunConfig(
            requires_grad=task.workload.train, output_device=task.device, num_microbatch=1
        )
        self.model = Wrapped(nn.Sequential(*chain.chunks()), model_run_config=config, pin_model="register")
        self.optimizer = adamw(self.model.optim_parameters()) if task.workload.train else None

    @classmethod
    def check(cls, workload: Workload) -> None:
        super().check(workload)
        if workload.name.startswith("sd"):
            raise NotHere("takes chains of modules, and a UNet is none")

    def train(self) -> torch.Tensor:
        # Synchronous steps: the default trains on weights that are one step old.
        engine: Any = self.model
        loss = engine.forward_backward(
            input_args=self.inputs, label=self.target, loss_fn=self.task.workload.loss
        )
        engine.step(self._step, is_async=False)
        return torch.as_tensor(loss).detach()

    def _step(self) -> None:
        assert self.optimizer is not None
        self.optimizer.step()
        self.optimizer.zero_grad()

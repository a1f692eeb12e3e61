"""DeepSpeed ZeRO stage 3 with parameters and optimizer offloaded to the CPU."""

from __future__ import annotations

import os
from typing import Any

import torch

from contenders.door import Contender, Task


class DeepspeedZero3(Contender):
    name = "DeepSpeed ZeRO-3 offload"
    package = "deepspeed"
    exact = False  # its own Adam, on the CPU

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        import deepspeed

        super().__init__(task, setting)
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        }
        for name, value in alone.items():
            os.environ.setdefault(name, value)
        offload = {"device": "cpu", "pin_memory": True}
        zero = {"stage": 3, "offload_param": offload, "overlap_comm": True}
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": zero,
            "bf16": {"enabled": task.workload.dtype is torch.bfloat16},
            "fp16": {"enabled": task.workload.dtype is torch.float16},
        }
        if task.workload.train:
            zero["offload_optimizer"] = offload
            config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-4}}
        model = task.model()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.model, *_ = deepspeed.initialize(model=model, model_parameters=trained or None, config=config)

    def train(self) -> torch.Tensor:
        loss = self.task.workload.loss(self.model(*self.inputs), self.target)
        engine: Any = self.model
        engine.backward(loss)
        engine.step()
        return loss.detach()

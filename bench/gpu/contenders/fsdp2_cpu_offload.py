"""FSDP2 on one device with `CPUOffloadPolicy`: each block a group, the optimizer on the CPU."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import models
import torch
from torch import distributed

from contenders.door import Contender, Task, adamw


class Fsdp2CpuOffload(Contender):
    name = "FSDP2 CPUOffloadPolicy"
    exact = False  # its optimizer runs on the CPU

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

        super().__init__(task, setting)
        if not distributed.is_initialized():
            meeting = os.path.join(tempfile.mkdtemp(), "meeting")
            backend = "gloo" if task.on_cpu else "cpu:gloo,cuda:nccl"
            distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=0, world_size=1)
        mesh = distributed.init_device_mesh(task.device.type, (1,))
        policy = CPUOffloadPolicy(pin_memory=not task.on_cpu)
        self.model = task.model()
        for block in models.blocks_of(self.model):
            fully_shard(block, mesh=mesh, offload_policy=policy)
        fully_shard(self.model, mesh=mesh, offload_policy=policy)
        self.optimizer = adamw(self.model.parameters()) if task.workload.train else None

    def infer(self) -> torch.Tensor:
        out = super().infer()
        return out.full_tensor() if isinstance(out, distributed.tensor.DTensor) else out

    def close(self) -> None:
        distributed.destroy_process_group()

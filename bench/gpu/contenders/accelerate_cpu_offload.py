"""accelerate's `cpu_offload`: a hook before each module copies its weights in, one by one, and drops them after."""

from __future__ import annotations

from typing import Any

from contenders.door import Contender, Task


class AccelerateCpuOffload(Contender):
    name = "accelerate cpu_offload"
    package = "accelerate"
    trains = False
    why_not = "trains on copies, and never changes the weights (accelerate issues 3770 and 3785)"

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        from accelerate import cpu_offload

        super().__init__(task, setting)
        self.model = cpu_offload(task.model(), execution_device=task.device)

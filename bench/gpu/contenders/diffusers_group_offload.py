"""diffusers' group offloading: groups of blocks, or single leaves, fetched one group ahead on a stream."""

from __future__ import annotations

from typing import Any

from workloads import Scale, Workload

from contenders.door import Contender, Task


class DiffusersGroupOffload(Contender):
    name = "diffusers group offload"
    package = "diffusers"
    trains = False
    why_not = (
        "fetches ahead in forward order alone; its streams are unsafe in backward (diffusers issue 12610)"
    )

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        from diffusers.hooks import apply_group_offloading

        super().__init__(task, setting)
        self.model = task.model()
        streams = {} if task.on_cpu else {"use_stream": True, "non_blocking": True, "record_stream": True}
        apply_group_offloading(self.model, onload_device=task.device, **streams, **setting)

    @classmethod
    def settings(cls, workload: Workload, scale: Scale) -> list[dict[str, Any]]:
        by_blocks = [{"offload_type": "block_level", "num_blocks_per_group": n} for n in (1, 4)]
        by_leaves = {"offload_type": "leaf_level"}
        return [*by_blocks, by_leaves] if scale == "full" else [by_blocks[0], by_leaves]

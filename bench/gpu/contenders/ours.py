"""superpipe_cluster: the paper's naive and sliding window, and the optimal policy, over k and over byte budgets."""

from __future__ import annotations

from typing import Any

import torch
from workloads import Scale, Workload

from contenders.door import Contender, Task
from superpipe_cluster.streaming import stream


class Ours(Contender):
    name = "ours"

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        super().__init__(task, setting)
        self.model = task.model()
        self._streamer = stream(self.model, device=task.device, **setting)
        self.optimizer = self._streamer.optimizer(torch.optim.AdamW, lr=1e-4) if task.workload.train else None

    @classmethod
    def settings(cls, workload: Workload, scale: Scale) -> list[dict[str, Any]]:
        if scale == "tiny":
            return [{"policy": "naive", "k": 3}, {"policy": "sliding", "k": 4, "k_prime": 2}, {"k": 4}]
        windows = workload.windows if scale == "full" else workload.windows[:: len(workload.windows) - 1 or 1]
        naive = workload.naive if scale == "full" else workload.naive[:1]
        found: list[dict[str, Any]] = [{"policy": "naive", "k": k} for k in naive]
        for k, k_prime in windows:
            found.append({"policy": "sliding", "k": k, "k_prime": k_prime})
            found.append({"policy": "optimal", "k": k})
            if scale == "full":
                found.append({"policy": "optimal", "k": k, "k_prime": k_prime})
        return found

    def figures(self) -> dict[str, Any]:
        stats = self._streamer.stats()
        return {
            "units": stats.units,
            "loads": stats.loads,
            "h2d_bytes": stats.h2d_bytes,
            "d2h_bytes": stats.d2h_bytes,
            "peak_bytes": stats.peak_bytes,
            "host_bytes": stats.host_bytes,
        }

    def close(self) -> None:
        self._streamer.close()

"""mmgp (GPL-3; imported only where the user installed it): an approximate budget in MB for a model's blocks."""

from __future__ import annotations

from typing import Any

from workloads import Scale, Workload

from contenders.door import Contender, NotHere, Task


class MmgpBudget(Contender):
    name = "mmgp"
    package = "mmgp"
    trains = False
    why_not = "inference alone (it sets requires_grad=False)"

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        if task.on_cpu:
            raise NotHere("needs a GPU")
        from mmgp import offload

        super().__init__(task, setting)
        self.model = task.model()
        self._offload = offload.all(
            {"transformer": self.model}, pinnedMemory=True, quantizeTransformer=False, asyncTransfers=True,
            convertWeightsFloatTo=None, budgets=setting["budget_mb"], verboseLevel=0,
        )  # fmt: skip

    @classmethod
    def settings(cls, workload: Workload, scale: Scale) -> list[dict[str, Any]]:
        return [{"budget_mb": mb} for mb in ((1000, 3000) if scale == "full" else (1000,))]

    def close(self) -> None:
        self._offload.release()

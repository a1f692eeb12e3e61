"""The ways to run a model that may be larger than its share of the device, one file each, behind one door."""

from __future__ import annotations

from contenders.accelerate_cpu_offload import AccelerateCpuOffload
from contenders.deepspeed_zero3 import DeepspeedZero3
from contenders.diffusers_group_offload import DiffusersGroupOffload
from contenders.door import Contender
from contenders.fsdp2_cpu_offload import Fsdp2CpuOffload
from contenders.mmgp_budget import MmgpBudget
from contenders.ours import Ours
from contenders.plain import CpuOnly, Standard
from contenders.ram_torch import RamTorch
from contenders.round_pipe import RoundPipe

#: In the order of the result. The first is what the others are compared with.
CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (
        Standard, CpuOnly, AccelerateCpuOffload, DiffusersGroupOffload, Fsdp2CpuOffload, DeepspeedZero3, RoundPipe,
        MmgpBudget, RamTorch, Ours,
    )
}  # fmt: skip

"""May this job come in: what can never run is refused at submit, with the bytes that would be needed.

Owns the arithmetic from a job file and its plan to the bytes in the record. Pure: plan, devices and RAM are
arguments. What fits now is `scheduling`'s question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from superpipe_cluster.errors import BadInput, BudgetTooSmall, HostMemoryTooSmall, NeverFits
from superpipe_cluster.machine import Device
from superpipe_cluster.planning import Plan
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.spec.units import format_bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job is promised at least, wants at most, and takes of the host's RAM, in bytes."""

    budget_min_bytes: int
    budget_max_bytes: int
    host_bytes: int


def needs_of(job: JobSpec, plan: Plan | None, devices: Sequence[Device], host_total_bytes: int) -> Needs:
    """The bytes that go into the job's record.

    Args:
        job: the job file.
        plan: what its model takes; None when its program cannot say.
        devices: of this cluster.
        host_total_bytes: RAM of the machine.

    Raises:
        BadInput: neither the job file nor a plan says how much device memory.
        BudgetTooSmall: less than the smallest workable budget was asked for.
        NeverFits: no device is large enough.
        HostMemoryTooSmall: the host copy of the model is larger than RAM, or than the job's `host_memory`.
    """
    low, high = _budget(job, plan)
    largest = max(devices, key=lambda device: device.capacity_bytes)
    if low > largest.capacity_bytes:
        raise NeverFits(
            f"{job.name} needs {_exact(low)} of device memory, and the largest device here, {largest.id}, "
            f"has {_exact(largest.capacity_bytes)}",
            hint="a smaller batch or sequence needs less; `spcluster gpus` shows the devices",
        )
    return Needs(low, high, _host(job, plan, host_total_bytes))


def _budget(job: JobSpec, plan: Plan | None) -> tuple[int, int]:
    asked = job.resources.gpu_memory
    if plan is None:
        if asked == "auto":
            raise BadInput(
                f"{job.name}: its program does not say how much device memory it needs",
                hint="write resources.gpu_memory: 2GiB..8GiB, or give the program a probe(job)",
            )
        return asked.min_bytes, asked.max_bytes
    if asked == "auto":
        return plan.floor_bytes, max(plan.floor_bytes, plan.whole_bytes)
    if asked.max_bytes < plan.floor_bytes:
        raise BudgetTooSmall(
            f"{job.name} asks for {_exact(asked.max_bytes)} of device memory; its model cannot be streamed "
            f"in less than {_exact(plan.floor_bytes)}",
            needed_bytes=plan.floor_bytes,
            hint=f"write resources.gpu_memory: {_round_up_mib(plan.floor_bytes)}MiB or more, or auto",
        )
    # A guarantee below the floor would be one to start the job with bytes that it cannot run in.
    return max(asked.min_bytes, plan.floor_bytes), asked.max_bytes


def _host(job: JobSpec, plan: Plan | None, total_bytes: int) -> int:
    asked = job.resources.host_memory_bytes
    planned = plan.host_bytes if plan is not None else 0
    needed = planned if asked is None else asked
    if needed > total_bytes:
        raise HostMemoryTooSmall(
            f"{job.name} needs {_exact(needed)} of host memory for its model, and this machine has "
            f"{_exact(total_bytes)}",
            hint="take a smaller model or dtype; adamw keeps two more copies of the weights than sgd",
        )
    if needed < planned:
        raise HostMemoryTooSmall(
            f"{job.name} asks for {_exact(needed)} of host memory, and its model takes {_exact(planned)}",
            hint=f"write resources.host_memory: {_round_up_mib(planned)}MiB or more, or auto",
        )
    return needed


def _exact(size_bytes: int) -> str:
    return f"{format_bytes(size_bytes)} ({size_bytes} bytes)"


def _round_up_mib(size_bytes: int) -> int:
    return -(-size_bytes // 2**20)

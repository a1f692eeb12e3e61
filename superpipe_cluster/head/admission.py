"""May this job come in: what can never run is refused at submit, with the bytes that would be needed.

Owns the arithmetic from a job file and its plan to the bytes in the record. Pure: plan, devices and RAM are
arguments. What fits now is `scheduling`'s question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from superpipe_cluster.errors import BadInput, BudgetTooSmall, HostMemoryTooSmall, NeverFits
from superpipe_cluster.machine import Device
from superpipe_cluster.planning import Forecast, Plan
from superpipe_cluster.scheduling.snapshot import Quota
from superpipe_cluster.spec import JobSpec
from superpipe_cluster.spec.units import format_bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job is promised at least, wants at most, and takes of the host, in bytes.

    Attributes:
        budget_min_bytes: its guarantee, from the first step on; more than asked for where `max_slowdown` needs it.
        budget_max_bytes: its wish.
        host_bytes: RAM.
        link_min_bytes_per_s: of the link, what it needs there to stay within its `max_slowdown`; 0 without one.
    """

    budget_min_bytes: int
    budget_max_bytes: int
    host_bytes: int
    link_min_bytes_per_s: int = 0


def needs_of(job: JobSpec, plan: Plan | None, devices: Sequence[Device], host_total_bytes: int) -> Needs:
    """The bytes that go into the job's record.

    Args:
        job: the job file.
        plan: what its model takes; None when its program cannot say.
        devices: of this cluster.
        host_total_bytes: RAM of the machine.

    Raises:
        BadInput: neither the job file nor a plan says how much device memory, or how slow the job would be.
        BudgetTooSmall: less than the smallest workable budget was asked for, or than its `max_slowdown` needs.
        NeverFits: no device is large enough.
        HostMemoryTooSmall: the host copy of the model is larger than RAM, or than the job's `host_memory`.
    """
    low, high = _budget(job, plan)
    largest = max(devices, key=lambda device: device.capacity_bytes)
    _require_room(job, low, largest)
    floor, link = _elastic(job, plan, low, high, largest)
    return Needs(floor, high, _host(job, plan, host_total_bytes), link)


def require_quota(job: JobSpec, needs: Needs, quota: Quota | None) -> None:
    """Refuse a job that alone is more than its owner may hold.

    Raises:
        NeverFits: it is.
    """
    if quota is None or quota.limit_bytes is None or needs.budget_min_bytes <= quota.limit_bytes:
        return
    raise NeverFits(
        f"{job.name} needs {_exact(needs.budget_min_bytes)} of device memory, and all jobs of {quota.user} together "
        f"may hold {_exact(quota.limit_bytes)}",
        hint="ask for less, or ask an admin to raise the quota; `spcluster quota list` shows it",
    )


def _require_room(job: JobSpec, size_bytes: int, largest: Device) -> None:
    if size_bytes > largest.capacity_bytes:
        raise NeverFits(
            f"{job.name} needs {_exact(size_bytes)} of device memory, and the largest device here, {largest.id}, "
            f"has {_exact(largest.capacity_bytes)}",
            hint="a smaller batch or sequence needs less; `spcluster gpus` shows the devices",
        )


def _elastic(job: JobSpec, plan: Plan | None, low: int, high: int, largest: Device) -> tuple[int, int]:
    """The fewest bytes that the job is not too slow in, and the bytes per second of the link that it needs there."""
    slowdown = job.elastic.max_slowdown
    if slowdown is None:
        return low, 0
    forecast = plan.forecast if plan is not None else None
    if forecast is None:
        raise BadInput(
            f"{job.name}: elastic.max_slowdown cannot be kept, for nobody can tell how long its steps take",
            hint="leave it out, or give the program a probe(job)",
        )
    step_s = slowdown * forecast.whole_step_s
    floor = max(low, _smallest_within(forecast, step_s))
    _require_room(job, floor, largest)
    if floor > high:
        raise BudgetTooSmall(
            f"{job.name} asks for {_exact(high)} of device memory at most; to be no more than {slowdown:g} times "
            f"slower than with its whole model on the device, it needs {_exact(floor)}",
            needed_bytes=floor,
            hint=f"write resources.gpu_memory: {_round_up_mib(floor)}MiB or more, or a larger elastic.max_slowdown",
        )
    row = forecast.at(floor)
    # Both directions are in the forecast's bytes, one in the device's speed: a job alone may have all of it.
    link = math.ceil(row.link_bytes_per_step / step_s) if row is not None and step_s > 0 else 0
    return floor, min(link, largest.link_bytes_per_s or link)


def _smallest_within(forecast: Forecast, step_s: float) -> int:
    """The smallest budget whose steps are forecast to take `step_s` at most."""
    first = forecast.rows[0]
    if first.step_s <= step_s:
        return first.budget_bytes
    for slow, quick in pairwise(forecast.rows):
        if quick.step_s <= step_s:
            share = (slow.step_s - step_s) / (slow.step_s - quick.step_s)
            return slow.budget_bytes + math.ceil(share * (quick.budget_bytes - slow.budget_bytes))
    return forecast.rows[-1].budget_bytes  # the whole model's, but for rounding


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
    planned = 0 if plan is None else plan.disk_host_bytes if job.host == "disk" else plan.host_bytes
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

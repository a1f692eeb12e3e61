from __future__ import annotations

from typing import Any

import pytest

from superpipe_cluster import spec
from superpipe_cluster.errors import BadInput, BudgetTooSmall, HostMemoryTooSmall, NeverFits
from superpipe_cluster.head.admission import needs_of
from superpipe_cluster.machine import parse_device
from superpipe_cluster.planning import Plan

MIB, GIB = 2**20, 2**30
DEVICES = [parse_device("cpu:2GiB"), parse_device("cpu:6GiB", index=1)]
#: Floor 1.5 GiB, whole 4.5 GiB, host copy 4 GiB.
PLAN = Plan(
    unit_bytes=(GIB, GIB),
    largest_unit_bytes=GIB,
    resident_bytes=0,
    activation_bytes=GIB // 2,
    streamed_bytes=4 * GIB,
)


def job(**resources: str) -> spec.JobSpec:
    return spec.parse({"kind": "train", "name": "tiny", "worker": "/home/mine.py", "resources": resources})


def needs(plan: Plan | None = PLAN, host_bytes: int = 64 * GIB, **resources: str) -> Any:
    return needs_of(job(**resources), plan, DEVICES, host_bytes)


def test_auto_is_from_the_smallest_workable_to_the_whole_model() -> None:
    found = needs()
    assert (found.budget_min_bytes, found.budget_max_bytes) == (PLAN.floor_bytes, PLAN.whole_bytes)
    assert found.host_bytes == PLAN.host_bytes


def test_a_range_is_taken_as_it_is() -> None:
    found = needs(gpu_memory="2GiB..3GiB", host_memory="5GiB")
    assert (found.budget_min_bytes, found.budget_max_bytes, found.host_bytes) == (2 * GIB, 3 * GIB, 5 * GIB)


def test_a_guarantee_below_the_floor_is_raised_to_it() -> None:
    assert needs(gpu_memory="1GiB..3GiB").budget_min_bytes == PLAN.floor_bytes


def test_a_budget_below_the_floor_is_refused_with_the_bytes_it_needs() -> None:
    with pytest.raises(BudgetTooSmall, match=str(PLAN.floor_bytes)) as caught:
        needs(gpu_memory="1GiB")
    assert caught.value.needed_bytes == PLAN.floor_bytes
    assert "1536MiB" in str(caught.value.hint)


def test_without_a_plan_the_size_must_be_given() -> None:
    with pytest.raises(BadInput, match="how much device memory") as caught:
        needs(plan=None)
    assert "gpu_memory" in str(caught.value.hint)
    assert needs(plan=None, gpu_memory="1GiB").budget_min_bytes == GIB


def test_what_no_device_could_ever_hold_is_refused() -> None:
    with pytest.raises(NeverFits, match=r"7\.0 GiB .* cpu:1"):
        needs(gpu_memory="7GiB..9GiB")


def test_a_model_larger_than_ram_is_refused() -> None:
    with pytest.raises(HostMemoryTooSmall, match=str(PLAN.host_bytes)):
        needs(host_bytes=3 * GIB)
    with pytest.raises(HostMemoryTooSmall, match=str(100 * GIB)):
        needs(plan=None, gpu_memory="1GiB", host_memory="100GiB")


def test_less_host_memory_than_the_model_takes_is_refused() -> None:
    with pytest.raises(HostMemoryTooSmall) as caught:
        needs(host_memory="1GiB")
    assert "4096MiB" in str(caught.value.hint)

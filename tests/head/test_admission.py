from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from superpipe_cluster import spec
from superpipe_cluster.errors import BadInput, BudgetTooSmall, HostMemoryTooSmall, NeverFits
from superpipe_cluster.head.admission import needs_of, require_quota
from superpipe_cluster.machine import parse_device
from superpipe_cluster.planning import Forecast, ForecastRow, Plan
from superpipe_cluster.planning.plan import STAGING_BYTES
from superpipe_cluster.scheduling.snapshot import Quota

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


def test_what_waits_on_a_disk_takes_no_ram() -> None:
    row = ForecastRow(2 * GIB, 1, 1, 2 * GIB, 5 * GIB, 0, 1.0, 1.0, 1.0, "link", copies_bytes=4 * GIB)
    plan = replace(PLAN, forecast=Forecast((row,), 2 * GIB, 2 * GIB, 2 * GIB, 1.0, 2, "cpu"))
    assert needs(plan, gpu_memory="3GiB").host_bytes == 5 * GIB
    assert needs(plan, host_bytes=2 * GIB, gpu_memory="3GiB", host="disk").host_bytes == GIB + STAGING_BYTES


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


# ---- slowdowns and quotas --------------------------------------------------------------------------


def row(budget_bytes: int, step_s: float, link_bytes: int) -> ForecastRow:
    return ForecastRow(budget_bytes, 1, 1, budget_bytes, 0, link_bytes, 1.0, step_s, step_s, "link")


#: 4 s per step in 2 GiB, 2 s in 3 GiB, 1 s from 4 GiB on.
FORECAST = Forecast(
    rows=(row(2 * GIB, 4.0, 8 * GIB), row(3 * GIB, 2.0, 4 * GIB), row(4 * GIB, 1.0, 0), row(5 * GIB, 1.0, 0)),
    floor_bytes=3 * GIB // 2,
    no_slowdown_bytes=4 * GIB,
    whole_bytes=5 * GIB,
    whole_step_s=1.0,
    units=2,
    device="cpu",
)
FORESEEN = replace(PLAN, forecast=FORECAST)


def slowed(slowdown: float, plan: Plan | None = FORESEEN, **resources: str) -> Any:
    elastic = {"max_slowdown": slowdown}
    values = {
        "kind": "train",
        "name": "tiny",
        "worker": "/home/mine.py",
        "resources": resources,
        "elastic": elastic,
    }
    return needs_of(spec.parse(values), plan, DEVICES, 64 * GIB)


def test_without_a_slowdown_the_floor_is_the_guarantee() -> None:
    found = needs(plan=FORESEEN, gpu_memory="2GiB..5GiB")
    assert (found.budget_min_bytes, found.link_min_bytes_per_s) == (2 * GIB, 0)


def test_a_slowdown_raises_the_floor_to_where_the_forecast_keeps_it() -> None:
    assert slowed(2.0, gpu_memory="2GiB..5GiB").budget_min_bytes == 3 * GIB
    assert slowed(3.0, gpu_memory="2GiB..5GiB").budget_min_bytes == 5 * GIB // 2
    assert slowed(1.0, gpu_memory="2GiB..5GiB").budget_min_bytes == 4 * GIB
    assert slowed(9.0, gpu_memory="2GiB..5GiB").budget_min_bytes == 2 * GIB
    assert slowed(9.0, gpu_memory="3GiB..5GiB").budget_min_bytes == 3 * GIB


def test_a_slowdown_needs_its_part_of_the_link() -> None:
    found = slowed(2.0, gpu_memory="2GiB..5GiB")
    assert found.link_min_bytes_per_s == 4 * GIB // 2
    assert slowed(1.0, gpu_memory="2GiB..5GiB").link_min_bytes_per_s == 0


def test_a_job_alone_may_have_all_of_the_link() -> None:
    slow = [parse_device("cpu:6GiB@1GB/s")]
    values = {"kind": "train", "name": "tiny", "worker": "/home/mine.py", "elastic": {"max_slowdown": 2.0}}
    values["resources"] = {"gpu_memory": "2GiB..5GiB"}
    assert needs_of(spec.parse(values), FORESEEN, slow, 64 * GIB).link_min_bytes_per_s == 10**9


def test_a_slowdown_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(BudgetTooSmall, match=r"2 times slower .* 3\.0 GiB") as caught:
        slowed(2.0, gpu_memory="2GiB")
    assert "3072MiB" in str(caught.value.hint)
    with pytest.raises(BadInput, match="how long"):
        slowed(2.0, plan=None, gpu_memory="2GiB")
    small = spec.parse(
        {"kind": "train", "name": "tiny", "worker": "/home/mine.py", "elastic": {"max_slowdown": 1.0}}
    )
    with pytest.raises(NeverFits, match=r"4\.0 GiB"):
        needs_of(small, FORESEEN, [parse_device("cpu:3GiB")], 64 * GIB)


def test_more_than_its_owner_may_hold_is_refused() -> None:
    one, found = job(gpu_memory="2GiB..5GiB"), needs(gpu_memory="2GiB..5GiB")
    require_quota(one, found, None)
    require_quota(one, found, Quota("ann", limit_bytes=2 * GIB))
    require_quota(one, found, Quota("ann", guaranteed_bytes=GIB))
    with pytest.raises(NeverFits, match=r"ann together may hold 1\.0 GiB"):
        require_quota(one, found, Quota("ann", limit_bytes=GIB))

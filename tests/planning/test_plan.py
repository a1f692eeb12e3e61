"""`plan()`, the figures it keeps, and what it says when it cannot."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import superpipe_cluster
from round_figures import profile
from streaming import twins
from superpipe_cluster.errors import BadInput, BudgetTooSmall
from superpipe_cluster.planning import Forecast, Plan, keep_correction
from superpipe_cluster.planning.corrections import correction_of
from superpipe_cluster.planning.machine_profile import MachineProfile
from superpipe_cluster.planning.measuring import time_operators
from superpipe_cluster.planning.plan import Probe
from superpipe_cluster.planning.planner import Planner
from superpipe_cluster.planning.record import record
from superpipe_cluster.streaming import VirtualDevice

INPUTS = torch.zeros(5, 64)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPCLUSTER_HOME", str(tmp_path))
    return tmp_path


def planned(**options) -> Forecast:
    return superpipe_cluster.plan(
        twins.Blocks(64),
        INPUTS,
        optimizer=torch.optim.AdamW,
        device=VirtualDevice(link_bytes_per_s=options.pop("link", 1e9)),
        timed=False,
        profile=profile(),
        **options,
    )


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    """What most tests only look at."""
    return planned()


def test_a_model_with_example_inputs(forecast: Forecast) -> None:
    budgets = [row.budget_bytes for row in forecast.rows]
    assert budgets == sorted(set(budgets))
    assert (budgets[0], budgets[-1]) == (forecast.floor_bytes, forecast.whole_bytes)
    assert forecast.no_slowdown_bytes in budgets
    assert forecast.units == 8
    assert all(row.peak_bytes <= row.budget_bytes for row in forecast.rows)
    first, last = forecast.rows[0], forecast.rows[-1]
    assert (last.slowdown, last.bound, last.link_bytes_per_step) == (1.0, "compute", 0)
    assert first.bound == "link"
    assert first.slowdown > 1.02
    assert last.step_s == forecast.whole_step_s


def test_a_faster_link_needs_less_memory_for_the_same_pace() -> None:
    slow, fast = (planned(link=link, budgets=["1MiB"]) for link in (1e8, 1e10))
    assert fast.no_slowdown_bytes < slow.no_slowdown_bytes
    assert fast.floor_bytes == slow.floor_bytes


def test_the_model_is_left_alone_and_may_be_on_meta() -> None:
    model = twins.Blocks(64)
    before = copy.deepcopy(model.state_dict())
    options = {"device": "cpu", "timed": False, "profile": profile()}
    mine = superpipe_cluster.plan(model, lambda m: m(INPUTS).sum().backward(), **options)
    twins.assert_equal(before, model.state_dict())
    assert all(p.grad is None for p in model.parameters())
    on_meta = superpipe_cluster.plan(model.to("meta"), lambda m: m(INPUTS).sum().backward(), **options)
    assert on_meta == mine


def test_budgets_of_ones_own() -> None:
    forecast = planned(budgets=["1MiB", 2_000_000])
    assert [row.budget_bytes for row in forecast.rows] == [1 << 20, 2_000_000]
    low, high = forecast.rows
    assert forecast.at(2_000_000) == high == forecast.at(3_000_000)
    assert forecast.at(1000) is None
    middle = forecast.at(1_500_000)
    assert middle is not None
    assert low.peak_bytes < middle.peak_bytes < min(high.peak_bytes, middle.budget_bytes)
    assert middle.budget_bytes == 1_500_000
    assert min(low.step_s, high.step_s) <= middle.step_s <= max(low.step_s, high.step_s)


def test_seconds_are_those_of_a_step_as_the_program_counts_them() -> None:
    def forecast(steps: float) -> Forecast:
        def make() -> Probe:
            model, inputs = twins.Blocks(64), torch.zeros(5, 64)
            return Probe(model, lambda: model(inputs), steps=steps)

        return Planner(record(make), profile(), link_bytes_per_s=1e9).forecast()

    one, four = forecast(1.0), forecast(4.0)
    assert four.floor_bytes == one.floor_bytes
    assert four.whole_step_s == one.whole_step_s / 4
    assert one.rows[0].link_bytes_per_step > 0
    for often, once in zip(four.rows, one.rows, strict=True):
        assert (often.step_s, often.loads_per_step) == (once.step_s / 4, once.loads_per_step / 4)
        assert often.link_bytes_per_step == round(once.link_bytes_per_step / 4)
        assert (often.slowdown, often.peak_bytes) == (once.slowdown, once.peak_bytes)


def test_a_job_is_given_a_little_more_than_the_smallest_budget(forecast: Forecast) -> None:
    on_cpu = Plan((1, 2), 2, 0, 5, 3, forecast=forecast)
    assert forecast.floor_bytes < on_cpu.floor_bytes < 1.03 * forecast.floor_bytes
    assert on_cpu.host_bytes == max(row.host_bytes for row in forecast.rows)
    on_gpu = Plan((1, 2), 2, 0, 5, 3, overhead_bytes=forecast.floor_bytes, forecast=forecast)
    assert on_gpu.floor_bytes == forecast.floor_bytes + 5 + 2


def test_bad_input_gets_a_clear_error(forecast: Forecast) -> None:
    model, known = twins.Blocks(64), {"timed": False, "profile": profile()}
    with pytest.raises(BadInput, match="how it is called"):
        superpipe_cluster.plan(model)
    with pytest.raises(BadInput, match="cannot plan a int"):
        superpipe_cluster.plan(3)  # pyright: ignore
    with pytest.raises(BadInput, match="depends on values"):
        superpipe_cluster.plan(model, lambda m: m(INPUTS).sum().item(), **known)
    with pytest.raises(BudgetTooSmall, match="cannot run in 4KiB") as caught:
        planned(budgets=["4KiB"])
    assert caught.value.needed_bytes == forecast.floor_bytes
    with pytest.raises(BadInput, match="no such device"):
        superpipe_cluster.plan(model, INPUTS, device="xpu")
    with pytest.raises(BadInput, match="RuntimeError"):
        superpipe_cluster.plan(model, torch.zeros(2, 3), **known)
    with pytest.raises(BadInput, match="which loss"):
        superpipe_cluster.plan(_Silent(), INPUTS, optimizer=torch.optim.SGD, **known)
    assert superpipe_cluster.plan(model, INPUTS, **known).units == 8, "nothing is left behind"


class _Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> None:
        self.inner(x)


# ---- what is kept ---------------------------------------------------------------------------------------


def test_a_profile_is_read_back(home: Path) -> None:
    one = profile()
    one.threads = torch.get_num_threads()
    one.operators["aten::mm"] = 0.5
    one.save()
    assert MachineProfile.load("cpu") == one
    one.torch = "0.1"
    one.save()
    assert MachineProfile.load("cpu") is None, "another torch is another speed"
    (file,) = (home / "profiles").iterdir()
    file.write_text("{broken")
    assert MachineProfile.load("cpu") is None


def test_operators_are_timed_once() -> None:
    known, model = profile(), nn.Linear(64, 64)
    trace = record(lambda: Probe(twin := nn.Linear(64, 64), lambda: twin(INPUTS)))
    assert time_operators(trace, known, torch.device("cpu")) == len(trace.work)
    assert time_operators(trace, known, torch.device("cpu")) == 0
    assert all(0 < seconds < 1 for seconds in known.operators.values())
    assert model.weight.grad is None
    assumed = profile(assumed=True)
    assert time_operators(trace, assumed, torch.device("cpu")) == 0
    assert assumed.operators == {}


def test_a_run_corrects_the_next_forecast() -> None:
    first = planned(budgets=["1MiB"])
    keep_correction(
        first.fingerprint, first.rows[0].step_s, 1.5 * first.rows[0].step_s, corrected=first.corrected
    )
    second = planned(budgets=["1MiB"])
    assert second.corrected == pytest.approx(1.5)
    assert second.rows[0].step_s == pytest.approx(1.5 * first.rows[0].step_s)
    assert second.rows[0].slowdown == first.rows[0].slowdown
    keep_correction(
        second.fingerprint, second.rows[0].step_s, second.rows[0].step_s, corrected=second.corrected
    )
    assert planned(budgets=["1MiB"]).corrected == pytest.approx(1.5), "it was right: nothing more to correct"


def test_a_disturbed_run_corrects_nothing() -> None:
    keep_correction("x", 1.0, 100.0)
    assert correction_of("x") == 1.0


def test_plans_of_the_first_version_load(forecast: Forecast) -> None:
    counts = {"largest_unit_bytes": 2, "resident_bytes": 0, "activation_bytes": 5, "streamed_bytes": 3}
    assert Plan.from_dict({"unit_bytes": [1, 2], **counts}).forecast is None
    whole = Plan((1, 2), 2, 0, 5, 3, forecast=forecast)
    assert Plan.from_dict(whole.to_dict()) == whole
    newer = {**whole.to_dict(), "forecast": {**forecast.to_dict(), "moon": 1}}
    assert Plan.from_dict(newer) == whole

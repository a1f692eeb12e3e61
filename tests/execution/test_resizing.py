"""A real child with a real model: its budget changes, it stands still and goes on, and its bits do not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from execution.programs import prepare
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import Supervisor
from waiting import wait_until

MIB = 2**20

#: Trains `n` steps. After the steps in `gates` it waits for a file, at a step boundary.
TRAINING = """
import time
from pathlib import Path
import torch
from torch import nn

def main(job):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(12)])
    with job.stream(model) as streamer:
        optimizer = streamer.optimizer(torch.optim.AdamW, lr=1e-3, where=job.params["where"])
        step = 0
        while step < job.params["n"] and not job.should_stop:
            torch.manual_seed(step)
            loss = model(torch.randn(4, 256)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            print("budget", job.budget_bytes, "held", streamer.stats().held_bytes <= job.budget_bytes)
            job.progress(step=step, loss=loss.item())
            gate = job.params.get("gates", {}).get(str(step))
            if gate is not None:
                job.flush()
            while gate is not None and not Path(gate).exists():
                if job.should_stop:
                    return
                time.sleep(0.005)
    torch.save(model.state_dict(), "weights.pt")
"""


class Run:
    """One attempt and what it has said so far."""

    def __init__(self, root: Path, *gates: int, where: str = "on_device") -> None:
        self.folder = JobFolder(root)
        self.gates = {str(step): str(root / f"gate-{step}") for step in gates}
        program = root / "code" / "mine.py"
        params = {"n": 24, "gates": self.gates, "where": where}
        job = {"kind": "train", "name": "tiny", "worker": str(program), "params": params}
        prepare(root, TRAINING, job=job, budget_bytes=12 * MIB)
        self.supervisor = Supervisor(root)
        self.said: dict[str, Any] = {}
        self.supervisor.start()

    def until(self, holds: Callable[[dict[str, Any]], bool], description: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            assert self.supervisor.wait(0) is None, self.folder.log.read_text()
            self.said.update(self.supervisor.take_progress())
            return self.said if holds(self.said) else None

        return wait_until(look, description, 40) or {}

    def open(self, gate: int) -> None:
        Path(self.gates[str(gate)]).touch()

    def weights(self) -> dict[str, Any]:
        import torch

        end = self.supervisor.wait(60)
        assert end is not None
        assert (end.reason, end.message) == ("ok", None), self.folder.log.read_text()
        return torch.load(self.folder.output / "weights.pt")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Run(tmp_path_factory.mktemp("alone")).weights()


@pytest.mark.parametrize("where", ["on_device", "on_host"])
def test_a_shrunk_and_grown_training_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: dict[str, Any], where: str
) -> None:
    run = Run(tmp_path, 3, 12, where=where)  # on a virtual device both compute the same bits
    told = run.until(lambda said: said.get("step") == 3, "it is at its third step")
    run.supervisor.ask_budget(MIB // 4, 1)
    told = run.until(lambda said: said.get("budget_revision") == 1, "it has refused so few bytes")
    assert told["budget_refused"] is not None
    assert (told["budget_bytes"], told["floor_bytes"] > MIB // 4) == (12 * MIB, True)
    smaller = told["floor_bytes"] + MIB // 2
    run.supervisor.ask_budget(smaller, 2)
    told = run.until(lambda said: said.get("budget_revision") == 2, "it has acknowledged the smaller budget")
    assert (told["budget_bytes"], told["budget_refused"]) == (smaller, None)
    assert told["held_bytes"] <= smaller
    loads = told["loads"]
    run.open(3)
    run.until(lambda said: said.get("step") == 12, "it makes its steps in the smaller budget")
    assert run.said["loads"] > loads + 9  # a step cannot do without
    run.supervisor.ask_budget(10 * MIB, 3)
    run.until(lambda said: said.get("budget_revision") == 3, "it has acknowledged the larger budget")
    run.open(12)
    assert same(run.weights(), undisturbed)
    log = run.folder.log.read_text()
    assert "False" not in log
    assert f"budget {smaller} " in log


def test_one_that_stands_still_shrinks_goes_on_and_has_the_same_bits(
    tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    run = Run(tmp_path, 3)
    run.until(lambda said: said.get("step") == 3, "it is at its third step")
    run.supervisor.ask_pause(True)
    run.until(lambda said: said.get("paused") is True, "it stands still")
    assert run.supervisor.wait(0.3) is None
    assert run.said["step"] == 3
    smaller = run.said["floor_bytes"] + MIB
    run.supervisor.ask_budget(smaller, 5)
    told = run.until(lambda said: said.get("budget_revision") == 5, "it shrinks while it stands still")
    assert told["held_bytes"] <= smaller
    run.supervisor.ask_pause(False)
    run.until(lambda said: said.get("paused") is False, "it goes on")
    run.open(3)
    assert same(run.weights(), undisturbed)


def test_what_is_in_force_is_in_every_report(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    run.until(lambda said: said.get("step") == 3, "it is at its third step")
    run.supervisor.ask_budget(11 * MIB, 4)
    run.until(lambda said: said.get("budget_revision") == 4, "it has acknowledged")
    again = run.supervisor.take_progress()
    assert (again["budget_bytes"], again["budget_revision"]) == (11 * MIB, 4)
    run.supervisor.stop("cancelled")
    assert run.supervisor.wait(20) is not None


#: Has use for less than it has.
WISHES = """
def main(job):
    while not job.should_stop:
        job.wants("512KiB")
        if job.params["wrong"]:
            job.wants(-1)
"""


def test_what_a_program_has_use_for_is_in_every_report(tmp_path: Path) -> None:
    job = {"kind": "train", "name": "tiny", "worker": "mine.py", "params": {"wrong": False}}
    prepare(tmp_path, WISHES, job=job)
    supervisor = Supervisor(tmp_path)
    supervisor.start()
    wait_until(lambda: supervisor.take_progress().get("wants_bytes") == 512 << 10, "it is told")
    assert supervisor.take_progress() == {"wants_bytes": 512 << 10}
    supervisor.stop("cancelled")
    end = supervisor.wait(20)
    assert end is not None
    assert (end.reason, end.message) == ("cancelled", None)


def test_what_cannot_be_wanted_is_refused(tmp_path: Path) -> None:
    job = {"kind": "train", "name": "tiny", "worker": "mine.py", "params": {"wrong": True}}
    prepare(tmp_path, WISHES, job=job)
    supervisor = Supervisor(tmp_path)
    supervisor.start()
    end = supervisor.wait(20)
    assert end is not None
    assert end.reason == "bad_input"
    assert "-1 bytes cannot be wanted" in (end.message or "")


def test_one_that_stands_still_hears_that_it_is_to_stop(tmp_path: Path) -> None:
    run = Run(tmp_path, 3)
    run.until(lambda said: said.get("step") == 3, "it is at its third step")
    run.supervisor.ask_pause(True)
    run.until(lambda said: said.get("paused") is True, "it stands still")
    run.supervisor.stop("preempted")
    end = run.supervisor.wait(20)
    assert end is not None
    assert (end.reason, end.message) == ("preempted", None)

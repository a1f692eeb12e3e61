"""A forecast from `plan` to `show`, on a real cluster: what is told before a run, and what stands beside it after."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import round_figures
from commands import Said, spcluster
from superpipe_cluster.head.cluster import UpOptions, down, up
from superpipe_cluster.head.home import Home

#: Trains eight layers; with `release` it only keeps its memory until that file is there, and cannot be planned.
PROGRAM = """
import time
from pathlib import Path
import torch
from torch import nn
from superpipe_cluster.planning import Probe

def build():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))

def step_of(model, batch):
    return lambda: model(batch).square().mean().backward()

def main(job):
    if "release" in job.params:
        while not Path(job.params["release"]).exists():
            time.sleep(0.02)
        return
    model = build()
    with job.stream(model) as streamer:
        optimizer = streamer.optimizer(torch.optim.AdamW)
        step = step_of(model, torch.zeros(64, 512))
        for number in range(1, 26):
            step()
            optimizer.step()
            optimizer.zero_grad()
            job.progress(step=number, steps=25)
"""
PROBE = """
def probe(job):
    model = build()
    return Probe(model, step_of(model, torch.zeros(64, 512)), lambda own: torch.optim.AdamW(own))
"""


class Lab:
    """A cluster with one device of 40 MiB, and a job that could use 33."""

    def __init__(self, root: Path) -> None:
        self.home, self.release = root / "home", root / "release"
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        # Not assumed: of operators it times those it needs.
        round_figures.profile().save(Home(self.home).root / "profiles")
        up(UpOptions(self.home, port=port, devices=("cpu:40MiB@1GB/s",)))
        for name, text in (("hold.py", PROGRAM), ("learn.py", PROGRAM + PROBE)):
            (root / name).write_text(text)
        self.job, self.holding = root / "learn.yaml", root / "hold.yaml"
        self.job.write_text("kind: train\nname: learn\nworker: ./learn.py\nresources: {gpu_memory: 20MiB}\n")
        self.holding.write_text(
            "kind: train\nname: hold\nworker: ./hold.py\nresources: {gpu_memory: 30MiB}\n"
            f"params: {{release: {self.release}}}\n"
        )

    def say(self, *arguments: str) -> Said:
        return spcluster(*arguments, SPCLUSTER_HOME=str(self.home))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    yield made
    made.release.touch()
    down(made.home)


def percent(screen: str, label: str) -> float:
    line = next(line for line in screen.splitlines() if line.startswith(label))
    found = re.search(r"forecast .*\(([+-][0-9.]+) %\)$", line)
    assert found is not None, line
    return float(found[1])


def test_what_is_told_before_stands_beside_what_was_measured(lab: Lab) -> None:
    told = lab.say("submit", str(lab.job))
    assert told.returncode == 0, told.stderr
    assert re.search(r"units +8/8 on the device", told.stdout)
    assert re.search(r"peak +(19|20)\.\d MiB", told.stdout)
    assert re.search(r"step +[0-9.]+ m?s \([0-9.]+x the whole model's\) in 20\.0 MiB", told.stdout)
    assert lab.say("wait", "1").returncode == 0
    shown = lab.say("show", "1").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert abs(percent(shown, "peak")) <= 5
    for label in ("loads", "pace"):  # how true they are depends on who else uses this machine just now
        assert -95 < percent(shown, label) < 500
    record = json.loads(lab.say("show", "1", "-o", "json").stdout)
    assert record["peak_bytes"] <= record["budget_bytes"] == 20 << 20
    assert record["step_s"] > 0
    assert any(row["budget_bytes"] == 20 << 20 for row in record["plan"]["forecast"]["rows"])


def test_exit_codes_say_now_later_or_never(lab: Lab) -> None:
    now = lab.say("plan", str(lab.job))
    assert (now.returncode, now.stderr) == (0, "")
    assert max(map(len, now.stdout.splitlines())) <= 80
    assert "corrected by" in now.stdout, "the run before has taught something"
    held = lab.say("submit", str(lab.holding))
    assert held.returncode == 0, held.stderr
    later = lab.say("plan", str(lab.job))
    assert later.returncode == 3, later.stderr
    never = lab.say("plan", str(lab.job), "--set", "resources.gpu_memory=4MiB")
    assert never.returncode == 4
    assert "cannot be streamed in less than" in never.stderr

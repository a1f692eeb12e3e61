from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from superpipe_cluster.execution import remains
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.execution.layout import JobFolder, note_birth
from superpipe_cluster.machine import nvml, parse_device, processes
from waiting import wait_until


def test_before_the_first_child_there_is_nothing_to_clear(tmp_path: Path) -> None:
    assert remains.clear(JobFolder(tmp_path), None)


def test_what_is_left_of_a_group_is_killed_and_confirmed(tmp_path: Path) -> None:
    command = (
        "import subprocess, time; subprocess.Popen(['sleep', '600']); print(flush=True); time.sleep(600)"
    )
    leader = subprocess.Popen([sys.executable, "-c", command], process_group=0, stdout=subprocess.PIPE)
    born = processes.birth(leader.pid)
    assert born is not None
    assert leader.stdout is not None
    leader.stdout.readline()
    folder = JobFolder(tmp_path)
    folder.pid.write_text(f"{born.pid} {born.started}")
    leader.kill()
    leader.wait()
    assert not remains.clear(folder, None)
    wait_until(lambda: remains.clear(folder, None), "the child's own child is gone too")
    leader.stdout.close()


def test_on_a_gpu_the_driver_must_have_forgotten_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder.pid.write_text(f"{gone.pid} 1")
    gpu = replace(parse_device("cpu:1GiB"), id="GPU-1f", kind="cuda")
    monkeypatch.setattr(nvml, "processes_on", lambda uuid: frozenset({gone.pid}))
    assert not remains.clear(folder, gpu)
    monkeypatch.setattr(nvml, "processes_on", lambda uuid: frozenset())
    assert remains.clear(folder, gpu)


def test_a_workers_name_says_whose_it_is() -> None:
    assert Worker.named(Worker("12", 3).name) == Worker("12", 3)
    assert Worker.named("head") is None


def test_a_sleeping_actor_is_killed_with_its_child(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    actor = subprocess.Popen(["sleep", "600"])
    child = subprocess.Popen(["sleep", "600"], process_group=0)
    note_birth(folder.actor, actor.pid)
    note_birth(folder.pid, child.pid)
    os.kill(actor.pid, signal.SIGSTOP)
    assert not remains.clear(folder, None)
    assert (actor.wait(10), child.wait(10)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert remains.clear(folder, None)

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from execution.programs import prepare
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import End, Grace, Supervisor
from superpipe_cluster.machine import parse_device, processes
from waiting import wait_until

PATIENT = Grace(5.0, 5.0)

Run = Callable[..., Supervisor]

#: Reports that it is up, then steps until it is told to stop.
STEPPING = """
import time
def main(job):
    step = 0
    while not job.should_stop:
        step += 1
        job.progress(step=step, steps=100, loss=1 / step)
        time.sleep(0.01)
    print("saving")
"""
DEAF = """
import signal, time
def main(job):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job.progress(step=1)
    while True:
        time.sleep(0.05)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started: list[Supervisor] = []

    def start(program: str, *, grace: Grace = PATIENT, **changes: Any) -> Supervisor:
        prepare(tmp_path, program, **changes)
        supervisor = Supervisor(tmp_path, grace)
        started.append(supervisor)
        supervisor.start()
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop("cancelled", force=True)
        assert supervisor.wait(10) is not None


def ended(supervisor: Supervisor) -> End:
    end = supervisor.wait(20)
    assert end is not None
    return end


def until_running(supervisor: Supervisor) -> None:
    seen: dict[str, Any] = {}

    def is_running() -> bool:
        seen.update(supervisor.take_progress())
        return bool(seen.get("running")) and "step" in seen

    wait_until(is_running, "the program is in its main and has made a step", 20)


def test_a_program_runs_reports_and_succeeds(run: Run, tmp_path: Path) -> None:
    supervisor = run(
        """
        def main(job):
            print("hello", job.name, job.params["n"], job.device.id, job.budget_bytes)
            for step in range(1, 4):
                job.progress(step=step, steps=3, loss=1.0 / step)
            open("result.txt", "w").write("done")
        """
    )
    assert ended(supervisor) == End("ok", None, 0)
    first, last = supervisor.take_progress(), supervisor.take_progress()
    assert (first["running"], first["step"], first["metrics"]) == (True, 1, {"loss": 1.0})
    assert (last["step"], last["metrics"]) == (3, {"loss": 1.0 / 3})
    folder = JobFolder(tmp_path)
    assert folder.log.read_text() == "hello tiny 3 cpu:0 1048576\n"
    assert (folder.output / "result.txt").read_text() == "done"


@pytest.mark.parametrize(
    ("body", "reason", "exit_code", "words"),
    [
        ("raise ValueError('no such layer')", "error", 1, "ValueError: no such layer"),
        (
            "raise errors.BadInput('unreadable model', hint='give another')",
            "bad_input",
            2,
            "unreadable model",
        ),
        ("raise errors.DeviceOutOfMemory('7 bytes short')", "oom", 1, "7 bytes short"),
        ("raise errors.BudgetTooSmall('needs 9 bytes', needed_bytes=9)", "never_fits", 4, "needs 9 bytes"),
        ("raise MemoryError('host')", "oom", 1, "MemoryError"),
        ("raise SystemExit(3)", "error", 3, "exit code 3"),
        ("raise SystemExit(0)", "ok", 0, None),
        ("os._exit(5)", "error", 5, "exit code 5"),
        ("os.kill(os.getpid(), 11)", "worker_lost", None, "SIGSEGV"),
    ],
)
def test_how_it_ends_is_told(
    run: Run, body: str, reason: str, exit_code: int | None, words: str | None
) -> None:
    end = ended(run(f"import os\nfrom superpipe_cluster import errors\ndef main(job):\n    {body}\n"))
    assert (end.reason, end.exit_code) == (reason, exit_code)
    assert (words is None) == (end.message is None)
    assert words is None or words in str(end.message)


def test_the_log_has_a_traceback_or_where_the_user_can_help_a_hint(run: Run, tmp_path: Path) -> None:
    ended(run("def main(job):\n    {}['missing']\n"))
    log = JobFolder(tmp_path).log
    assert "Traceback" in log.read_text()
    assert "KeyError: 'missing'" in log.read_text()
    log.unlink()
    said = "raise errors.BadInput('unreadable model', hint='give another')"
    ended(run(f"from superpipe_cluster import errors\ndef main(job):\n    {said}\n"))
    assert "unreadable model" in log.read_text()
    assert "hint: give another" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_program_without_main_is_bad_input(run: Run) -> None:
    end = ended(run("print('loaded')"))
    assert end.reason == "bad_input"
    assert "main(job)" in str(end.message)


def test_a_program_that_is_asked_to_stop_saves_and_returns(run: Run, tmp_path: Path) -> None:
    supervisor = run(STEPPING)
    until_running(supervisor)
    supervisor.stop("preempted")
    assert ended(supervisor) == End("preempted", None, 0)
    assert JobFolder(tmp_path).log.read_text() == "saving\n"


def test_one_that_does_not_listen_is_terminated_after_its_grace(run: Run) -> None:
    supervisor = run(
        "import time\ndef main(job):\n    job.progress(step=1)\n    time.sleep(600)", grace=Grace(0.1, 60)
    )
    until_running(supervisor)
    supervisor.stop("time_limit")
    assert ended(supervisor).reason == "time_limit"


def test_one_that_ignores_even_that_is_killed(run: Run) -> None:
    supervisor = run(DEAF, grace=Grace(0.1, 0.1))
    until_running(supervisor)
    supervisor.stop("cancelled")
    assert ended(supervisor).reason == "cancelled"


def test_force_kills_at_once(run: Run) -> None:
    supervisor = run(DEAF, grace=Grace(600, 600))
    until_running(supervisor)
    supervisor.stop("cancelled", force=True)
    assert ended(supervisor).reason == "cancelled"


def test_a_killed_child_is_lost_and_leaves_no_grandchild(run: Run, tmp_path: Path) -> None:
    supervisor = run(
        """
        import subprocess, time
        def main(job):
            subprocess.Popen(["sleep", "600"])
            job.progress(step=1)
            time.sleep(600)
        """
    )
    until_running(supervisor)
    pid, started = map(int, JobFolder(tmp_path).pid.read_text().split())
    child = processes.Birth(pid, started)
    assert len(processes.group_members(child)) == 2
    os.kill(pid, signal.SIGKILL)
    end = ended(supervisor)
    assert (end.reason, end.exit_code) == ("worker_lost", None)
    assert "SIGKILL" in str(end.message)
    wait_until(lambda: processes.group_members(child) == [], "no process of the group is left")


def test_the_child_sees_its_device_and_its_own_variables_and_no_secret(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    monkeypatch.setenv("SPCLUSTER_TOKEN", "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    program = tmp_path / "code" / "mine.py"
    job = {"kind": "train", "name": "tiny", "worker": str(program), "env": {"FLAVOUR": "mint"}}
    supervisor = run(
        """
        import os
        def main(job):
            env = os.environ
            print(repr(env["CUDA_VISIBLE_DEVICES"]), env["FLAVOUR"], env["OMP_NUM_THREADS"])
            print([value for value in os.environ.values() if "hunter2" in value])
            print([name for name in os.environ if name.startswith("SPCLUSTER_CONTROL")])
        """,
        job=job,
        cpus=3,
    )
    ended(supervisor)
    assert JobFolder(tmp_path).log.read_text().splitlines() == ["'' mint 3", "[]", "[]"]


def test_a_gpu_is_named_by_its_uuid() -> None:
    from dataclasses import replace

    from superpipe_cluster.execution.attempt import Attempt
    from superpipe_cluster.execution.supervisor import child_environment

    gpu = replace(parse_device("cpu:1GiB"), id="GPU-1f", kind="cuda")
    base = {"CUDA_VISIBLE_DEVICES": "", "CUDA_HOME": "/cuda"}
    env = child_environment(Attempt("7", 1, 1, {}, gpu, 1, "", ""), base)
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_HOME"]) == ("GPU-1f", "/cuda")


def test_a_child_without_torch_stays_without_it(run: Run, tmp_path: Path) -> None:
    ended(run("import sys\ndef main(job):\n    print({'torch', 'ray', 'redis'} & set(sys.modules))"))
    assert JobFolder(tmp_path).log.read_text() == "set()\n"


def test_one_that_sleeps_for_too_long_is_killed_and_lost(run: Run, tmp_path: Path) -> None:
    supervisor = run(STEPPING, grace=Grace(5.0, 5.0, sleep_s=0.3))
    until_running(supervisor)
    pid = int(JobFolder(tmp_path).pid.read_text().split()[0])
    os.kill(pid, signal.SIGSTOP)
    end = ended(supervisor)
    assert (end.reason, end.exit_code) == ("worker_lost", None)
    assert "stopped by a signal" in str(end.message)


def test_a_task_of_an_array_knows_its_number(run: Run, tmp_path: Path) -> None:
    ended(
        run(
            "import os\ndef main(job):\n"
            "    print(job.array_index, job.params['array_index'], os.environ['SPCLUSTER_ARRAY_INDEX'])",
            array_index=4,
        )
    )
    assert JobFolder(tmp_path).log.read_text() == "4 4 4\n"

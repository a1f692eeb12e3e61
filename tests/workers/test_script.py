"""Users' own commands as jobs: with `stream(model)` in them, and without any word of the cluster."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import superpipe_cluster
from plain_runs.scripts import five_lines, trained
from streaming.twins import assert_equal
from superpipe_cluster import bundled, spec
from superpipe_cluster.errors import BadInput
from superpipe_cluster.execution.supervisor import Grace, Supervisor
from waiting import wait_until
from worker_runs import Run

WHOLE, HALF = 64 << 20, 2_200_000  # of a model of 2.4 MB, which takes 9.5 MB to train


def script(root: Path, run: Any, files: dict[str, str], budget_bytes: int = WHOLE, **fields: Any) -> Run:
    """A job that runs a command, with the files that came with it."""
    job = {"kind": "script", "name": "s", "run": run, "resources": {"gpu_memory": "1GiB"}, **fields}
    made = Run(root, job, budget_bytes)
    for name, text in files.items():
        path = made.folder.code / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return made


# ---- streaming ----------------------------------------------------------------------------------------


def test_five_lines_are_five() -> None:
    plain, changed = five_lines()  # what they make is the same: see test_every_kind_end_to_end.py
    assert len(set(changed.splitlines()) - set(plain.splitlines())) - 1 == 5  # and the report, below its `if`


def test_a_killed_script_goes_on_from_its_checkpoint_with_the_same_bytes(tmp_path: Path) -> None:
    tiny = spec.load(bundled.job_path("script_tiny"))
    assert isinstance(tiny, spec.ScriptJob)
    files = {"script_tiny.py": bundled.job_path("script_tiny").with_suffix(".py").read_text()}
    assert tiny.travelling() == list(files)
    cut = script(tmp_path / "cut", "python script_tiny.py 20", files, HALF)
    cut.kill_at(cut.start(), 12)
    cut.succeed()
    assert "goes on behind step 10" in cut.log()
    by_hand = trained(files["script_tiny.py"], 20, tmp_path)
    assert_equal(torch.load(cut.output / "model.pt"), by_hand)


#: A script that streams, steps until it is told to stop, and saves.
STEPPING = """
import time, torch, superpipe_cluster
job = superpipe_cluster.current_job()
model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(8)))
with superpipe_cluster.stream(model) as streamer:
    step = 0
    while not job.should_stop:
        model(torch.zeros(1, 64, device=streamer.device))
        step += 1
        job.progress(step=step)
        time.sleep(0.01)
job.save(step, lambda folder: (folder / "step").write_text(str(step)))
"""


def test_budgets_change_at_its_step_boundaries_and_a_stop_is_heard(tmp_path: Path) -> None:
    run = script(tmp_path / "job", "python step.py; exit $?", {"step.py": STEPPING}, 400_000)
    supervisor = run.start()
    until(run, supervisor, "step", 3)
    supervisor.ask_budget(100_000, 1)
    until(run, supervisor, "budget_revision", 1)
    assert (run.progress["budget_bytes"], run.progress["budget_refused"]) == (100_000, None)
    supervisor.ask_pause(True)
    until(run, supervisor, "paused", True)
    supervisor.ask_pause(False)
    supervisor.stop("preempted")
    end = run.finish(supervisor)
    assert (end.reason, end.exit_code) == ("preempted", 0)
    assert list(run.folder.checkpoints.glob("step-*/step"))


def test_two_programs_one_after_the_other_have_the_job_and_a_helper_beside_one_has_not(
    tmp_path: Path,
) -> None:
    program = """
    import subprocess, sys, superpipe_cluster
    job = superpipe_cluster.current_job()
    print(sys.argv[1], job and (job.id, job.name, job.budget_bytes, str(job.output) == job.output.cwd().as_posix()))
    if len(sys.argv) > 2:
        subprocess.run([sys.executable, __file__, "helper"], check=True)
    """
    run = script(tmp_path / "job", "python a.py first with && python a.py second", {"a.py": program})
    run.succeed()
    mine = f"('1', 's', {WHOLE}, True)"
    assert run.log().splitlines() == [f"first {mine}", "helper None", f"second {mine}"]


@pytest.mark.parametrize(
    ("body", "reason", "said"),
    [
        ("superpipe_cluster.stream(None, budget='2GiB')", "bad_input", "stream() asks for 2.0 GiB"),
        (
            "import torch; superpipe_cluster.stream(torch.nn.Linear(99, 99), budget=9000)",
            "never_fits",
            "at least",
        ),
        ("raise MemoryError('host')", "oom", "MemoryError: host"),
        ("raise KeyError('layer')", "error", "exit code 1: KeyError: 'layer'"),
    ],
)
def test_what_went_wrong_in_it_ends_the_job_for_its_reason(
    tmp_path: Path, body: str, reason: str, said: str
) -> None:
    program = f"import superpipe_cluster\njob = superpipe_cluster.current_job()\n{body}\n"
    run = script(tmp_path / "job", ["python", "a.py"], {"a.py": program})
    end = run.finish(run.start())
    assert end.reason == reason
    assert said in str(end.message)
    assert end.exit_code != 0
    assert ("Traceback (most recent call last):" in run.log()) == (reason in ("error", "oom"))


def test_outside_a_job_there_is_none_and_stream_is_the_plain_one() -> None:
    assert superpipe_cluster.current_job() is None
    with superpipe_cluster.stream(torch.nn.Linear(4, 4), "1MiB") as streamer:
        assert (streamer.stats().units, streamer.device.type) == (1, "cpu")
    with superpipe_cluster.stream(torch.nn.Linear(4, 4)) as streamer:
        assert streamer.device.type == "cpu"


# ---- commands that know nothing of the cluster --------------------------------------------------------


def test_a_shell_command_runs_in_the_output_folder_over_copies_of_its_files(tmp_path: Path) -> None:
    files = {"words.txt": "b\na\n", "lib/more.txt": "c\n"}
    run = script(
        tmp_path / "job", "sort words.txt lib/more.txt > sorted.txt && echo $SPCLUSTER_DEVICE", files
    )
    run.succeed()
    assert (run.output / "sorted.txt").read_text() == "a\nb\nc\n"
    assert run.log() == "cpu\n"
    assert not (run.folder.line).exists()


def test_its_exit_code_and_last_words_are_told(tmp_path: Path) -> None:
    run = script(tmp_path / "job", "echo working; echo no such layer >&2; exit 7", {})
    end = run.finish(run.start())
    assert (end.reason, end.exit_code) == ("error", 7)
    assert end.message == "the program left with exit code 7: no such layer"
    assert run.log() == "working\nno such layer\n"


def test_a_wrong_program_is_named_before_anything_runs(tmp_path: Path) -> None:
    run = script(tmp_path / "job", ["pythonn", "train.py"], {})
    end = run.finish(run.start())
    assert end.reason == "bad_input"
    assert "no program 'pythonn'" in str(end.message)
    assert "hint: did you mean python" in run.log()


def test_one_that_is_killed_is_lost_and_tried_again(tmp_path: Path) -> None:
    run = script(tmp_path / "job", "kill -9 $$", {})
    end = run.finish(run.start())
    assert (end.reason, end.exit_code) == ("worker_lost", None)
    assert "SIGKILL" in str(end.message)


def test_one_that_ignores_the_cluster_gets_sigterm_after_its_grace_and_time_to_clean_up(
    tmp_path: Path,
) -> None:
    run = script(
        tmp_path / "job",
        "trap 'echo cleaned > done.txt; exit 0' TERM; touch up; while :; do sleep 0.05; done",
        {},
    )
    supervisor = run.start(Grace(0.1, 60.0))
    wait_until((run.output / "up").exists, "the command runs", 60)
    supervisor.stop("time_limit")
    end = run.finish(supervisor)
    assert (end.reason, end.message, end.exit_code) == ("time_limit", None, 0)
    assert (run.output / "done.txt").read_text() == "cleaned\n"


def until(run: Run, supervisor: Supervisor, name: str, value: Any) -> None:
    def is_there() -> bool:
        run.progress.update(supervisor.take_progress())
        now = run.progress.get(name)
        return now == value if isinstance(value, bool) else (now or 0) >= value

    wait_until(is_there, f"{name} is {value}", 60)


# ---- environments -------------------------------------------------------------------------------------


def test_a_venv_is_used_as_if_it_were_active(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    program = "import sys, os; print(sys.prefix == os.environ['VIRTUAL_ENV'])"
    run = script(tmp_path / "job", ["python", "-c", program], {}, venv=str(venv))
    run.succeed()
    assert run.log() == "True\n"
    broken = script(tmp_path / "broken", "python -V", {}, venv=str(tmp_path))
    assert "has no bin/python" in str(broken.finish(broken.start()).message)


def test_packages_are_installed_once_over_the_clusters_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPCLUSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel = tmp_path / "made_up-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made_up.py", "VALUE = 42\n")
        archive.writestr("made_up-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1\n")
        archive.writestr(
            "made_up-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("made_up-1.dist-info/RECORD", "")
    program = (
        "import made_up, superpipe_cluster, importlib.util as u; "
        "print(made_up.VALUE, superpipe_cluster.current_job().id, u.find_spec('torch') is not None)"
    )
    for number in (1, 2):
        run = script(tmp_path / f"job{number}", ["python", "-c", program], {}, pip=[str(wheel)])
        run.succeed()
        assert run.log().endswith("42 1 True\n")
        assert ("Successfully installed made-up-1" in run.log()) == (number == 1)
    wrong = script(tmp_path / "wrong", "python -V", {}, pip=["spcluster-no-such-package"])
    end = wrong.finish(wrong.start())
    assert (end.reason, end.message) == ("bad_input", "pip: cannot install spcluster-no-such-package")


# ---- what is said before it runs ----------------------------------------------------------------------


def write(folder: Path, text: str, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    path = folder / "job.yaml"
    path.write_text(f"kind: script\nresources: {{gpu_memory: 1GiB}}\n{text}")
    return path


def test_the_files_that_a_command_needs_are_found(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "run: LR=1 python ./train.py --config=conf/a.yaml --data /data/x.bin 2>&1 | tee log.txt > out.txt\n"
        "files: [lib, 'tables/*.csv']\n",
        "train.py", "conf/a.yaml", "lib/deep/b.txt", "tables/one.csv", "tables/two.txt", "out.txt", "other.py",
        "mine/__init__.py", "mine/part.py", "beside.py", "deeper.py",
    )  # fmt: skip
    (tmp_path / "train.py").write_text("import mine.part, torch\nfrom beside import x\n")
    (tmp_path / "beside.py").write_text("def f():\n    import deeper\n")
    job = spec.load(path)
    assert isinstance(job, spec.ScriptJob)
    assert job.travelling() == [
        "beside.py", "conf/a.yaml", "deeper.py", "lib/deep/b.txt", "mine/__init__.py", "mine/part.py",
        "tables/one.csv", "train.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: python trian.py", "did you mean {}/train.py?"),
        ("run: ['python', '-u', 'trian.py']", "no such file: {}/trian.py"),
        ("run: A=1 ./go", "no such file: {}/go"),
        ("run: python train.py\nfiles: ['*.csv']", "files[0]: no file matches {}/*.csv"),
        ("run: python train.py\nfiles: [../x]", "../x is not inside {}"),
        ("run: python train.py\nvenv: ./env", "no such folder: {}/env"),
        ("run: ''", "expected a command"),
        ("run: ls\nvenv: .\npip: [x]", "a job has one environment"),
        ("run: ls\nresources: {host_memory: 1GiB}", "needs a size"),
    ],
)
def test_mistakes_are_named_before_it_is_submitted(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, "", "train.py")
    path.write_text(
        f"kind: script\n{text}\n" + ("" if "resources" in text else "resources: {gpu_memory: 1GiB}\n")
    )
    with pytest.raises(BadInput) as caught:
        spec.load(path)
    shown = "\n".join([caught.value.message, caught.value.hint or "", *getattr(caught.value, "problems", ())])
    assert said.format(tmp_path) in shown


def test_commands_with_dollars_and_options_are_left_to_run(tmp_path: Path) -> None:
    for command in (
        "python -m http.server",
        "python -c 'print(1)'",
        "python $HOME/x.py",
        "accelerate launch x",
    ):
        spec.load(write(tmp_path, f'run: "{command}"\n'))

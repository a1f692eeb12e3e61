"""`up` and `down` with nothing replaced: Redis, Ray, the head and a job of one's own program."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import PROGRAM, Said, environment, process, spcluster
from superpipe_cluster.cli.options import DEFAULT_PORT
from superpipe_cluster.head import cluster
from waiting import wait_until

#: Counts to `params.to`, one line each, but waits in the middle until the file `params.gate` is there.
COUNTING = """\
import os, time

def main(job):
    for number in range(job.params["to"]):
        print("number", number, flush=True)
        job.progress(step=number + 1, steps=job.params["to"])
        while number == 2 and not os.path.exists(job.params["gate"]) and not job.should_stop:
            time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # Not below pytest's own folder: the path of a unix socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="spc-") as folder:
        yield Path(folder) / "home"
        spcluster("down", SPCLUSTER_HOME=str(Path(folder) / "home"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _processes_of(home: Path) -> list[str]:
    """The command lines of living processes that have this home in their arguments or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(home).encode() in known:
            found.append(known.split(b"\0")[0].decode())
    return found


def test_the_default_port_is_the_heads() -> None:
    assert DEFAULT_PORT == cluster.DEFAULT_PORT


@pytest.mark.parametrize("device", ["cpu:3", "cpu:0GiB@1GB/s", "gpu", "cuda:99"])
def test_up_refuses_devices_that_are_none(tmp_path: Path, device: str) -> None:
    said = spcluster("up", "--device", device, SPCLUSTER_HOME=str(tmp_path / "home"))
    assert said.returncode == 2
    assert said.stderr.startswith("error: ")
    assert "hint: " in said.stderr
    assert not (tmp_path / "home" / "cluster.json").exists()


def test_up_refuses_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = spcluster("up", "--port", str(port), SPCLUSTER_HOME=str(tmp_path / "home"))
    assert said.returncode == 5
    assert f"port {port}" in said.stderr
    assert not (tmp_path / "home" / "cluster.json").exists()


def test_down_without_a_cluster(tmp_path: Path) -> None:
    said = spcluster("down", SPCLUSTER_HOME=str(tmp_path))
    assert said.returncode == 5
    assert "`spcluster up`" in said.stderr


@pytest.mark.timeout(240)
def test_a_day_of_a_cluster(home: Path, tmp_path: Path) -> None:
    def ask(*arguments: str) -> Said:
        return process(*arguments, SPCLUSTER_HOME=str(home))

    def ask_here(*arguments: str) -> Said:
        return spcluster(*arguments, SPCLUSTER_HOME=str(home))

    port = _free_port()
    up = ask("up", "--device", "cpu:1GiB@1GB/s", "--port", str(port), "-o", "json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["url"] == f"http://127.0.0.1:{port}"
    assert (home.stat().st_mode & 0o777, (home / "token").stat().st_mode & 0o777) == (0o700, 0o600)

    second = ask_here("up")
    assert (second.returncode, second.stdout) == (5, "")
    assert "runs already" in second.stderr
    assert ask_here("doctor").returncode == 0

    gate = tmp_path / "gate"
    (tmp_path / "count.py").write_text(COUNTING, encoding="utf-8")
    (tmp_path / "count.yaml").write_text(
        "kind: train\n"
        "worker: ./count.py\n"
        "resources: {gpu_memory: 100MiB}\n"
        f"params: {{to: 5, gate: {gate}}}\n",
        encoding="utf-8",
    )
    with subprocess.Popen(
        [*PROGRAM, "submit", str(tmp_path / "count.yaml"), "-f", "-q"],
        env=environment(SPCLUSTER_HOME=str(home)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        notes: list[str] = []
        reader = threading.Thread(target=lambda errors: notes.extend(errors), args=(following.stderr,))
        reader.start()
        assert [following.stdout.readline() for _ in range(2)] == ["1\n", "number 0\n"]
        assert ask("down", "--head-only").returncode == 0
        gate.touch()  # the job goes on while nobody is at the head
        wait_until(lambda: any("trying again" in note for note in notes), "the follower announces the outage")
        back = ask("up")
        assert back.returncode == 0, back.stderr
        assert "is back" in back.stdout
        assert following.wait(timeout=60) == 0
        assert following.stdout.read() == "".join(f"number {number}\n" for number in range(1, 5))
        reader.join()
    assert re.search(r"job 1 \(count\) succeeded after", notes[-1])
    (done,) = json.loads(ask_here("queue", "-a", "-o", "json").stdout)
    assert (done["state"], done["attempt"], done["step"]) == ("SUCCEEDED", 1, 5)

    down = ask("down", "--drain")  # nothing runs any more, so that it takes no longer
    assert down.returncode == 0, down.stderr
    assert "waiting for running jobs to end" in down.stderr
    assert not (home / "cluster.json").exists()
    wait_until(lambda: not _processes_of(home), f"no process is left: {_processes_of(home)}")

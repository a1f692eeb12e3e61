"""`up --foreground` as a process: it stays, and takes the cluster with it; it ends when the cluster does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import PROGRAM, Said, environment, process, spcluster
from superpipe_cluster.head import own_ray
from superpipe_cluster.head.home import Home
from superpipe_cluster.machine import processes
from superpipe_cluster.store import embedded


@pytest.fixture
def home() -> Iterator[Home]:
    # Not below pytest's own folder: the path of a unix socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="spc-") as folder:
        yield Home(Path(folder) / "home")
        spcluster("down", SPCLUSTER_HOME=f"{folder}/home")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Foreground:
    """A running `spcluster up --foreground`."""

    def __init__(self, home: Home, **changes: str) -> None:
        port = free_port()
        self.process = subprocess.Popen(
            [*PROGRAM, "up", "--foreground", "--device", "cpu:1GiB@1GB/s", "--port", str(port)],
            env=environment(SPCLUSTER_HOME=str(home.root), **changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        assert self.said == f"the cluster runs at http://127.0.0.1:{port}\n", self.ended()

    def ended(self) -> Said:
        try:
            out, err = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return Said(self.process.returncode, out, err)


def left_of(home: Home) -> list[str]:
    """Titles of the processes that carry the cluster's mark, or the home's path in their command line."""
    marked = processes.marked(own_ray.MARK, str(home.root))
    titles = {each.pid: processes.title(each.pid) for each in processes.all_processes()}
    return [title for pid, title in titles.items() if pid in marked or str(home.root) in title]


def test_ctrl_c_ends_it_and_the_cluster(home: Home) -> None:
    foreground = Foreground(home)
    assert spcluster("queue", SPCLUSTER_HOME=str(home.root)).returncode == 0
    foreground.process.send_signal(signal.SIGINT)
    assert_stopped(foreground, home)


def assert_stopped(foreground: Foreground, home: Home) -> None:
    ended = foreground.ended()
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.endswith("the cluster is stopped\n")
    assert left_of(home) == []
    assert not home.cluster.exists()


def test_it_fails_when_ray_has_died_and_leaves_nothing(home: Home) -> None:
    foreground = Foreground(home)
    rays = processes.marked(own_ray.MARK, str(home.root))
    (gcs,) = (pid for pid in rays if processes.title(pid).split(" ")[0].endswith("/gcs_server"))
    os.kill(gcs, signal.SIGKILL)
    ended = foreground.ended()
    assert ended.returncode == 1
    assert "error: the cluster has died: Ray has ended\nhint: " in ended.stderr
    assert left_of(home) == []


@pytest.mark.slow
def test_somebody_elses_down_ends_it_in_peace(home: Home) -> None:
    foreground = Foreground(home)
    assert process("down", SPCLUSTER_HOME=str(home.root)).returncode == 0
    assert foreground.ended().returncode == 0


def test_sigterm_ends_it_and_redis_may_be_named_by_the_environment_which_jobs_do_not_inherit(
    home: Home, tmp_path_factory: pytest.TempPathFactory
) -> None:
    redis = embedded.start(tmp_path_factory.mktemp("r"))
    try:
        foreground = Foreground(home, SPCLUSTER_REDIS_URL=redis.url)
        assert home.read_cluster().redis_url == redis.url
        assert home.read_cluster().redis_pid is None
        rays = processes.marked(own_ray.MARK, str(home.root))
        assert rays
        variables = [Path(f"/proc/{pid}/environ").read_bytes() for pid in rays]
        assert not any(redis.url.encode() in each for each in variables)
        foreground.process.terminate()
        assert_stopped(foreground, home)
        assert processes.process(redis.pid) is not None  # somebody else's, and stays
    finally:
        embedded.stop(redis.url, redis.pid)

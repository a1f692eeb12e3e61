"""A real cluster: Ray, Redis, HTTP and processes that are killed. One cluster for all tests, in their order."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from superpipe_cluster import spec
from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.client import Client
from superpipe_cluster.errors import AlreadyRunning, NotRunning, StartFailed, StoreUnavailable
from superpipe_cluster.execution.ray_executor import DEVICES_LABEL
from superpipe_cluster.execution.remains import last_child
from superpipe_cluster.head import own_ray
from superpipe_cluster.head.cluster import UpOptions, down, up
from superpipe_cluster.head.home import Home
from superpipe_cluster.machine import processes
from waiting import wait_until

#: Counts until it is released, telling and saving as it goes; prints each step once.
COUNTING = """
import time
from pathlib import Path

def main(job):
    latest = job.latest_checkpoint()
    step = int((latest / "step").read_text()) if latest else 0
    print(f"attempt {job.attempt} goes on from {step}")
    while not Path(job.params["release"]).exists():
        step += 1
        print(f"step {step}")
        job.progress(step=step, steps=10**6, loss=1 / step)
        if step % 5 == 0 or job.should_stop:
            job.save(step, lambda folder: (folder / "step").write_text(str(step)))
        if job.should_stop:
            return
        time.sleep(0.02)
    (job.output / "result").write_text(str(step))
    print("released")
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Cluster:
    """The cluster under test, as its user and as its enemy."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        self.options = UpOptions(self.home.root, port=free_port(), devices=("cpu:1GiB@2GB/s",))
        self.release = root / "release"
        self.program = root / "counting.py"
        self.program.write_text(dedent(COUNTING))
        up(self.options)
        self.client = self.new_client()
        self.sessions: set[int | None] = {self.home.read_cluster().ray.session}

    def up(self) -> None:
        up(self.options)
        self.sessions.add(self.home.read_cluster().ray.session)
        self.client.close()
        self.client = self.new_client()

    def new_client(self, **options: float) -> Client:
        return Client(self.home.read_cluster().url, self.home.token.read_text(), **options)

    def down(self, **how: bool) -> None:
        self.client.close()
        down(self.home.root, **how)

    def submit(self, name: str, memory: str = "100MiB") -> JobDetail:
        job = spec.parse(
            {
                "kind": "train",
                "name": name,
                "worker": str(self.program),
                "resources": {"gpu_memory": memory},
                "params": {"release": str(self.release / name)},
            }
        )
        self.release.mkdir(exist_ok=True)
        return self.client.submit(job)

    def let_go(self, job: JobDetail) -> None:
        (self.release / job.name).touch()

    def until(self, job: JobDetail, holds: Callable[[JobDetail], bool], description: str) -> JobDetail:
        def look() -> JobDetail | None:
            seen = self.client.show(job.id)
            return seen if holds(seen) else None

        return wait_until(look, f"job {job.id}: {description}", 40) or job

    def until_running(self, job: JobDetail, attempt: int = 1, step: int = 5) -> JobDetail:
        return self.until(
            job,
            lambda seen: seen.state == "RUNNING" and seen.attempt == attempt and seen.step >= step,
            f"runs in attempt {attempt} and is at step {step}",
        )

    def finish(self, job: JobDetail) -> JobDetail:
        self.let_go(job)
        ended = self.client.wait(job.id, timeout_s=40)
        assert (ended.state, ended.reason) == ("SUCCEEDED", "ok"), ended.message
        return ended

    def log(self, job: JobDetail) -> list[str]:
        return "".join(piece.text for piece in self.client.logs(job.id)).splitlines()

    def head_pid(self) -> int:
        return int(self.home.head_pid.read_text().split()[0])

    def left_over(self) -> list[str]:
        """Every process that belongs to the cluster by mark, session or the path in its command line."""
        ours = set(processes.marked(own_ray.MARK, str(self.home.root)))
        return [
            processes.title(entry.pid)
            for entry in processes.all_processes()
            if entry.pid in ours
            or entry.session in self.sessions
            or str(self.home.root) in processes.title(entry.pid)
        ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        # Most people's Pythons keep bytecode, beside the programs of jobs too.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        made = Cluster(tmp_path_factory.mktemp("lab"))
        yield made
        if made.home.cluster.exists():
            made.down()


@contextmanager
def second_node(home: Home, options: list[str]) -> Iterator[int]:
    """Another node of the cluster's Ray, on this machine; the session that its processes are in."""
    # Ray would look for 127.0.0.1 under the machine's own address, where our Ray does not listen.
    program = (
        "from ray._private import services; services.resolve_ip_for_localhost = lambda host: host;"
        "from ray.scripts.scripts import main; main()"
    )
    place = home.read_cluster().ray
    started = subprocess.Popen(
        [
            *(sys.executable, "-c", program, "start", f"--address={place.address}", *options),
            *("--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"),
            *("--dashboard-agent-listen-port=0", "--include-log-monitor=false", "--disable-usage-stats"),
            *("--num-cpus=0", "--num-gpus=0", "--object-store-memory=100000000"),
        ],
        env={
            **own_ray.environment(home, os.environ),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            own_ray.MARK: str(home.root),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert started.wait(timeout=40) == 0
        yield started.pid
    finally:
        end_session(started.pid)
        started.wait(timeout=10)


def end_session(session: int) -> None:
    # A raylet that is told to end says so, and Ray need not find out.
    assert not processes.end(
        lambda: [each.pid for each in processes.all_processes() if each.session == session], grace_s=5
    )


def steps_of(log: list[str]) -> list[int]:
    return [int(match[1]) for line in log if (match := re.fullmatch(r"step (\d+)", line))]


def test_secrets_are_private_and_the_api_is_on_loopback(cluster: Cluster) -> None:
    home = cluster.home
    assert home.root.stat().st_mode & 0o777 == 0o700
    for path in (home.token, home.ray_token, home.cluster):
        assert path.stat().st_mode & 0o777 == 0o600
    assert cluster.client.health().status == "ok"
    assert home.token.read_text() not in home.head_log.read_text()


def test_a_job_runs_to_its_end(cluster: Cluster) -> None:
    job = cluster.submit("plain")
    cluster.until_running(job)
    (device,) = cluster.client.devices().devices
    assert (device.used_bytes, [each.id for each in device.jobs]) == (100 * 2**20, [job.id])
    ended = cluster.finish(job)
    assert ended.attempt == 1
    assert ended.first_loss == 1.0
    log = cluster.log(job)
    assert (log[0], log[-1]) == ("attempt 1 goes on from 0", "released")
    assert (Path(ended.output or "") / "result").read_text() == str(steps_of(log)[-1])
    assert cluster.client.devices().devices[0].used_bytes == 0


def test_a_killed_worker_goes_on_from_its_checkpoint(cluster: Cluster) -> None:
    job = cluster.submit("killed")
    saved = cluster.until(job, lambda seen: (seen.checkpoint_step or 0) >= 5, "has saved").checkpoint_step
    child = last_child(cluster.home.job(job.id))
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    cluster.until_running(job, attempt=2)
    cluster.finish(job)
    second = next(line for line in cluster.log(job) if line.startswith("attempt 2"))
    assert int(second.split()[-1]) >= (saved or 0)


def test_a_killed_head_comes_back_to_jobs_that_went_on(cluster: Cluster) -> None:
    job = cluster.submit("orphan")
    before = cluster.until_running(job)
    head = cluster.head_pid()
    os.kill(head, signal.SIGKILL)
    wait_until(lambda: cluster.head_pid() != head, "Ray has started another head", 30)
    after = cluster.until_running(job, step=before.step + 20)
    assert after.attempt == 1
    cluster.finish(job)
    steps = steps_of(cluster.log(job))
    assert steps == list(range(1, len(steps) + 1))


def test_the_head_alone_is_stopped_and_brought_back(cluster: Cluster) -> None:
    job = cluster.submit("adopted")
    before = cluster.until_running(job)
    cluster.down(head_only=True)
    log = cluster.home.job(job.id).log
    size = log.stat().st_size
    wait_until(lambda: log.stat().st_size > size, "the job writes on without a head")
    cluster.up()
    assert cluster.until_running(job, step=before.step + 20).attempt == 1
    cluster.finish(job)
    steps = steps_of(cluster.log(job))
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.parametrize("has_devices", [pytest.param(False, marks=pytest.mark.slow), True])
def test_head_and_workers_stay_on_their_nodes(cluster: Cluster, has_devices: bool) -> None:
    ray = cluster.home.read_cluster().ray

    def session_of_worker(job: JobDetail) -> int:
        child = last_child(cluster.home.job(job.id))
        found = processes.process(child.pid) if child else None
        actor = processes.process(found.parent) if found else None
        assert actor is not None
        return actor.session

    with second_node(cluster.home, ["--labels", f"{DEVICES_LABEL}=all"] if has_devices else []) as second:
        job = cluster.submit(f"placed-{int(has_devices)}")
        cluster.until_running(job)
        assert session_of_worker(job) == (second if has_devices else ray.session)
        head = cluster.head_pid()
        os.kill(head, signal.SIGKILL)
        wait_until(lambda: cluster.head_pid() != head, "Ray has started another head", 30)
        restarted = processes.process(cluster.head_pid())
        assert restarted is not None
        assert restarted.session == ray.session
        end_session(second)
        if has_devices:
            cluster.until_running(job, attempt=2)
            assert session_of_worker(job) == ray.session
        cluster.finish(job)


def test_a_cancelled_job_saves_and_ends(cluster: Cluster) -> None:
    job = cluster.submit("cancelled")
    cluster.until_running(job)
    assert cluster.client.cancel(job.id).state == "STOPPING"
    ended = cluster.client.wait(job.id, timeout_s=30)
    assert (ended.state, ended.reason, ended.exit_code) == ("CANCELLED", "cancelled", 0)
    assert ended.checkpoint_step == steps_of(cluster.log(job))[-1]


def test_a_second_up_is_refused(cluster: Cluster) -> None:
    with pytest.raises(AlreadyRunning) as caught:
        cluster.up()
    assert "down" in str(caught.value.hint)
    assert cluster.client.health().status == "ok"


def test_a_port_in_use_is_refused_and_nothing_is_left(cluster: Cluster, tmp_path: Path) -> None:
    options = UpOptions(tmp_path / "other", port=cluster.options.port)
    with pytest.raises(StartFailed, match=str(options.port)) as caught:
        up(options)
    assert "--port" in str(caught.value.hint)
    assert processes.marked(own_ray.MARK, str(options.home)) == []
    with pytest.raises(NotRunning):
        down(options.home)


def test_down_sends_jobs_back_to_the_queue_and_up_goes_on(cluster: Cluster) -> None:
    job = cluster.submit("overnight")
    cluster.until_running(job)
    cluster.down()
    assert cluster.left_over() == []
    assert not cluster.home.cluster.exists()
    cluster.up()
    cluster.until_running(job, attempt=2)
    cluster.finish(job)
    steps = steps_of(cluster.log(job))
    assert steps == list(range(1, len(steps) + 1))


def test_down_may_let_running_jobs_come_to_their_end(cluster: Cluster) -> None:
    running = cluster.submit("last-of-the-day")
    waiting = cluster.submit("tomorrow", memory="1GiB")
    cluster.until_running(running)
    closing = threading.Thread(target=lambda: cluster.down(drain=True))
    closing.start()
    wait_until(lambda: "(finish)" in cluster.home.head_log.read_text(), "the head has been told", 40)
    log = cluster.home.job(running.id).log
    size = log.stat().st_size
    wait_until(lambda: log.stat().st_size > size + 100, "it goes on while the cluster waits for it")
    cluster.let_go(running)
    closing.join(60)
    assert cluster.left_over() == []
    cluster.up()
    ended = cluster.client.wait(running.id, timeout_s=40)
    assert (ended.state, ended.attempt) == ("SUCCEEDED", 1)
    cluster.until_running(waiting, attempt=1)
    cluster.finish(waiting)


@pytest.mark.parametrize("part", ["/raylet", pytest.param("/gcs_server", marks=pytest.mark.slow)])
def test_after_a_part_of_ray_was_killed_up_goes_on_from_the_checkpoint(cluster: Cluster, part: str) -> None:
    job = cluster.submit(f"after-{part[1:4]}")
    saved = cluster.until(job, lambda seen: (seen.checkpoint_step or 0) >= 5, "has saved").checkpoint_step
    for pid in processes.marked(own_ray.MARK, str(cluster.home.root)):
        if processes.title(pid).split(" ")[0].endswith(part):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not own_ray.is_running(cluster.home), "the part is gone")
    cluster.up()
    cluster.until_running(job, attempt=2)
    cluster.finish(job)
    second = next(line for line in cluster.log(job) if line.startswith("attempt 2"))
    assert int(second.split()[-1]) >= (saved or 0)


def test_without_redis_a_submit_is_refused_whole(cluster: Cluster) -> None:
    pid = cluster.home.read_cluster().redis_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    folders = set(cluster.home.jobs.iterdir())
    job = spec.parse({"kind": "train", "name": "lost", "worker": str(cluster.program)})
    with cluster.new_client(patience_s=0) as client, pytest.raises(StoreUnavailable):
        client.submit(job)
    assert set(cluster.home.jobs.iterdir()) == folders
    cluster.up()  # brings Redis back
    assert cluster.client.health().status == "ok"


def test_down_leaves_no_process_even_after_parts_were_killed(cluster: Cluster) -> None:
    job = cluster.submit("last")
    cluster.until_running(job)
    for pid in processes.marked(own_ray.MARK, str(cluster.home.root)):
        if processes.title(pid).split(" ")[0].endswith("/raylet"):
            os.kill(pid, signal.SIGKILL)
    os.kill(cluster.head_pid(), signal.SIGKILL)
    cluster.down()
    assert cluster.left_over() == []
    with pytest.raises(NotRunning):
        down(cluster.home.root)

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from superpipe_cluster.machine import processes
from waiting import wait_until

#: A leader that starts a child of its own, says both are up, and waits.
FAMILY = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)\n"
)


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        stdout=subprocess.PIPE,
        process_group=0,
        env={**os.environ, "SPCLUSTER_TEST_MARK": f"family of {os.getpid()}"},
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    yield leader, child
    processes.end(lambda: [pid for pid in (leader.pid, child) if processes.process(pid)], grace_s=0)
    leader.wait()
    leader.stdout.close()


def test_a_group_is_found_with_and_without_its_leader(family: tuple[subprocess.Popen[bytes], int]) -> None:
    leader, child = family
    born = processes.birth(leader.pid)
    assert born is not None
    assert set(processes.group_members(born)) == {leader.pid, child}
    leader.kill()
    leader.wait()
    assert not processes.is_alive(born)
    assert processes.group_members(born) == [child]


def test_a_number_that_was_given_to_another_process_is_not_the_same() -> None:
    stranger = processes.Birth(os.getpid(), started=1)
    assert not processes.is_alive(stranger)
    assert processes.group_members(stranger) == []


def test_processes_are_found_by_their_mark_and_ended(family: tuple[subprocess.Popen[bytes], int]) -> None:
    leader, child = family
    mark = f"family of {os.getpid()}"
    assert set(processes.marked("SPCLUSTER_TEST_MARK", mark)) == {leader.pid, child}
    assert processes.end(lambda: processes.marked("SPCLUSTER_TEST_MARK", mark), grace_s=2) == []
    wait_until(lambda: leader.poll() is not None, "the leader has ended")


def test_one_that_is_stopped_is_told_from_one_that_waits(
    family: tuple[subprocess.Popen[bytes], int],
) -> None:
    _, child = family
    assert not processes.is_stopped(child)
    os.kill(child, signal.SIGSTOP)
    wait_until(lambda: processes.is_stopped(child), "it stands still")
    os.kill(child, signal.SIGCONT)
    wait_until(lambda: not processes.is_stopped(child), "it goes on")
    assert not processes.is_stopped(2**22 + 1)


def test_a_process_lives_on_in_its_other_threads() -> None:
    program = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,)).start()\n"
        "print(flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    headless = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert headless.stdout is not None
    headless.stdout.readline()
    wait_until(lambda: is_zombie(headless.pid), "its first thread has ended")
    assert processes.process(headless.pid) is not None
    headless.kill()
    wait_until(lambda: processes.process(headless.pid) is None, "it has gone")
    headless.wait()
    headless.stdout.close()


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

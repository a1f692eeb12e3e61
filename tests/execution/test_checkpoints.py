from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from execution.programs import prepare
from superpipe_cluster import spec
from superpipe_cluster.errors import StaleWrite
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.checkpoints import Checkpoints
from superpipe_cluster.execution.control import ChildLine, LineReader, encode, receive
from superpipe_cluster.execution.job import Job
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import Supervisor
from waiting import wait_until


class Inside:
    """A `Job` as a program would have it, and the actor's end of its line."""

    def __init__(self, folder: JobFolder) -> None:
        attempt = Attempt.read(folder.attempt)
        self.line, theirs = socket.socketpair()
        self._theirs = theirs
        self.job = Job(attempt, spec.parse(attempt.job), folder, ChildLine(theirs))

    def said(self) -> list[dict[str, Any]]:
        return receive(self.line, LineReader()) or []

    def close(self) -> None:
        self.line.close()
        self._theirs.close()


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    made = Inside(prepare(tmp_path, "def main(job): pass"))
    yield made
    made.close()


def fill(text: str) -> Any:
    return lambda folder: (folder / "weights").write_text(text)


def names(job: Job) -> list[str]:
    return sorted(path.name for path in job.checkpoint_dir.iterdir() if path.is_dir())


def test_a_checkpoint_is_committed_and_told(inside: Inside) -> None:
    assert inside.job.latest_checkpoint() is None
    inside.job.save(40, fill("forty"))
    latest = inside.job.latest_checkpoint()
    assert latest is not None
    assert latest.name == "step-00000040-e1"
    assert (latest / "weights").read_text() == "forty"
    assert {"type": "progress", "checkpoint_step": 40} in inside.said()


def test_the_last_two_are_kept(inside: Inside) -> None:
    for step in (5, 50, 100, 1000):
        inside.job.save(step, fill(str(step)))
    assert names(inside.job) == ["step-00000100-e1", "step-00001000-e1"]


def test_one_that_fails_while_it_is_written_leaves_the_last_one_standing(inside: Inside) -> None:
    inside.job.save(1, fill("one"))

    def half(folder: Path) -> None:
        (folder / "weights").write_text("ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        inside.job.save(2, half)
    assert names(inside.job) == ["step-00000001-e1"]  # what was written of it is gone, and its room free
    latest = inside.job.latest_checkpoint()
    assert latest is not None
    assert latest.name == "step-00000001-e1"


def test_the_same_step_again_replaces_it(inside: Inside) -> None:
    inside.job.save(1, fill("old"))
    inside.job.save(1, fill("new"))
    latest = inside.job.latest_checkpoint()
    assert latest is not None
    assert (latest / "weights").read_text() == "new"
    inside.job.save(1, fill("newest"))
    assert len(names(inside.job)) == 2


def test_an_attempt_that_has_been_replaced_cannot_commit(inside: Inside, tmp_path: Path) -> None:
    inside.job.save(1, fill("mine"))
    JobFolder(tmp_path).epoch.write_text("2")
    with pytest.raises(StaleWrite):
        inside.job.save(2, fill("too late"))
    latest = inside.job.latest_checkpoint()
    assert latest is not None
    assert latest.name == "step-00000001-e1"


def test_readers_follow_the_pointer_and_nothing_else(inside: Inside) -> None:
    inside.job.save(1, fill("one"))
    for name in ("step-00000009-e1", "step-00000002-e9"):
        (inside.job.checkpoint_dir / name).mkdir()
    latest = inside.job.latest_checkpoint()
    assert latest is not None
    assert latest.name == "step-00000001-e1"
    inside.job.save(2, fill("two"))
    assert names(inside.job) == ["step-00000001-e1", "step-00000002-e1"]


def test_a_pointer_of_a_newer_attempt_is_not_replaced(inside: Inside, tmp_path: Path) -> None:
    newer = Checkpoints(JobFolder(tmp_path), "7", 2)
    JobFolder(tmp_path).epoch.write_text("2")
    committed = newer.commit(5, fill("newer"))
    JobFolder(tmp_path).epoch.write_text(
        "1"
    )  # as a process sees it that was stopped right after it had looked
    with pytest.raises(StaleWrite):
        inside.job.save(9, fill("too late"))
    assert newer.latest() == committed


def test_an_attempt_begins_without_what_was_never_committed(inside: Inside, tmp_path: Path) -> None:
    inside.job.save(1, fill("one"))
    (inside.job.checkpoint_dir / "step-00000002-e1").mkdir()
    (inside.job.checkpoint_dir / ".CURRENT.123").touch()
    Checkpoints(JobFolder(tmp_path), "7", 2).tidy()
    assert sorted(path.name for path in inside.job.checkpoint_dir.iterdir()) == [
        "CURRENT",
        "step-00000001-e1",
    ]


def test_what_a_program_hears_about_stopping(inside: Inside) -> None:
    assert not inside.job.should_stop
    assert inside.job.stopped_for is None
    inside.line.sendall(encode({"type": "stop", "why": "time_limit"}))
    wait_until(lambda: inside.job.should_stop, "the stop has arrived")
    assert inside.job.stopped_for == "time_limit"


def test_progress_is_sent_a_few_times_a_second_and_nothing_is_lost(inside: Inside) -> None:
    for step in range(1, 1001):
        inside.job.progress(step=step, loss=float(step))
    inside.job.flush()
    messages = inside.said()
    assert len(messages) < 20
    assert messages[0]["step"] == 1
    assert (messages[-1]["step"], messages[-1]["metrics"]) == (1000, {"loss": 1000.0})


COUNTING = """
import os
def main(job):
    latest = job.latest_checkpoint()
    step = int((latest / "step").read_text()) if latest else 0
    while step < 6:
        step += 1
        print("step", step, flush=True)
        job.save(step, lambda folder: (folder / "step").write_text(str(step)))
        if step == 3 and job.attempt == 1:
            os.kill(os.getpid(), 9)
"""


def test_a_second_attempt_goes_on_where_the_first_was_killed(tmp_path: Path) -> None:
    for attempt, reason in ((1, "worker_lost"), (2, "ok")):
        folder = prepare(tmp_path, COUNTING, attempt=attempt, epoch=attempt)
        supervisor = Supervisor(tmp_path)
        supervisor.start()
        end = supervisor.wait(20)
        assert end is not None
        assert end.reason == reason
    assert folder.log.read_text().split() == [word for step in range(1, 7) for word in ("step", str(step))]


def test_two_attempts_never_write_together(tmp_path: Path) -> None:
    import fcntl

    folder = prepare(tmp_path, "def main(job):\n    print('in')")
    with folder.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        supervisor = Supervisor(tmp_path)
        supervisor.start()
        assert supervisor.wait(1.5) is None
        assert folder.log.read_text() == ""
    end = supervisor.wait(20)
    assert end is not None
    assert (end.reason, folder.log.read_text()) == ("ok", "in\n")


def test_a_child_that_comes_too_late_does_nothing(tmp_path: Path) -> None:
    folder = prepare(tmp_path, "def main(job):\n    print('in')")
    supervisor = Supervisor(tmp_path)
    prepare(tmp_path, "def main(job):\n    print('in')", epoch=2)
    supervisor.start()
    end = supervisor.wait(20)
    assert end is not None
    assert end.reason == "worker_lost"
    assert "in\n" not in folder.log.read_text()

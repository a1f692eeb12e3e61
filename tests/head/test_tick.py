from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from head.fakes import GIB, Lab
from superpipe_cluster.errors import StartFailed
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.interface import Worker
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.head.care import SILENCE_LIMIT_S
from superpipe_cluster.head.tick import Drain
from superpipe_cluster.lifecycle.events import PauseAsked, StopAsked
from superpipe_cluster.store.writes import advance


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "home")


def test_a_job_goes_its_way(lab: Lab) -> None:
    job = lab.submit(gib=4)
    lab.tick.run()
    placed = lab.get(job)
    assert (placed.state, placed.device, placed.budget_bytes) == ("STARTING", "cpu:0", 4 * GIB)
    assert lab.executor.started == [Worker(job.id, 1)]
    attempt = Attempt.read(lab.folder(job).attempt)
    assert (attempt.epoch, attempt.budget_bytes, attempt.device.id) == (1, 4 * GIB, "cpu:0")
    lab.tell(job, running=True)
    assert lab.state(job) == "RUNNING"
    lab.tell(job, step=3, steps=9, metrics={"loss": 2.5})
    assert (lab.get(job).step, lab.get(job).first_loss) == (3, 2.5)
    lab.end(job)
    assert lab.state(job) == "SUCCEEDED"
    lab.tick.run()
    assert lab.executor.alive() == frozenset()


def test_what_does_not_fit_waits_with_its_reason_and_follows(lab: Lab) -> None:
    first, second = lab.submit(gib=6), lab.submit(gib=6)
    lab.tick.run()
    assert (lab.state(first), lab.state(second)) == ("STARTING", "QUEUED")
    assert lab.get(second).reason == "Resources"
    lab.tell(first, running=True)
    lab.end(first)
    lab.tick.run()
    assert lab.state(second) == "STARTING"


def test_a_wait_that_stays_the_same_is_written_once(lab: Lab) -> None:
    lab.submit(gib=6)
    second = lab.submit(gib=6)
    lab.tick.run()
    revision = lab.get(second).revision
    lab.tick.run()
    assert lab.get(second).revision == revision


def test_a_lost_worker_is_rescued_once_its_bytes_are_free(lab: Lab) -> None:
    job = lab.submit()
    lab.run(job)
    lab.executor.workers.clear()
    lab.executor.lingering.add(lab.folder(job).root)
    lab.tick.run()
    assert lab.state(job) == "RUNNING"  # something of it still holds the device
    lab.executor.lingering.clear()
    lab.tick.run()
    rescued = lab.get(job)
    assert (rescued.state, rescued.attempt, rescued.epoch) == ("STARTING", 2, 3)
    assert lab.executor.alive() == {Worker(job.id, 3)}


def test_the_worker_of_a_rescued_job_is_refused_when_it_comes_back(lab: Lab) -> None:
    job = lab.submit()
    lab.run(job)
    lab.executor.workers.clear()
    lab.tick.run()
    lab.tell(job, running=True, step=5)
    assert lab.tell(job, epoch=1, step=99).stale
    assert lab.get(job).step == 5


def test_a_job_that_keeps_being_lost_fails(lab: Lab) -> None:
    job = lab.submit(max_attempts=2)
    for _ in range(2):
        lab.run(job)
        lab.executor.workers.clear()
        lab.tick.run()
    assert (lab.state(job), lab.get(job).reason) == ("FAILED", "worker_lost")


def test_a_child_that_was_killed_under_its_actor_is_tried_again(lab: Lab) -> None:
    job = lab.submit()
    lab.run(job)
    lab.end(job, "worker_lost", "killed by SIGKILL (signal 9)")
    assert lab.state(job) == "QUEUED"
    lab.tick.run()
    assert lab.executor.alive() == {Worker(job.id, 2)}  # and the old actor is gone


def test_a_new_head_adopts_what_runs(lab: Lab) -> None:
    job = lab.submit()
    lab.run(job)
    lab.new_head()
    lab.tick.run()
    lab.tell(job, step=7)
    assert lab.executor.started == [Worker(job.id, 1)]
    assert (lab.state(job), lab.get(job).attempt, lab.get(job).step) == ("RUNNING", 1, 7)


def test_a_head_that_died_between_promise_and_start_costs_no_loss(lab: Lab) -> None:
    job = lab.submit()
    lab.executor.broken = True
    with pytest.raises(ConnectionError):
        lab.tick.run()
    assert lab.state(job) == "STARTING"
    lab.executor.broken = False
    lab.new_head()
    lab.tick.run()
    again = lab.get(job)
    assert (again.losses, lab.executor.started) == (0, [Worker(job.id, again.epoch)])
    assert lab.tell(job, epoch=1, running=True).stale  # a worker that the first head may have started


def test_a_worker_that_could_not_be_started_is_asked_for_again(lab: Lab) -> None:
    job = lab.submit()
    lab.executor.broken = True
    with pytest.raises(ConnectionError):
        lab.tick.run()
    lab.executor.broken = False
    lab.tick.run()
    assert (lab.get(job).attempt, lab.executor.started) == (1, [Worker(job.id, 1)])


def test_a_start_that_ray_refused_is_tried_again_by_the_same_head(lab: Lab) -> None:
    job = lab.submit()
    lab.executor.broken = True
    with pytest.raises(ConnectionError):
        lab.tick.run()
    lab.executor.broken = False
    lab.tick.run()
    assert (lab.get(job).attempt, lab.executor.started) == (1, [Worker(job.id, 1)])


def test_strays_are_ended(lab: Lab) -> None:
    stray = Worker("99", 4)
    lab.executor.workers[stray] = lab.home.root
    lab.tick.run()
    assert lab.executor.alive() == frozenset()


def test_a_worker_that_lives_and_says_nothing_is_taken_for_stuck(lab: Lab) -> None:
    job = lab.submit()
    lab.run(job)
    lab.clock.now_s += SILENCE_LIMIT_S - 1
    lab.tell(job, step=1)
    lab.clock.now_s += SILENCE_LIMIT_S - 1
    lab.tick.run()
    assert lab.state(job) == "RUNNING"
    lab.clock.now_s += 2
    lab.tick.run()
    assert lab.executor.alive() == frozenset()
    lab.tick.run()
    assert lab.state(job) == "STARTING"
    assert lab.get(job).attempt == 2


def test_the_time_limit_is_told_to_the_worker_and_ends_the_job(lab: Lab) -> None:
    job = lab.submit(time_limit_s=60.0)
    lab.run(job)
    lab.clock.now_s += 30
    lab.tick.run()
    assert lab.tell(job, step=1).stop is None
    lab.clock.now_s += 31
    lab.tick.run()
    assert lab.tell(job, step=2).stop == "time_limit"
    lab.end(job, "time_limit")
    assert (lab.state(job), lab.get(job).reason) == ("FAILED", "time_limit")


def test_a_job_waits_for_those_it_names_and_goes_down_with_them(lab: Lab) -> None:
    first = lab.submit()
    good = lab.submit(after=(first.id,))
    last = lab.submit(after=(good.id,))
    lab.run(first)
    assert lab.get(good).reason == "Dependency"
    lab.end(first)
    lab.run(good)
    lab.end(good, "error", "ValueError: no")
    lab.tick.run()
    assert (lab.state(last), lab.get(last).reason) == ("CANCELLED", "dependency_failed")


def test_another_jobs_output_is_found_at_the_last_moment(lab: Lab) -> None:
    maker = lab.submit()
    lab.run(maker)
    lab.end(maker)
    user = lab.submit(after=(maker.id,))
    spec_of_user = {**user.spec, "model": {"source": f"job:{maker.id}"}}
    lab.store.amend(user, user.model_copy(update={"spec": spec_of_user}))
    lab.tick.run()
    assert Attempt.read(lab.folder(user).attempt).resolved == {"model_source": maker.output}


@pytest.mark.parametrize(
    ("data", "folders", "chosen"),
    [
        ({"eval_fraction": 0.1}, ("best", "last"), "best"),
        ({"eval_fraction": 0.1}, ("last",), "last"),
        ({}, ("best", "last"), "last"),  # that one is from before
        ({}, (), ""),
    ],
)
def test_of_a_fine_tuning_the_best_model_is_meant_where_it_was_evaluated(
    lab: Lab, data: dict[str, Any], folders: tuple[str, ...], chosen: str
) -> None:
    maker = lab.submit()
    tuning = {**maker.spec, "kind": "finetune", "data": {"files": ["a"], **data}}
    tuning = {name: value for name, value in tuning.items() if name != "train"}
    lab.store.amend(maker, maker.model_copy(update={"kind": "finetune", "spec": tuning}))
    lab.run(maker)
    for name in folders:
        (Path(maker.output or "") / name).mkdir(parents=True)
    lab.end(maker)
    user = lab.submit(after=(maker.id,))
    spec_of_user = {**user.spec, "model": {"source": f"job:{maker.id}"}}
    lab.store.amend(user, user.model_copy(update={"spec": spec_of_user}))
    lab.tick.run()
    resolved = Attempt.read(lab.folder(user).attempt).resolved
    assert resolved == {"model_source": str(Path(maker.output or "") / chosen)}


def test_a_job_whose_program_has_been_removed_fails_with_words(lab: Lab) -> None:
    job = lab.submit()
    (lab.folder(job).code / "mine.py").unlink()
    lab.tick.run()
    assert (lab.state(job), lab.get(job).reason) == ("FAILED", "bad_input")
    assert "program" in str(lab.get(job).message)


def test_what_python_keeps_beside_a_program_is_not_taken_for_it(lab: Lab) -> None:
    job = lab.submit()
    bytecode = lab.folder(job).code / "__pycache__"
    bytecode.mkdir()
    (bytecode / "mine.cpython-311.pyc").write_bytes(b"")
    lab.tick.run()
    assert Path(Attempt.read(lab.folder(job).attempt).program) == lab.folder(job).code / "mine.py"


def test_bytes_are_never_promised_twice(lab: Lab) -> None:
    jobs = [lab.submit(gib=3) for _ in range(5)]
    for _ in range(3):
        lab.tick.run()
    assert [lab.state(job) for job in jobs].count("STARTING") == 3
    advance(lab.store, jobs[0].id, StopAsked("cancelled"))
    lab.tick.run()
    # Told to stop is not gone: its bytes stay its own until its end.
    assert [lab.state(job) for job in jobs] == ["STOPPING", "STARTING", "STARTING", "QUEUED", "QUEUED"]
    lab.end(jobs[0], "cancelled")
    lab.tick.run()
    assert [lab.state(job) for job in jobs] == ["CANCELLED", "STARTING", "STARTING", "STARTING", "QUEUED"]


def test_a_stop_that_was_asked_before_the_head_died_is_told_by_the_next(lab: Lab) -> None:
    job = lab.submit()
    lab.run(job)
    advance(lab.store, job.id, StopAsked("cancelled"))
    lab.new_head()
    assert lab.tell(job).stop == "cancelled"


def test_draining_sends_jobs_back_to_the_queue_without_an_attempt_lost(lab: Lab) -> None:
    running, waiting = lab.submit(gib=8), lab.submit(gib=8)
    lab.run(running)
    lab.tick.drain()
    assert [record.id for record in lab.tick.run()] == [running.id]
    assert lab.tell(running, step=4).stop == "preempted"
    lab.end(running, "preempted")
    assert lab.tick.run() == []
    after = lab.get(running)
    assert (after.state, after.losses, lab.state(waiting)) == ("QUEUED", 0, "QUEUED")


def test_use_is_charged_at_the_end(lab: Lab) -> None:
    job = lab.submit(gib=2)
    lab.run(job)
    lab.clock.now_s += 10
    lab.end(job)
    assert lab.get(job).used_byte_s == 2 * GIB * 10.0
    lab.end(job)  # told again, because the answer got lost
    assert lab.get(job).used_byte_s == 2 * GIB * 10.0


def test_progress_that_is_nonsense_does_not_keep_the_worker_from_being_heard(lab: Lab) -> None:
    job = lab.submit()
    lab.tick.run()
    lab.tell(job, running=True, step="three")
    assert lab.state(job) == "RUNNING"


def test_draining_to_the_end_lets_jobs_finish_and_sends_those_home_that_stand_still(lab: Lab) -> None:
    running, paused, waiting = lab.submit(gib=4), lab.submit(gib=4), lab.submit(gib=8)
    lab.run(running)
    lab.tell(paused, running=True)
    advance(lab.store, paused.id, PauseAsked())
    lab.tell(paused, paused=True)
    lab.tick.drain(Drain.FINISH)
    assert len(lab.tick.run()) == 2
    assert lab.tell(running).stop is None
    assert lab.tell(paused).stop == "preempted"
    lab.end(paused, "preempted")
    lab.end(running)
    assert lab.tick.run() == []
    assert [lab.state(job) for job in (running, paused, waiting)] == ["SUCCEEDED", "QUEUED", "QUEUED"]
    lab.tick.drain(None)
    lab.tick.run()
    assert lab.state(paused) == "STARTING"


def test_watching_looks_after_workers_and_starts_nobody(lab: Lab) -> None:
    job = lab.submit()
    assert not lab.tick.watch()
    assert lab.state(job) == "QUEUED"
    lab.run(job)
    assert not lab.tick.watch()
    lab.executor.workers.clear()
    assert lab.tick.watch()
    assert lab.state(job) == "QUEUED"


def test_what_others_hold_of_a_device_is_not_given_away(lab: Lab) -> None:
    lab.foreign_bytes["cpu:0"] = 5 * GIB
    job = lab.submit(gib=6)
    lab.tick.run()
    assert lab.state(job) == "QUEUED"
    lab.foreign_bytes["cpu:0"] = 1 * GIB
    assert lab.tick.watch()
    lab.tick.run()
    assert lab.state(job) == "STARTING"


def test_a_full_disk_costs_no_job_its_life(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lab.submit()

    def full(self: Attempt, folder: JobFolder) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Attempt, "write", full)
        for _ in range(2):
            with pytest.raises(StartFailed, match="No space left"):
                lab.tick.run()
    assert lab.state(job) == "STARTING"
    lab.tick.run()
    assert (lab.executor.started, lab.get(job).attempt) == ([Worker(job.id, 1)], 1)


def test_settings_of_admins_are_followed_and_nonsense_among_them_is_not(lab: Lab) -> None:
    lab.store.put_setting("quota:ada", {"limit_bytes": 3 * GIB})
    lab.store.put_setting("quota:bob", {"limit_bytes": 1, "of_a_newer_version": 2})
    lab.store.put_setting("window:broken", {"days": "never"})
    first, second = lab.submit(gib=2), lab.submit(gib=2)
    lab.tick.run()
    assert (lab.state(first), lab.state(second), lab.get(second).reason) == ("STARTING", "QUEUED", "Quota")

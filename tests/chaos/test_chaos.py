"""kill -9 of anything, at any moment: nothing is lost, nothing happens twice, and no bit of a result changes.

`make chaos` runs it: `SPCLUSTER_CHAOS_KILLS` (30) and `SPCLUSTER_CHAOS_SEED` (printed) say how often and who.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from pathlib import Path

import pytest

from chaos.chaos_lab import ChaosLab, training
from superpipe_cluster.lifecycle.states import JobState
from superpipe_cluster.lifecycle.step import REPLAYED_FIELDS, Happened, replay

JOBS, SEEDS, STEPS = 10, 3, 150
#: Between two kills: long enough for work to be done, short enough to hit starts, saves and rescues as well.
PAUSE_S = (0.5, 6.0)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_kill_loses_a_job_or_changes_a_bit(tmp_path: Path) -> None:
    kills = int(os.environ.get("SPCLUSTER_CHAOS_KILLS", "30"))
    seed = int(os.environ.get("SPCLUSTER_CHAOS_SEED", str(random.SystemRandom().randrange(10**6))))
    print(f"SPCLUSTER_CHAOS_SEED={seed}")
    rng = random.Random(seed)
    lab = ChaosLab(tmp_path, rng)
    try:
        undisturbed = [lab.submit(training(f"alone-{number}", number, STEPS)).id for number in range(SEEDS)]
        _until_over(lab, undisturbed)
        expected = [lab.model_of(job_id) for job_id in undisturbed]
        assert len(set(expected)) == SEEDS  # else any model would do

        jobs = [lab.submit(training(f"killed-{number}", number % SEEDS, STEPS)).id for number in range(JOBS)]
        while sum(lab.killed.values()) < kills:
            # Chance decides the moment; no condition is waited for.
            time.sleep(rng.uniform(*PAUSE_S))
            running = [record.id for record in lab.records() if record.state.holds_device]
            if not any(not record.state.is_terminal for record in lab.records() if record.id in jobs):
                jobs.append(lab.submit(training(f"more-{len(jobs)}", len(jobs) % SEEDS, STEPS)).id)
            part = lab.kill_one(running)
            if part is not None:
                print(f"kill {sum(lab.killed.values())}: {part}, while {running} held the device", flush=True)
        _until_over(lab, jobs)

        for number, job_id in enumerate(jobs):
            assert lab.model_of(job_id) == expected[number % SEEDS], f"job {job_id}: other bits"
        _check_history(lab)
        print(f"{dict(lab.killed)}; {len(jobs)} jobs, their models bit-equal")
    finally:
        left = lab.end()
    assert left == []


def _until_over(lab: ChaosLab, job_ids: list[str]) -> None:
    def over() -> bool:
        states = [lab.show(job_id).state for job_id in job_ids]
        assert "FAILED" not in states
        assert "CANCELLED" not in states
        return all(state == "SUCCEEDED" for state in states)

    lab.until(over, f"jobs {job_ids} have succeeded", 1200)


def _check_history(lab: ChaosLab) -> None:
    """Each job ended once, its events give its record, and the device was never promised twice."""
    histories: dict[str, list[Happened]] = defaultdict(list)
    so_far: dict[str, int] = {}
    for event in lab.events():
        histories[event.job_id].append(event.happened)
        record = replay(histories[event.job_id])
        so_far[event.job_id] = record.promised_bytes if record.state.holds_device else 0
        assert sum(so_far.values()) <= 96 * 2**20, f"more than the device has after event {event.seq}"
    for record in lab.records():
        history = histories[record.id]
        ends = [one for one in history if JobState(one.data["to_state"]).is_terminal]
        assert len(ends) == 1, f"job {record.id} ended {len(ends)} times"
        again = replay(history)
        for name in REPLAYED_FIELDS:
            assert getattr(again, name) == getattr(record, name), (record.id, name)

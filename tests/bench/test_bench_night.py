"""The lab's week is replayed without losing a job or a byte."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from lab_replay import CONTENDERS, Replay
from lab_week import DEVICE_BYTES, Assumptions, rates, week

del sys.path[0]  # or `streaming` would be the bench of that name to all tests that are loaded later

QUIET = Assumptions(load=0.1)


@pytest.mark.parametrize("contender", CONTENDERS)
def test_every_job_ends_and_no_device_is_promised_twice(contender: str) -> None:
    decider, elastic = CONTENDERS[contender]
    jobs = week(5, 1, QUIET)
    replay = Replay(jobs, 1, decider, elastic=elastic, assumed=QUIET)
    replay.run()
    assert set(replay.ended_s) == {str(job.number) for job in jobs}
    assert replay.violations == 0
    for job in jobs:
        assert replay.ended_s[str(job.number)] - replay.started_s[str(job.number)] >= job.alone_s


def test_jobs_together_get_no_more_than_there_is() -> None:
    rng = random.Random(1)
    jobs = week(7, 1, Assumptions(load=1.0))
    for _ in range(200):
        group = [
            (job, rng.randint(job.floor_bytes, DEVICE_BYTES)) for job in rng.sample(jobs, rng.randint(1, 6))
        ]
        speeds = rates(group, shared=0.9)
        assert all(0.0 < speed <= 1.0 for speed in speeds)
        assert sum(speed * job.busy for speed, (job, _) in zip(speeds, group, strict=True)) <= 1.0 + 1e-9
        links = [job.at(budget_bytes)[1] for job, budget_bytes in group]
        assert sum(speed * link for speed, link in zip(speeds, links, strict=True)) <= 1.0 + 1e-9


def test_a_week_is_the_same_twice_and_another_one_is_not() -> None:
    assert week(1, 1, QUIET) == week(1, 1, QUIET) != week(2, 1, QUIET)

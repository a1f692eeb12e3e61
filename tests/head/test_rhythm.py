from __future__ import annotations

from head.fakes import Clock
from superpipe_cluster.head.rhythm import LOOK_EVERY_S, WATCH_EVERY_S, Rhythm


def went(rhythm: Rhythm, clock: Clock, took_s: float, *, has_workers: bool) -> float:
    began_s = clock()
    clock.now_s += took_s
    return rhythm.went_round(began_s, has_workers=has_workers)


def test_without_workers_only_the_slow_round_is_left() -> None:
    clock = Clock()
    rhythm = Rhythm(clock)
    assert rhythm.is_due
    went(rhythm, clock, 0.01, has_workers=False)
    assert not rhythm.is_due
    assert rhythm.wait_s() == LOOK_EVERY_S
    clock.now_s += LOOK_EVERY_S
    assert (rhythm.is_due, rhythm.wait_s()) == (True, 0.0)


def test_workers_are_looked_after_between_the_rounds() -> None:
    clock = Clock()
    rhythm = Rhythm(clock)
    went(rhythm, clock, 0.01, has_workers=True)
    assert (rhythm.is_due, rhythm.wait_s()) == (False, WATCH_EVERY_S)


def test_rounds_that_nothing_has_called_for_are_the_further_apart_the_longer_they_take() -> None:
    clock = Clock()
    rhythm = Rhythm(clock)
    went(rhythm, clock, 0.1, has_workers=False)
    assert rhythm.wait_s() >= 100 * 0.1 - 1e-6
    assert not rhythm.is_due


def test_long_rounds_leave_most_of_a_core_to_others_and_short_ones_delay_nobody_much() -> None:
    clock = Clock()
    rhythm = Rhythm(clock)
    assert went(rhythm, clock, 0.05, has_workers=True) >= 9 * 0.05 - 1e-9
    assert 0.0 < went(rhythm, clock, 0.0, has_workers=True) <= 0.1
    assert went(rhythm, clock, 60.0, has_workers=True) <= 1.0


def test_after_a_failure_it_is_tried_again_soon() -> None:
    clock = Clock()
    rhythm = Rhythm(clock)
    went(rhythm, clock, 0.01, has_workers=False)
    rhythm.failed()
    assert (rhythm.is_due, rhythm.wait_s()) == (True, WATCH_EVERY_S)

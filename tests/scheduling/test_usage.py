"""Usage that fades."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpipe_cluster.lifecycle.events import Event, Exited, Placed, ResizeAsked, Resized, Started
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.step import step
from superpipe_cluster.scheduling.usage import UsageBook, decayed

HALF_LIFE_S = 1000.0


def run(*events: tuple[float, Event], user: str = "ann") -> list[JobRecord]:
    """The record at its submission and after each event."""
    records = [JobRecord(id="1", name="one", user=user, kind="train", max_attempts=3)]
    for at, event in events:
        records.append(step(records[-1], event, at))
    return records


def test_what_was_used_a_half_life_ago_counts_half() -> None:
    (*_, record) = run((0.0, Placed("cpu:0", 10)), (0.0, Started()), (1.0, Exited(reason="ok")))
    assert decayed([record], 1.0, HALF_LIFE_S)["ann"] == pytest.approx(10.0, rel=1e-3)
    assert decayed([record], 1001.0, HALF_LIFE_S)["ann"] == pytest.approx(5.0, rel=1e-3)
    assert decayed([record], 2001.0, HALF_LIFE_S)["ann"] == pytest.approx(2.5, rel=1e-3)


def test_what_is_being_used_counts_already() -> None:
    (*_, record) = run((0.0, Placed("cpu:0", 10)))
    assert decayed([record], 0.0, HALF_LIFE_S) == {}
    assert decayed([record], 1.0, HALF_LIFE_S)["ann"] == pytest.approx(10.0, rel=1e-3)


def test_a_long_job_does_not_count_as_if_it_had_used_everything_at_its_end() -> None:
    held = [(0.0, Placed("cpu:0", 10)), (0.0, Started())]
    (*_, runs) = run(*held)
    (*_, ended) = run(*held, (5000.0, Exited(reason="ok")))
    while_running = decayed([runs], 5000.0, HALF_LIFE_S)["ann"]
    assert while_running < 50_000.0 / 3
    assert decayed([ended], 5000.0, HALF_LIFE_S)["ann"] == pytest.approx(while_running)


def test_users_are_summed() -> None:
    one = run((0.0, Placed("cpu:0", 10)), user="ann")[-1]
    other = run((0.0, Placed("cpu:0", 5)), user="bob")[-1]
    totals = decayed([one, one, other], 1.0, HALF_LIFE_S)
    assert totals["ann"] == pytest.approx(4 * totals["bob"])


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 500.0), min_size=6, max_size=6), st.integers(1, 100), st.floats(0.0, 900.0))
def test_the_book_says_what_the_records_say(gaps: list[float], size: int, later: float) -> None:
    at = [sum(gaps[: number + 1]) for number in range(6)]
    records = run(
        (at[0], Placed("cpu:0", size)),
        (at[1], Started()),
        (at[2], Exited(reason="worker_lost")),
        (at[3], Placed("cpu:0", size)),
        (at[4], Started()),
        (at[5], Exited(reason="ok")),
    )
    book = UsageBook([], 0.0, HALF_LIFE_S)
    book.changed(None, records[0], 0.0)
    for number, (before, after) in enumerate(pairwise(records)):
        book.changed(before, after, at[number])
        running = [after] if after.state.holds_device else []
        assert book.totals(running, at[number]).get("ann", 0.0) >= 0.0
    now = at[5] + later
    exact = sum(size * _integral(now, start, end) for start, end in ((at[0], at[2]), (at[3], at[5])))
    assert book.totals([], now)["ann"] == pytest.approx(exact, rel=1e-6)
    # A record forgets when its seconds were, see [Note: spread]: close, and never more than was used.
    assert decayed([records[-1]], now, HALF_LIFE_S)["ann"] == pytest.approx(exact, rel=0.75)


def test_a_book_begun_late_goes_on_from_the_records() -> None:
    records = run((0.0, Placed("cpu:0", 10)), (0.0, Started()))
    asked = step(records[-1], ResizeAsked(4, 1), 100.0)
    shrunk = step(asked, Resized(4, 1), 200.0)
    book = UsageBook([asked], 150.0, HALF_LIFE_S)
    book.changed(asked, shrunk, 200.0)
    exact = 10 * _integral(300.0, 0.0, 200.0) + 4 * _integral(300.0, 200.0, 300.0)
    assert book.totals([shrunk], 300.0)["ann"] == pytest.approx(exact, rel=1e-6)


def test_a_clock_that_stepped_back_changes_nothing() -> None:
    (*_, record) = run((0.0, Placed("cpu:0", 10)), (0.0, Started()), (100.0, Exited(reason="ok")))
    book = UsageBook([record], 200.0, HALF_LIFE_S)
    assert book.totals([], 150.0) == book.totals([], 200.0)


def _integral(now: float, start: float, end: float) -> float:
    """Seconds from `start` to `end` as they count at `now`, summed in small parts."""
    parts = 2000
    width = (end - start) / parts
    return sum(0.5 ** ((now - start - (part + 0.5) * width) / HALF_LIFE_S) * width for part in range(parts))

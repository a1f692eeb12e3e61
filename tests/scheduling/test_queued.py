"""The table of the queued jobs is the same however it came about."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from scheduling.situations import NOW, job
from scheduling.worlds import queued_jobs
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.scheduling.queued import Queued


@settings(max_examples=examples(70), deadline=None)
@given(st.data())
def test_changed_step_by_step_it_is_the_table_of_the_jobs_that_are_left(data: st.DataObject) -> None:
    table = Queued.of(())
    there: list[JobRecord] = []
    number = 1
    for _ in range(data.draw(st.integers(1, 5))):
        gone = data.draw(st.lists(st.sampled_from(there), unique_by=id)) if there else []
        new = data.draw(queued_jobs(first_id=number))
        # A job whose record has changed goes and comes at once.
        new += [one.model_copy(update={"priority": 2, "window": "w"}) for one in gone[::2]]
        number += 100
        table = table.changed(gone, new)
        there = [*(one for one in there if not any(one is other for other in gone)), *new]
    fresh = Queued.of(there)
    assert table == fresh
    assert table.ids == [one.id for one in table.jobs] == [one.job_id for one in table.behind]
    for name in set(table.rows.dtype.names or ()) - {"user"}:
        assert np.array_equal(table.column(name), fresh.column(name)), name
    assert [table.users[user] for user in table.column("user")] == [one.user for one in table.jobs]


def test_the_oldest_come_first_and_of_the_same_moment_the_smaller_number() -> None:
    jobs = [
        job("10", submitted_at=NOW),
        job("9", submitted_at=NOW),
        job("11", submitted_at=NOW - 1),
    ]
    assert Queued.of(jobs).ids == ["11", "9", "10"]
    assert Queued.of(jobs[:1]).changed((), jobs[1:]).ids == ["11", "9", "10"]


def test_nothing_to_change_is_the_same_table() -> None:
    table = Queued.of([job("1")])
    assert table.changed((), ()) is table

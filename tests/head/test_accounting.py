"""Who has used how much, and what the devices do right now."""

from __future__ import annotations

from typing import Any

import pytest

from superpipe_cluster.api.views import HostView
from superpipe_cluster.head.accounting import Links, top, usage
from superpipe_cluster.lifecycle.events import Event, Exited, Placed, ResizeAsked, Resized, Started
from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.step import begin, step
from superpipe_cluster.machine import parse_device

DAY_S = 86_400.0
WEEK_S = 7 * DAY_S


def job(job_id: str = "1", user: str = "ann", **fields: Any) -> JobRecord:
    values = {"id": job_id, "name": "a", "user": user, "kind": "train", **fields}
    return begin(JobRecord.model_validate(values), 1000.0)[0]


def after(record: JobRecord, *events: tuple[float, Event]) -> JobRecord:
    for at, event in events:
        record = step(record, event, at)
    return record


RUN = ((1010.0, Placed("cpu:0", 100)), (1012.0, Started()))


def test_what_runs_is_counted_up_to_now() -> None:
    record = after(job(), *RUN).model_copy(update={"link_bytes": 70, "used_link_bytes": 7})
    (one,) = usage([record], 1020.0, WEEK_S).jobs
    assert (one.byte_s, one.link_bytes, one.waited_s, one.ran_s) == (1000.0, 77, 10.0, 8.0)


def test_what_has_ended_stays_as_it_is() -> None:
    record = after(job(), *RUN, (1022.0, Exited("ok", None, 0)))
    for now in (1022.0, 5000.0):
        (one,) = usage([record], now, WEEK_S).jobs
        assert (one.byte_s, one.waited_s, one.ran_s, one.state) == (1200.0, 10.0, 10.0, "SUCCEEDED")


def test_who_waits_has_waited_up_to_now() -> None:
    (one,) = usage([job()], 1030.0, WEEK_S).jobs
    assert (one.byte_s, one.waited_s, one.ran_s) == (0.0, 30.0, 0.0)


def test_while_a_budget_shrinks_the_larger_one_is_used() -> None:
    record = after(job(), *RUN, (1012.0, ResizeAsked(40, 1)))
    (one,) = usage([record], 1022.0, WEEK_S).jobs
    assert one.byte_s == 200.0 + 1000.0
    shrunk = after(record, (1022.0, Resized(40, 1)))
    (one,) = usage([shrunk], 1032.0, WEEK_S).jobs
    assert one.byte_s == 1200.0 + 400.0


def test_users_are_the_sums_of_their_jobs_and_older_use_fades() -> None:
    old = after(job("1", "ann"), *RUN, (1020.0, Exited("ok", None, 0)))
    late = 1020.0 + WEEK_S
    young = after(
        job("2", "bob"), (late - 10, Placed("cpu:0", 100)), (late - 10, Started()), (late, Exited("ok"))
    )
    found = usage([old, young], late, WEEK_S)
    assert [(user.user, user.jobs, user.byte_s) for user in found.users] == [
        ("bob", 1, 1000.0),
        ("ann", 1, 1000.0),
    ]
    bob, ann = found.users
    assert ann.decayed_byte_s == pytest.approx(500.0, rel=1e-3)
    assert (bob.share, ann.share) == (pytest.approx(2 / 3, rel=1e-3), pytest.approx(1 / 3, rel=1e-3))


def test_one_user_and_a_time() -> None:
    ended = after(job("1", "ann"), *RUN, (1020.0, Exited("ok", None, 0)))
    records = [ended, job("2", "ann"), job("3", "bob")]
    assert [one.id for one in usage(records, 2000.0, WEEK_S, of_user="ann").jobs] == ["1", "2"]
    assert [one.id for one in usage(records, 2000.0, WEEK_S, since=1021.0).jobs] == ["2", "3"]
    assert [one.id for one in usage(records, 2000.0, WEEK_S, since=1020.0).jobs] == ["1", "2", "3"]
    only = usage(records, 2000.0, WEEK_S, of_user="bob")
    assert [user.user for user in only.users] == ["bob"]
    assert only.users[0].share == 0.0, "of everybody's use, not of one's own"


def test_slowdown_is_measured_over_the_whole_models_forecast() -> None:
    plan = {"forecast": {"whole_step_s": 0.5}}
    slow = after(job("1", plan=plan), *RUN).model_copy(update={"step_s": 1.0})
    slower = after(job("2", plan=plan), *RUN).model_copy(update={"step_s": 2.0})
    unknown = after(job("3", plan={"forecast": None}), *RUN).model_copy(update={"step_s": 2.0})
    unmeasured = after(job("4", plan=plan), *RUN)
    found = usage([slow, slower, unknown, unmeasured, job("5")], 1020.0, WEEK_S)
    assert [one.slowdown for one in found.jobs] == [2.0, 4.0, None, None, None]
    assert found.users[0].slowdown == 3.0


def test_nobody_has_used_anything() -> None:
    found = usage([], 1000.0, WEEK_S)
    assert (found.users, found.jobs) == ((), ())


def test_the_speed_of_a_link_is_that_of_the_last_seconds() -> None:
    links, record = Links(), after(job(), *RUN)

    def speed(link_bytes: int, now: float, **fields: Any) -> float:
        return links.speeds([record.model_copy(update={"link_bytes": link_bytes, **fields})], now)["1"]

    assert speed(800, 1020.0) == 100.0, "first: since it was started"
    assert speed(900, 1021.0) == 100.0, "too soon for another figure"
    assert speed(1200, 1024.0) == 100.0
    assert speed(1200, 1030.0) == 0.0
    assert speed(2200, 1035.0) == 200.0
    assert speed(50, 1040.0, epoch=2, started_at=1035.0) == 10.0, "a new attempt counts from zero"
    assert speed(90, 1050.0, epoch=2, state="PAUSED") == 0.0
    assert links.speeds([], 1060.0) == {}


def test_top_tells_of_each_device_what_is_on_it() -> None:
    devices = [parse_device("cpu:1GiB@2GB/s"), parse_device("cpu:1GiB@2GB/s", index=1)]
    curve = ((50, 2.0, 10), (150, 1.0, 5))
    first = after(job("1", curve=curve), *RUN, (1013.0, ResizeAsked(60, 1)))
    second = after(job("2"), (1010.0, Placed("cpu:1", 30)))
    found = top(
        devices,
        [first, second],
        foreign={"cpu:1": 9},
        speeds={"1": 4.0},
        queued=3,
        host=HostView(total_bytes=2, available_bytes=1),
        now=1020.0,
    )
    one, other = found.devices
    assert (one.used_bytes, one.foreign_bytes, one.link_used_bytes_per_s) == (100, 0, 4.0)
    assert (other.used_bytes, other.foreign_bytes, other.link_used_bytes_per_s) == (30, 9, 0.0)
    (shown,) = one.jobs
    assert (shown.budget_bytes, shown.asked_bytes, shown.forecast_step_s) == (100, 60, 1.5)
    assert other.jobs[0].forecast_step_s is None
    assert (found.queued, found.at) == (3, 1020.0)

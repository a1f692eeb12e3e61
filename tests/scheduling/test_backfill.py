"""The first in line, those behind it, and when they are likely to start."""

from __future__ import annotations

from scheduling.situations import NOW, all_waits, ending, job, running, starts, taking, waits
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.scheduling.decide import decide
from superpipe_cluster.scheduling.decisions import Start, Wait
from superpipe_cluster.scheduling.policy import Policy
from superpipe_cluster.scheduling.snapshot import DeviceView, Snapshot


def test_a_short_job_uses_what_would_lie_idle() -> None:
    # 4 are free until the 6 come back after 100 s; then job 2 takes 8.
    situation = [ending("1", "cpu:0", 6, 100.0), taking("2", 8, 50.0)]
    assert starts(*situation, taking("3", 4, 100.0)) == {"3": ("cpu:0", 4)}
    assert starts(*situation, taking("3", 4, 101.0)) == {}
    assert waits(*situation, taking("3", 4, 101.0)) == {"2": WaitReason.RESOURCES, "3": WaitReason.PRIORITY}


def test_a_small_job_fits_beside_the_first_for_as_long_as_it_likes() -> None:
    situation = [ending("1", "cpu:0", 6, 100.0), taking("2", 8, 50.0)]
    assert starts(*situation, job("3", 2)) == {"3": ("cpu:0", 2)}
    assert starts(*situation, job("3", 2), job("4", 1)) == {"3": ("cpu:0", 2)}
    assert starts(*situation, job("3", 3)) == {}


def test_nobody_overtakes_where_an_end_is_unknown() -> None:
    situation = [running("1", "cpu:0", 6), taking("2", 8, 50.0), taking("3", 1, 1.0)]
    assert starts(*situation) == {}


def test_a_time_limit_is_an_end_one_can_rely_on() -> None:
    limited = running("1", "cpu:0", 6, time_limit_s=3700.0)
    assert all_waits(limited, job("2", 8))["2"].expected_start_at == NOW + 100.0
    assert starts(limited, job("2", 8), job("3", 4, time_limit_s=100.0)) == {"3": ("cpu:0", 4)}
    assert starts(limited, job("2", 8), job("3", 4, time_limit_s=101.0)) == {}
    # Forecast to take longer than it may.
    late = ending("1", "cpu:0", 6, 500.0, time_limit_s=3700.0)
    assert all_waits(late, job("2", 8))["2"].expected_start_at == NOW + 100.0


def test_a_forecast_serves_until_steps_are_measured() -> None:
    new = running("1", "cpu:0", 6, steps=100, step=50, curve=((6, 2.0, 0),))
    assert all_waits(new, job("2", 8))["2"].expected_start_at == NOW + 100.0
    measured = new.model_copy(update={"step_s": 3.0})
    assert all_waits(measured, job("2", 8))["2"].expected_start_at == NOW + 150.0


def test_a_job_that_goes_on_from_a_checkpoint_is_shorter() -> None:
    situation = [ending("1", "cpu:0", 6, 100.0), taking("2", 8, 50.0)]
    assert starts(*situation, taking("3", 4, 200.0)) == {}
    assert starts(*situation, taking("3", 4, 200.0, checkpoint_step=50)) == {"3": ("cpu:0", 4)}


def test_the_first_in_line_may_wait_for_one_device_and_leave_the_other() -> None:
    devices = {"a": 10, "b": 10}
    first = [ending("1", "a", 6, 100.0), ending("2", "b", 6, 200.0), taking("3", 8, 50.0)]
    # It will start on a; on b, one may run for as long as one likes.
    assert starts(*first, job("4", 4), devices=devices) == {"4": ("b", 4)}
    # Nobody knows when b is free, it may be sooner.
    unknown = [first[0], running("2", "b", 6), first[2]]
    assert starts(*unknown, job("4", 4), devices=devices) == {}
    assert starts(*unknown, taking("4", 4, 100.0), devices=devices) == {"4": ("a", 4)}


def test_host_memory_is_kept_for_the_first_as_well() -> None:
    first = [ending("1", "cpu:0", 2, 100.0, host_bytes=60), taking("2", 2, 50.0, host_bytes=50)]
    assert waits(*first, host=100) == {"2": WaitReason.HOST_MEMORY}
    assert starts(*first, taking("3", 2, 100.0, host_bytes=40), host=100) == {"3": ("cpu:0", 2)}
    assert starts(*first, taking("3", 2, 101.0, host_bytes=40), host=100) == {"3": ("cpu:0", 2)}
    assert starts(*first, taking("3", 2, 101.0, host_bytes=40), host=89) == {}
    assert starts(*first, job("3", 2), host=100) == {"3": ("cpu:0", 2)}


def test_only_so_many_are_tried_behind_the_first() -> None:
    first = [ending("1", "cpu:0", 6, 100.0), taking("2", 8, 50.0)]
    too_long = [taking(str(number), 4, 200.0) for number in range(3, 9)]
    assert "9" in starts(*first, *too_long, taking("9", 4, 50.0))
    assert starts(*first, *too_long, taking("9", 4, 50.0), policy=Policy(backfill_depth=6)) == {}


# ---- the link -----------------------------------------------------------------------------------------


def on_a_link(*jobs: object, speed: int = 100) -> dict[str, object]:
    view = DeviceView("cpu:0", 10, link_bytes_per_s=speed)
    decisions = decide(Snapshot.of(jobs, [view], host_usable_bytes=1000, now=NOW))  # type: ignore[arg-type]
    return {one.job_id: one for one in decisions}


def test_the_link_is_a_resource() -> None:
    busy = running("1", "cpu:0", 2, link_min_bytes_per_s=70)
    wait = on_a_link(busy, job("2", 2, link_min_bytes_per_s=31))["2"]
    assert isinstance(wait, Wait)
    assert wait.reason is WaitReason.LINK
    assert isinstance(on_a_link(busy, job("2", 2, link_min_bytes_per_s=30))["2"], Start)
    assert isinstance(on_a_link(busy, job("2", 2, link_min_bytes_per_s=31), speed=0)["2"], Start)


def test_a_job_that_waits_for_the_link_is_first_in_line_too() -> None:
    busy = ending("1", "cpu:0", 2, 100.0, link_min_bytes_per_s=70)
    first = job("2", 2, link_min_bytes_per_s=40)
    behind = on_a_link(
        busy, first, job("3", 2, link_min_bytes_per_s=30), job("4", 2, link_min_bytes_per_s=31)
    )
    assert isinstance(behind["3"], Start)
    assert isinstance(behind["4"], Wait)
    # Of the bytes there are enough beside the first one, now and then.
    assert isinstance(on_a_link(busy, first, job("3", 8))["3"], Start)


def test_a_link_nobody_has_is_waited_for_in_vain_and_holds_nobody_up() -> None:
    decisions = on_a_link(job("1", 2, link_min_bytes_per_s=101), job("2", 2))
    assert isinstance(decisions["1"], Wait)
    assert decisions["1"].reason is WaitReason.LINK
    assert isinstance(decisions["2"], Start)


# ---- expected starts ----------------------------------------------------------------------------------


def test_each_in_line_is_told_when_it_is_likely_to_start() -> None:
    situation = [
        ending("1", "cpu:0", 10, 100.0),
        taking("2", 6, 50.0),
        taking("3", 6, 30.0),
        taking("4", 4, 10.0),
    ]
    expected = {job_id: wait.expected_start_at for job_id, wait in all_waits(*situation).items()}
    assert expected == {"2": NOW + 100.0, "3": NOW + 150.0, "4": NOW + 150.0}


def test_nobody_is_told_a_time_that_nobody_knows() -> None:
    situation = [ending("1", "cpu:0", 10, 100.0), job("2", 6), taking("3", 6, 30.0)]
    expected = {job_id: wait.expected_start_at for job_id, wait in all_waits(*situation).items()}
    assert expected == {"2": NOW + 100.0, "3": None}


def test_several_devices_serve_the_line() -> None:
    situation = [
        ending("1", "a", 10, 100.0),
        ending("2", "b", 10, 60.0),
        taking("3", 8, 500.0),
        taking("4", 8, 1.0),
    ]
    expected = all_waits(*situation, devices={"a": 10, "b": 10})
    assert expected["3"].expected_start_at == NOW + 60.0
    assert expected["4"].expected_start_at == NOW + 100.0

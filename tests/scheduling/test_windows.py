"""Windows: their hours, through the Sundays that have 23 and 25 of them; and what they mean for jobs."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from scheduling.situations import NOW, all_waits, decided, job, preempted, resizes, running, starts, waits
from superpipe_cluster.errors import BadInput
from superpipe_cluster.lifecycle.states import WaitReason
from superpipe_cluster.scheduling.decisions import Pause, Resume
from superpipe_cluster.scheduling.windows import Window

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = Window("nightly", "mon-fri", "22:00", "07:00", "Europe/Berlin")
MINUTE_S, HOUR_S = 60.0, 3600.0


def berlin(text: str, fold: int = 0) -> float:
    """Unix seconds of a time as clocks in Berlin show it."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def every_minute(window: Window, start: float, end: float) -> list[tuple[float, bool]]:
    """The moments at which it opens (True) and closes (False), found by looking every minute."""
    changes: list[tuple[float, bool]] = []
    was, at = window.is_open(start), start
    while at < end:
        at += MINUTE_S
        if window.is_open(at) is not was:
            was = not was
            changes.append((at, was))
    return changes


# ---- hours --------------------------------------------------------------------------------------------


def test_a_window_belongs_to_the_day_it_starts_on() -> None:
    # Friday's ends on Saturday morning; Saturday and Sunday have none of their own.
    assert every_minute(NIGHTLY, berlin("2026-11-20 12:00"), berlin("2026-11-24 12:00")) == [
        (berlin("2026-11-20 22:00"), True),
        (berlin("2026-11-21 07:00"), False),
        (berlin("2026-11-23 22:00"), True),
        (berlin("2026-11-24 07:00"), False),
    ]


def test_the_night_is_an_hour_shorter_in_spring_and_longer_in_autumn() -> None:
    sundays = Window("w", "sat", "22:00", "07:00", "Europe/Berlin")
    for day, hours in (("2026-03-28", 8), ("2026-10-24", 10), ("2026-11-21", 9)):
        opening = sundays.next_opening(berlin(f"{day} 12:00"))
        assert opening == berlin(f"{day} 22:00")
        closing = sundays.next_closing(opening)
        assert closing is not None
        assert closing - opening == hours * HOUR_S


def test_an_hour_that_comes_twice_opens_the_window_once() -> None:
    window = Window("w", "daily", "02:30", "04:00", "Europe/Berlin")
    changes = every_minute(window, berlin("2026-10-24 12:00"), berlin("2026-10-25 12:00"))
    assert changes == [(berlin("2026-10-25 02:30", fold=0), True), (berlin("2026-10-25 04:00"), False)]
    window = Window("w", "daily", "01:00", "02:30", "Europe/Berlin")
    changes = every_minute(window, berlin("2026-10-24 12:00"), berlin("2026-10-25 12:00"))
    assert changes == [(berlin("2026-10-25 01:00"), True), (berlin("2026-10-25 02:30", fold=0), False)]


def test_an_hour_that_is_left_out_opens_the_window_at_the_jump() -> None:
    jump = berlin("2026-03-29 03:00")
    window = Window("w", "daily", "02:30", "04:00", "Europe/Berlin")
    changes = every_minute(window, berlin("2026-03-28 12:00"), berlin("2026-03-29 12:00"))
    assert changes == [(jump, True), (berlin("2026-03-29 04:00"), False)]
    assert window.next_opening(berlin("2026-03-28 12:00")) == jump
    # One that lies in it as a whole does not open on that day.
    window = Window("w", "daily", "02:10", "02:50", "Europe/Berlin")
    assert every_minute(window, berlin("2026-03-28 12:00"), berlin("2026-03-29 12:00")) == []
    assert window.next_opening(berlin("2026-03-28 12:00")) == berlin("2026-03-30 02:10")


@pytest.mark.parametrize("day", ["2026-03-27", "2026-10-23", "2026-12-30"])
@pytest.mark.parametrize(
    "hours", [("22:00", "07:00"), ("02:30", "03:30"), ("00:00", "12:00"), ("01:59", "02:01")]
)
@pytest.mark.parametrize("days", ["daily", "mon-fri", "sat,sun", "fri-mon", "wed"])
def test_next_opening_and_closing_say_when_it_changes(day: str, hours: tuple[str, str], days: str) -> None:
    window = Window("w", days, *hours, "Europe/Berlin")
    start = berlin(f"{day} 12:00")
    changes = every_minute(window, start, start + 8 * 24 * HOUR_S)
    assert changes
    at = start
    for moment, opens in changes:
        assert (window.next_opening(at) if opens else window.next_closing(at)) == moment
        at = moment


def test_one_that_is_always_open_never_changes() -> None:
    always = Window("w", "daily", "00:00", "00:00", "Europe/Berlin")
    at = berlin("2026-10-25 02:30")
    assert always.is_open(at)
    assert always.next_opening(at) is None
    assert always.next_closing(at) is None


def test_days_are_spelled_in_several_ways() -> None:
    at = berlin("2026-11-22 12:00")  # a Sunday
    for days, opens in (
        ("sun", True),
        ("sat-mon", True),
        ("mon,sun", True),
        ("Daily", True),
        ("mon-sat", False),
    ):
        assert Window("w", days, "10:00", "14:00", "Europe/Berlin").is_open(at) is opens


@pytest.mark.parametrize(
    "wrong",
    [
        {"days": "mon-fry"},
        {"days": ""},
        {"start": "25:00"},
        {"end": "7"},
        {"timezone": "Mars/Base"},
        {"timezone": ""},
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        Window.from_json({**NIGHTLY.to_json(), **wrong})


def test_it_comes_back_from_json_as_it_was() -> None:
    assert Window.from_json(NIGHTLY.to_json()) == NIGHTLY
    assert Window.from_json({**NIGHTLY.to_json(), "of_a_newer_version": 1}) == NIGHTLY
    with pytest.raises(BadInput, match="is not a window"):
        Window.from_json({**NIGHTLY.to_json(), "interactive_floor_bytes": "8GiB"})
    with pytest.raises(BadInput, match=r"needs start, end$"):
        Window.from_json({"name": "w", "days": "mon", "timezone": "UTC"})


# ---- what they mean for jobs --------------------------------------------------------------------------

DAY = {"windows": {"nightly": NIGHTLY}, "wall": berlin("2026-11-23 12:00")}
NIGHT = {"windows": {"nightly": NIGHTLY}, "wall": berlin("2026-11-23 23:00")}
MINE = {"window": "nightly"}


def test_a_job_starts_and_grows_only_while_its_window_is_open() -> None:
    wait = all_waits(job("1", 2, **MINE), **DAY)["1"]
    assert (wait.reason, wait.message) == (WaitReason.WINDOW, "the window nightly opens Mon 22:00")
    # The wall clock says in how long; the moment is one of the store's clock.
    assert wait.expected_start_at == NOW + 10 * HOUR_S
    assert starts(job("1", 2, **MINE), **NIGHT) == {"1": ("cpu:0", 2)}
    grower = running("1", "cpu:0", 2, **MINE).model_copy(update={"budget_max_bytes": 8})
    assert resizes(grower, **NIGHT) == {"1": 8}
    assert resizes(grower, **DAY) == {}


def test_a_job_that_waits_for_its_window_holds_nobody_up() -> None:
    assert starts(job("1", 9, **MINE), job("2", 5), **DAY) == {"2": ("cpu:0", 5)}


def test_at_the_end_of_the_window_a_job_does_what_it_asked_for() -> None:
    runs = running("1", "cpu:0", 8, low=4, **MINE)
    modes = {mode: runs.model_copy(update={"at_window_end": mode}) for mode in ("shrink", "pause", "requeue")}
    assert resizes(modes["shrink"], **DAY) == {"1": 4}
    assert Pause("1") in decided(modes["pause"], **DAY)
    assert preempted(modes["requeue"], **DAY) == {"1"}
    for one in modes.values():
        assert decided(one, **NIGHT) == []


def test_it_is_asked_once() -> None:
    done = running("1", "cpu:0", 4, low=4, **MINE)
    assert decided(done, **DAY) == []
    asked = running("1", "cpu:0", 8, low=4, budget_asked_bytes=4, **MINE)
    assert decided(asked, **DAY) == []
    pausing = running("1", "cpu:0", 8, at_window_end="pause", pause_asked="window", **MINE)
    assert decided(pausing, **DAY) == []
    leaving = running(
        "1", "cpu:0", 8, at_window_end="requeue", state="STOPPING", stop_asked="preempted", **MINE
    )
    assert decided(leaving, **DAY) == []


def test_what_a_window_paused_goes_on_when_it_opens_and_what_its_owner_paused_does_not() -> None:
    paused = running("1", "cpu:0", 8, at_window_end="pause", state="PAUSED", pause_asked="window", **MINE)
    assert decided(paused, **DAY) == []
    assert decided(paused, **NIGHT) == [Resume("1")]
    assert decided(paused.model_copy(update={"pause_asked": "owner"}), **NIGHT) == []
    # Its owner does not want it paused any more, or the window is gone.
    assert Resume("1") in decided(paused.model_copy(update={"at_window_end": "shrink"}), **DAY)
    assert Resume("1") in decided(paused.model_copy(update={"window": None}), **DAY)
    assert Resume("1") in decided(paused)


def test_a_window_that_is_gone_starts_nothing_and_ends_nothing() -> None:
    assert waits(job("1", 2, window="gone"), **DAY) == {"1": WaitReason.WINDOW}
    assert decided(running("1", "cpu:0", 8, low=2, window="gone"), **DAY) == []


def test_a_job_that_stands_still_gives_first() -> None:
    steps = {"steps": 1000, "curve": ((2, 2.0, 0), (8, 1.0, 0))}
    paused = running("1", "cpu:0", 8, low=2, state="PAUSED", **steps)
    runs = running("2", "cpu:0", 8, low=2, **steps)
    assert resizes(paused, runs, job("3", 4), devices={"cpu:0": 16}) == {"1": 4}


# ---- what a closed window keeps for interactive jobs --------------------------------------------------

KEEPS = Window("nightly", "mon-fri", "22:00", "07:00", "Europe/Berlin", interactive_floor_bytes=4)
BY_DAY = {**DAY, "windows": {"nightly": KEEPS}}
BY_NIGHT = {**NIGHT, "windows": {"nightly": KEEPS}}


def test_by_day_some_bytes_are_for_interactive_jobs_alone() -> None:
    assert starts(job("1", 3, 10), **BY_DAY) == {"1": ("cpu:0", 6)}
    assert starts(job("1", 3, 10), **BY_NIGHT) == {"1": ("cpu:0", 10)}
    assert starts(job("1", 3, 10, priority=2), **BY_DAY) == {"1": ("cpu:0", 10)}
    batch = running("1", "cpu:0", 6)
    assert starts(batch, job("2", 2), **BY_DAY) == {}
    assert starts(batch, job("2", 2, priority=2), **BY_DAY) == {"2": ("cpu:0", 2)}
    # What interactive jobs hold already counts.
    both = [running("1", "cpu:0", 3, priority=2), running("2", "cpu:0", 3)]
    assert starts(*both, job("3", 3), **BY_DAY) == {"3": ("cpu:0", 3)}
    assert starts(*both, job("3", 4), **BY_DAY) == {}


def test_a_job_too_large_for_the_rest_waits_for_the_night_and_holds_nobody_up() -> None:
    wait = all_waits(job("1", 7), job("2", 6), **BY_DAY)["1"]
    assert wait.reason is WaitReason.WINDOW
    assert wait.message == "4 B of each device are for interactive jobs until Mon 22:00"
    assert starts(job("1", 7), job("2", 6), **BY_DAY) == {"2": ("cpu:0", 6)}


def test_in_the_morning_others_give_back_what_they_can() -> None:
    batch = [running("1", "cpu:0", 5, low=2), running("2", "cpu:0", 5)]
    assert resizes(*batch, **BY_NIGHT) == {}
    assert resizes(*batch, **BY_DAY) == {"1": 2}
    assert resizes(running("1", "cpu:0", 9, low=2), **BY_DAY) == {"1": 6}
    assert resizes(running("1", "cpu:0", 9, low=2, priority=2), **BY_DAY) == {}
    assert resizes(running("1", "cpu:0", 6).model_copy(update={"budget_max_bytes": 9}), **BY_DAY) == {}

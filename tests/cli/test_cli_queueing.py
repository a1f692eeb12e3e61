"""The queue from the command line: why jobs wait, what can be done to them, and arrays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands import ask, spcluster
from serving import GIB, Head, submitted
from superpipe_cluster.api.views import EventView, JobView
from superpipe_cluster.cli import story, waiting
from superpipe_cluster.lifecycle import events
from superpipe_cluster.lifecycle.states import WaitReason

NOW = 1_800_000_000.0


def waiting_job(**fields: object) -> JobView:
    return JobView.model_validate(
        {
            "id": "7",
            "name": "mine",
            "user": "alice",
            "kind": "train",
            "state": "QUEUED",
            "submitted_at": NOW,
            **fields,
        }
    )


# ---- why a job waits -------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(WaitReason))
def test_every_reason_to_wait_is_explained(reason: str) -> None:
    lines = dict(waiting.explained(waiting_job(reason=str(reason), message="a sentence"), NOW))
    assert lines["waits for"] == f"{reason}: a sentence"
    assert len(lines[""]) > 20
    assert "{" not in lines[""]
    assert lines["start"]


def test_the_expected_start_is_said_as_a_guess() -> None:
    lines = dict(waiting.explained(waiting_job(reason="Resources", expected_start_at=NOW + 720), NOW))
    assert lines["start"].startswith("likely in 12 min, at ")
    nobody_knows = dict(waiting.explained(waiting_job(reason="Resources"), NOW))
    assert "time_limit" in nobody_knows["start"]
    assert list(waiting.explained(waiting_job(state="RUNNING"), NOW)) == []


def event(kind: str, at: float = NOW, **data: object) -> EventView:
    return EventView(seq="1-0", at=at, kind=kind, data=data)


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ([], ""),
        ([event("placed", budget_bytes=2 * GIB)], ""),
        (
            [
                event("placed", budget_bytes=2 * GIB),
                event("resize_asked", budget_bytes=GIB, revision=1, why="job 9 needs the bytes"),
                event("resized", at=NOW - 240, budget_bytes=GIB, revision=1),
            ],
            "shrunk from 2.0 GiB to 1.0 GiB, 4 min ago: job 9 needs the bytes",
        ),
        (
            [
                event("placed", budget_bytes=GIB),
                event("resize_asked", budget_bytes=2 * GIB, revision=1),
                event("resized", at=NOW, budget_bytes=2 * GIB, revision=1),
            ],
            "grown from 1.0 GiB to 2.0 GiB, just now",
        ),
        (
            [
                event("placed", budget_bytes=2 * GIB),
                event("resize_asked", budget_bytes=GIB, revision=1),
                event("resized", budget_bytes=2 * GIB, revision=1, refused="does not stream"),
            ],
            "stayed at 2.0 GiB: does not stream",
        ),
        (
            [
                event("placed", budget_bytes=2 * GIB),
                event("resized", budget_bytes=GIB, revision=1),
                event("placed", budget_bytes=GIB),
            ],
            "",  # a new attempt begins with the budget it was placed with
        ),
    ],
)
def test_what_moved_a_budget_is_told_from_its_events(history: list[EventView], said: str) -> None:
    assert story.last_resize(history, NOW) == said


def test_the_queue_says_why_and_until_when(head: Head) -> None:
    running, waits = submitted(head, "runs"), submitted(head, "waits", who="bob")
    head.service.run(running)
    head.service.report(running, step=3, steps=10, k=5, units=14)
    head.service.store.set_wait(waits, 0, "Resources", "needs 1.0 GiB; the most is free on cpu:0: 512 MiB")
    head.service.outlook.replace({waits: head.service.store.now() + 725})
    said = ask(head, "queue")
    heading, first, second = said.stdout.splitlines()
    assert heading.split() == [
        "ID",
        "NAME",
        "USER",
        "STATE",
        "REASON",
        "BUDGET",
        "K/N",
        "STEP",
        "TIME",
        "START",
    ]
    assert re.search(r"runs +alice +running +- +1\.0 GiB +5/14 +3/10", first)
    assert re.search(r"waits +bob +queued +Resources .* in 12 min$", second)
    assert max(map(len, said.stdout.splitlines())) <= 80
    shown = ask(head, "show", waits, who="bob").stdout
    assert "Resources: needs 1.0 GiB; the most is free on cpu:0: 512 MiB" in " ".join(shown.split())
    assert "likely in 12 min" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_columns_that_say_nothing_are_left_out(head: Head) -> None:
    submitted(head, "alone")
    assert ask(head, "queue").stdout.splitlines()[0].split() == [
        "ID",
        "NAME",
        "USER",
        "STATE",
        "BUDGET",
        "TIME",
    ]


def test_a_running_job_tells_what_is_asked_of_it(head: Head) -> None:
    job_id = submitted(head, "elastic", elastic={"grow": False})
    head.service.run(job_id, 2 * GIB)
    head.service.happen(job_id, events.ResizeAsked(GIB, 1))
    assert "shrinking" in ask(head, "queue").stdout
    shown = ask(head, "show", job_id).stdout
    assert "2.0 GiB of 1.0 GiB..2.0 GiB; never grows" in shown
    assert "shrinking to 1.0 GiB; 2.0 GiB count until it has" in shown
    head.service.happen(job_id, events.Resized(GIB, 1))
    assert "shrunk from 2.0 GiB to 1.0 GiB, just now" in ask(head, "show", job_id).stdout
    head.service.happen(job_id, events.PauseAsked("owner"))
    assert "pausing" in ask(head, "queue").stdout


def test_one_that_has_no_use_for_its_bytes_says_so(head: Head) -> None:
    job_id = submitted(head, "idle", resources={"gpu_memory": "1GiB..2GiB"})
    head.service.run(job_id, 2 * GIB)
    assert "enough" not in ask(head, "show", job_id).stdout
    head.service.happen(job_id, events.Wanted(0))
    head.service.happen(job_id, events.ResizeAsked(GIB, 1, "its program has no use for more now"))
    head.service.happen(job_id, events.Resized(GIB, 1))
    shown = " ".join(ask(head, "show", job_id).stdout.split())
    assert "1.0 GiB of 1.0 GiB..2.0 GiB; 1.0 GiB is enough for now" in shown
    assert "shrunk from 2.0 GiB to 1.0 GiB, just now: its program has no use for more now" in shown
    head.service.happen(job_id, events.Wanted(None))
    assert "enough" not in ask(head, "show", job_id).stdout


# ---- acts on jobs ----------------------------------------------------------------------------------


def test_a_job_is_held_and_released(head: Head) -> None:
    job_id = submitted(head, "mine")
    assert ask(head, "hold", "mine").stdout == f"{job_id} mine held\n"
    assert "spcluster release" in ask(head, "show", job_id).stdout
    assert ask(head, "release", job_id).stdout == f"{job_id} mine queued\n"


def test_a_job_is_paused_resumed_and_requeued(head: Head) -> None:
    job_id = submitted(head, "mine")
    head.service.run(job_id)
    assert ask(head, "pause", job_id).stdout == f"{job_id} mine running: pausing\n"
    head.service.happen(job_id, events.Paused())
    assert "paused" in ask(head, "queue").stdout
    assert ask(head, "resume", job_id).returncode == 0
    head.service.happen(job_id, events.Resumed())
    assert ask(head, "requeue", job_id).stdout == f"{job_id} mine stopping: preempted\n"


def test_all_named_jobs_are_tried_and_the_worst_is_the_exit_code(head: Head) -> None:
    mine, foreign, other = (
        submitted(head, "mine"),
        submitted(head, "theirs", who="bob"),
        submitted(head, "other"),
    )
    said = ask(head, "hold", mine, foreign, "99", other)
    assert said.returncode == 6
    assert said.stdout == f"{mine} mine held\n{other} other held\n"
    assert "belongs to bob" in said.stderr
    assert "no job `99`" in said.stderr


@pytest.mark.parametrize(
    ("verb", "runs"), [("hold", True), ("release", True), ("pause", False), ("resume", False)]
)
def test_what_makes_no_sense_is_a_conflict_with_a_hint(head: Head, verb: str, runs: bool) -> None:
    job_id = submitted(head, "mine")
    if runs:
        head.service.run(job_id)
    said = ask(head, verb, job_id)
    assert (said.returncode, said.stdout) == (3, "")
    assert "hint: " in said.stderr


def test_a_job_is_changed(head: Head) -> None:
    job_id = submitted(head, "mine")
    said = ask(
        head,
        "set",
        job_id,
        "priority=interactive",
        "gpu_memory=1GiB..1536MiB",
        "time_limit=90m",
        "not_before=22:30",
    )
    assert said.returncode == 0, said.stderr
    record = head.service.store.get(job_id)
    assert (record.priority, record.budget_min_bytes, record.budget_max_bytes) == (2, GIB, 3 * GIB // 2)
    assert record.time_limit_s == 5400
    assert record.begin_at is not None
    assert ask(head, "set", job_id, "time_limit=null", "not_before=none").returncode == 0
    changed = head.service.store.get(job_id)
    assert (changed.time_limit_s, changed.begin_at, changed.priority) == (None, None, 2)


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        ("priority", "`priority` is not of the form FIELD=VALUE", "priority=high"),
        ("priority=hihg", "priority: expected one of low, normal, high, interactive", "did you mean high?"),
        ("gpu_memory=6", "gpu_memory: a size needs a unit, got 6", "6GiB"),
        ("gpu_memroy=6GiB", "`gpu_memroy` of a job cannot be changed", "did you mean gpu_memory?"),
        ("colour=red", "`colour` of a job cannot be changed", "these can be: priority"),
        ("time_limit=90", "time_limit: a duration needs a unit, got 90", "90m"),
        ("not_before=soon", "not_before: 'soon' is not a point in time", "22:30 and 2h"),
    ],
)
def test_a_wrong_change_is_refused_before_anything_is_sent(change: str, error: str, hint: str) -> None:
    said = spcluster("set", "1", change)
    assert (said.returncode, said.stdout) == (2, "")
    assert error in said.stderr
    assert hint in said.stderr


# ---- submit and arrays -----------------------------------------------------------------------------


def test_options_of_submit_are_fields_of_the_job(file: Path) -> None:
    said = spcluster(
        "submit", str(file), "--dry-run", "-o", "json", "--priority", "high", "--array", "0-3%2",
        "--after", "first", "--after", "any:12", "--after", "fail:other", "--not-before", "2026-11-22T22:00+01:00",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    job = json.loads(said.stdout)
    assert (job["priority"], job["array"]) == ("high", "0-3%2")
    assert job["after"] == {"ok": ["first"], "any": ["12"], "fail": ["other"]}
    assert job["schedule"]["not_before"] == "2026-11-22T22:00:00+01:00"


def test_one_job_under_two_names_cannot_both_succeed_and_fail(head: Head, file: Path) -> None:
    job_id = submitted(head, "first")
    said = ask(head, "submit", str(file), "--after", "first", "--after", f"fail:{job_id}")
    assert (said.returncode, said.stdout) == (2, "")
    assert f"job {job_id} both to succeed and to fail" in said.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--array", "16"), "16 could be an index or a count"),
        (("--after", "maybe:3"), "expected JOB, any:JOB or fail:JOB"),
        (("--not-before", "soon"), "is not a point in time"),
        (("--priority", "urgent"), "'urgent' is not one of"),
        (("--array", "0-3", "-f"), "-f follows one log"),
    ],
)
def test_wrong_options_of_submit_are_bad_input(file: Path, options: tuple[str, ...], error: str) -> None:
    said = spcluster("submit", str(file), *options)
    assert (said.returncode, said.stdout) == (2, "")
    assert error in said.stderr


def test_an_array_is_submitted_shown_and_meant_as_a_whole(head: Head, file: Path) -> None:
    said = ask(head, "submit", str(file), "-n", "sweep", "--array", "0-3%2")
    assert said.returncode == 0, said.stderr
    assert "job 1_0 (sweep) is queued" in said.stdout
    assert "the first of 4 tasks, 2 at once" in said.stdout
    rows = ask(head, "queue").stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["1_0", "1_1", "1_2", "1_3"]
    assert ask(head, "hold", "1_2").stdout == "1_2 sweep held\n"
    shown = ask(head, "show", "1_2").stdout
    assert "task 2 of 0-3%2" in shown
    assert "1 held, 3 queued" in shown
    # Where it makes no sense any more (1_2 is held), the array goes on with the others.
    assert ask(head, "cancel", "sweep").stdout.splitlines() == [
        f"1_{index} sweep cancelled" for index in range(4)
    ]
    again = ask(head, "cancel", "1")
    assert (again.returncode, again.stdout) == (3, "")
    assert ask(head, "wait", "sweep").returncode == 130

"""What a job file says about the queue: short forms, times, old records, and the README's example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from superpipe_cluster import spec
from superpipe_cluster.errors import JobFileError
from superpipe_cluster.spec import AfterSection, ArrayRange

JOB: dict[str, Any] = {"kind": "train", "name": "mine", "worker": "./mine.py"}


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine that reads the file stands in Berlin."""
    import time

    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# ---- after -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("first", AfterSection(ok=("first",))),
        (["first", "12"], AfterSection(ok=("first", "12"))),
        ([], AfterSection()),
        ({"ok": "first"}, AfterSection(ok=("first",))),
        ({"any": ["1"], "fail": "2"}, AfterSection(any=("1",), fail=("2",))),
        ({}, AfterSection()),
    ],
)
def test_after_has_short_forms(written: object, means: AfterSection) -> None:
    data = {**JOB, "after": written}
    job = spec.parse(data)
    assert job.after == means
    assert Draft202012Validator(spec.schema()).is_valid(data)
    assert spec.parse(json.loads(json.dumps(spec.dump(job)))) == job


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ([3], "after[0]: expected a text, got 3"),
        (["x", ["y"]], "after[1]: expected a text, got a list"),
        ([""], "after[0]: expected a text, got ''"),
        (3, "after: expected a list, got 3"),
        (None, "after: expected fields under it, got nothing"),
        ({"ok": {"x": 1}}, "after.ok: expected a list, got a mapping"),
        ({"okay": ["x"]}, "after.okay: unknown field\n    hint: did you mean `ok`?"),
        ({"ok": ["a", "b"], "fail": "b"}, "after.fail: b cannot both succeed and fail"),
    ],
)
def test_a_wrong_after_is_shown_where_it_was_written(written: object, problem: str) -> None:
    data = {**JOB, "after": written}
    with pytest.raises(JobFileError) as caught:
        spec.parse(data)
    (found,) = caught.value.problems
    assert found.startswith(problem)


def test_a_record_from_before_these_sections_is_still_read() -> None:
    old = spec.dump(spec.parse(JOB)) | {"after": ["7", "8"], "priority": "high"}
    for new in ("elastic", "schedule", "array"):
        del old[new]
    job = spec.parse_stored(old)
    assert job.after == AfterSection(ok=("7", "8"))
    assert (job.elastic.shrink, job.elastic.grow, job.elastic.max_slowdown) == (True, True, None)
    assert (job.schedule.window, job.schedule.at_end, job.schedule.begin_at, job.array) == (
        None,
        "shrink",
        None,
        None,
    )


def test_prerequisites_are_all_that_it_waits_for() -> None:
    job = spec.parse(
        {**JOB, "after": {"ok": ["a"], "any": ["b", "a"], "fail": ["c"]}, "model": {"source": "job:d"}}
    )
    assert job.prerequisites == ("a", "b", "c", "d")


# ---- times -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("berlin")
def test_a_time_without_offset_is_local_and_travels_with_one() -> None:
    job = spec.parse({**JOB, "schedule": {"not_before": "2026-07-01T22:00"}})
    assert spec.dump(job)["schedule"]["not_before"] == "2026-07-01T22:00:00+02:00"
    winter = spec.parse({**JOB, "schedule": {"not_before": "2026-11-22 22:00"}})
    assert winter.schedule.begin_at == datetime(2026, 11, 22, 21, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "spelled", ["2026-11-22T22:00:30+01:00", "2026-11-22 21:00:30Z", "2026-11-22T21:00:30.000000Z"]
)
def test_one_moment_has_many_spellings(spelled: str) -> None:
    job = spec.parse({**JOB, "schedule": {"not_before": spelled}})
    moment = datetime(2026, 11, 22, 22, 0, 30, tzinfo=timezone(timedelta(hours=1)))
    assert (job.schedule.not_before, job.schedule.begin_at) == (moment, moment.timestamp())


# ---- array, elastic, priority ----------------------------------------------------------------------


def test_an_array_and_an_elastic_job() -> None:
    data = {
        **JOB,
        "array": "0-15%4",
        "elastic": {"grow": False, "max_slowdown": 2},
        "priority": "interactive",
    }
    job = spec.parse(data)
    assert job.array == ArrayRange(tuple(range(16)), 4)
    assert (job.elastic.shrink, job.elastic.grow, job.elastic.max_slowdown) == (True, False, 2.0)
    assert spec.dump(job)["array"] == "0-15%4"


def test_the_readmes_example_is_a_job() -> None:
    text = (Path(spec.__file__).parent / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    job = spec.parse({**JOB, **spec.document.read(example).data})
    assert job.after == AfterSection(ok=("prepare",), any=("12",), fail=("nightly",))
    assert job.schedule.not_before is not None
    assert (job.array, job.elastic.max_slowdown, job.schedule.at_end) == (
        ArrayRange.parse("0-15%4"),
        2.0,
        "requeue",
    )
    documented = {"priority", "resources", "elastic", "schedule", "after", "array"}
    assert documented == set(spec.document.read(example).data)


def test_jobs_to_wait_for_are_text_however_they_look() -> None:
    for written in ("after: 12", "after: [12]", "after: {ok: [12]}", "after: {ok: 12}"):
        job = spec.parse({**JOB, **spec.document.read(written).data})
        assert job.after == AfterSection(ok=("12",))

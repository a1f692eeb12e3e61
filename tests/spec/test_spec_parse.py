"""Jobs as plain data: strict in, lossless out, lenient from the store; and the schema that says the same."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from examples import examples
from superpipe_cluster import spec
from superpipe_cluster.errors import JobFileError
from superpipe_cluster.spec import units
from superpipe_cluster.spec.document import AS_WRITTEN
from superpipe_cluster.spec.job import KINDS

TRAIN: dict[str, Any] = {
    "kind": "train",
    "name": "alice",
    "model": {"config": {"model_type": "llama"}},
    "data": {"files": ["/data/a.txt"]},
    "train": {"steps": 5},
}

words_alphabet = st.characters(codec="utf-8", exclude_characters="\0")
words = st.text(words_alphabet, min_size=1, max_size=12)
counts = st.integers(1, 10**6)
seeds = st.integers(0, 2**63 - 1)
amounts = st.floats(1e-12, 1e12)
sizes = st.integers(1, units.MAX_BYTES)
ranges = st.tuples(sizes, sizes).map(lambda ends: str(spec.ByteRange(min(ends), max(ends))))
durations = st.floats(1e-6, 1e9).map(units.spell_duration) | st.sampled_from(["8h", "90m", "1d 2h 3m 4s"])
moments = st.datetimes(
    datetime(2000, 1, 2),  # noqa: DTZ001 - bounds are without a zone here
    datetime(2998, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC) | st.just(timezone(timedelta(hours=-5))),
).map(units.spell_moment)
arrays = st.sets(st.integers(0, 99), min_size=1).map(lambda found: str(spec.ArrayRange(tuple(sorted(found)))))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
common = {
    "name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
    "model": st.fixed_dictionaries(
        {}, optional={"seed": seeds, "dtype": st.sampled_from(["float32", "bfloat16"]), "tokenizer": words}
    ).flatmap(
        lambda rest: st.one_of(
            words.map(lambda source: {**rest, "source": f"{source}/x"}),
            st.dictionaries(words, json_values, max_size=3).map(
                lambda config: {**rest, "config": {**config, "model_type": "llama"}}
            ),
        )
    ),
}
optional = {
    "resources": st.fixed_dictionaries(
        {},
        optional={
            "gpu_memory": st.just("auto") | ranges,
            "host_memory": st.just("auto") | sizes.map(units.spell_bytes),
            "host": st.sampled_from(["pinned", "shared", "disk"]),
            "cpus": counts,
        },
    ),
    "streaming": st.fixed_dictionaries(
        {}, optional={"k": st.none() | counts, "policy": st.sampled_from(["optimal", "whole"])}
    ),
    "output": st.none() | words,
    "elastic": st.fixed_dictionaries(
        {},
        optional={
            "shrink": st.booleans(),
            "grow": st.booleans(),
            "max_slowdown": st.none() | st.floats(1, 1e6),
        },
    ),
    "schedule": st.fixed_dictionaries(
        {},
        optional={
            "window": st.none() | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
            "at_end": st.sampled_from(["shrink", "pause", "requeue"]),
            "not_before": st.none() | moments,
        },
    ),
    "after": words
    | st.lists(words, max_size=3)
    | st.fixed_dictionaries({}, optional={"ok": words | st.lists(words, max_size=3), "any": st.lists(words)}),
    "array": st.none() | arrays,
    "priority": st.sampled_from(["low", "normal", "high", "interactive"]),
    "time_limit": st.none() | durations,
    "max_attempts": counts,
    "env": st.dictionaries(
        st.from_regex("[a-z_][a-z0-9_]{0,8}", fullmatch=True), st.text(words_alphabet, max_size=8), max_size=3
    ),
    "params": st.dictionaries(words, json_values, max_size=3),
}
train_jobs = st.fixed_dictionaries(
    {
        **common,
        "kind": st.just("train"),
        "data": st.fixed_dictionaries(
            {"files": st.lists(words, min_size=1, max_size=3)}, optional={"field": words}
        ),
        "train": st.fixed_dictionaries(
            {"steps": counts},
            optional={
                "lr": amounts,
                "grad_clip": st.none() | amounts,
                "seed": seeds,
                "optimizer_on": st.sampled_from(["device", "host"]),
            },
        ),
    },
    optional=optional,
)
generate_jobs = st.fixed_dictionaries(
    {
        **common,
        "kind": st.just("generate"),
        "generate": st.fixed_dictionaries(
            {"prompts": words.filter(str.strip) | st.lists(st.text(max_size=9), min_size=1, max_size=3)},
            optional={"temperature": st.floats(0, 10), "top_k": st.none() | counts},
        ),
    },
    optional=optional,
)  # fmt: skip


VALIDATOR = Draft202012Validator(spec.schema())


@settings(max_examples=examples(50), deadline=None)
@given(train_jobs | generate_jobs)
def test_dump_and_parse_lose_nothing(data: dict[str, Any]) -> None:
    job = spec.parse(data)
    dumped = spec.dump(job)
    assert spec.parse(dumped) == job
    assert spec.parse(json.loads(json.dumps(dumped, allow_nan=False))) == job
    assert spec.parse_stored(dumped) == job
    assert pickle.loads(pickle.dumps(job)) == job
    assert list(VALIDATOR.iter_errors(dumped)) == []


_NAMES = [
    "kind",
    "name",
    "model",
    "data",
    "train",
    "generate",
    "resources",
    "env",
    "after",
    "elastic",
    "schedule",
    "array",
    "worker",
    "files",
]
half_right = st.recursive(
    json_values | st.sampled_from(["train", "generate", "./x.py"]),
    lambda inner: st.dictionaries(st.sampled_from(_NAMES) | words, inner, max_size=6),
    max_leaves=20,
)


@settings(deadline=None)
@given(half_right, st.sampled_from(["train", "generate"]))
def test_no_data_makes_anything_but_a_job_or_a_clear_error(data: object, kind: str) -> None:
    if isinstance(data, dict):
        data["kind"] = kind
    try:
        job = spec.parse(data)
    except JobFileError as error:
        problems = error.problems
    else:
        problems = ("none",)
        assert spec.parse(spec.dump(job)) == job
    assert problems
    assert "pydantic" not in "".join(problems)


def test_a_dump_is_written_with_units() -> None:
    job = spec.parse({**TRAIN, "resources": {"gpu_memory": "1024MiB..24GiB"}, "time_limit": "90m"})
    dumped = spec.dump(job)
    assert dumped["resources"] == {
        "gpu_memory": "1GiB..24GiB",
        "host_memory": "auto",
        "host": "pinned",
        "cpus": 1,
    }
    assert dumped["time_limit"] == "1h30m"


def test_all_mistakes_of_plain_data_come_at_once_without_places() -> None:
    data = {**TRAIN, "name": "No Name", "train": {"steps": 0}, "resources": {"gpu_memory": 5}}
    with pytest.raises(JobFileError) as caught:
        spec.parse(data)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "name",
        "resources.gpu_memory",
        "train.steps",
    ]
    assert caught.value.message == "the job has 3 mistakes"
    assert caught.value.http_status == 422


@pytest.mark.parametrize(
    "data", [None, [], "kind: train", 3, {}, {1: 2}, {"kind": ["train"]}, {"kind": "train", "env": {1: "x"}}]
)
def test_data_that_is_no_job_is_refused(data: object) -> None:
    with pytest.raises(JobFileError) as caught:
        spec.parse(data)
    assert caught.value.problems


def test_a_record_of_a_newer_version_is_still_read() -> None:
    newer = copy.deepcopy(TRAIN) | {"colour": "blue"}
    newer["train"]["sharpness"] = 3
    with pytest.raises(JobFileError):
        spec.parse(newer)
    assert spec.parse_stored(newer) == spec.parse(TRAIN)
    with pytest.raises(JobFileError):
        spec.parse_stored({**TRAIN, "kind": "dream"})


MODEL = {"source": "org/model"}
PAINT = {"prompts": ["a", "b", "c"], "images_per_prompt": 3, "batch_size": 4, "steps": 20}


@pytest.mark.parametrize(
    ("kind", "sections", "steps"),
    [
        ("train", {"data": {"files": ["a"]}, "train": {"steps": 5}}, 5),
        ("finetune", {"data": {"files": ["a"]}, "finetune": {"steps": 7, "epochs": 3}}, 7),
        ("finetune", {"data": {"files": ["a"]}, "finetune": {"epochs": 3}}, None),
        ("vision", {"images": {"train": "a"}, "train": {"epochs": 3}}, None),
        ("generate", {"generate": {"prompts": ["a", "b"]}}, 2),
        ("generate", {"generate": {"prompts": "a.txt"}}, None),
        ("generate", {"generate": {"prompts": ["a", "b"]}, "worker": "./mine.py"}, None),
        ("paint", {"paint": PAINT}, 60),
        ("paint", {"paint": {**PAINT, "prompts": "a.txt"}}, None),
        ("embed", {"embed": {"texts": "a.txt"}}, None),
        ("serve", {}, None),
        ("script", {"run": "true", "resources": {"gpu_memory": "1GiB"}}, None),
    ],
)
def test_a_job_has_the_steps_that_its_file_tells(
    kind: str, sections: dict[str, Any], steps: int | None
) -> None:
    model = {} if kind == "script" else {"model": MODEL}
    assert spec.parse({"kind": kind, "name": "a", **model, **sections}).steps == steps


def test_jobs_cannot_be_changed() -> None:
    job = spec.parse(TRAIN)
    with pytest.raises(ValueError, match="frozen"):
        job.name = "bob"  # type: ignore[misc]


# ---- the schema ------------------------------------------------------------------------------------


def test_the_schema_is_valid_and_describes_every_field() -> None:
    schema = spec.schema()
    Draft202012Validator.check_schema(schema)
    undescribed = [
        f"{name}.{field}"
        for name, definition in schema["$defs"].items()
        for field, about in definition.get("properties", {}).items()
        if "description" not in schema["$defs"].get(about.get("$ref", "").rpartition("/")[2], about)
    ]
    assert undescribed == []


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"resources": {"gpu_memory": "10GiB..24GiB", "host_memory": "auto"}}, True),
        ({"resources": {"gpu_memory": 12}}, False),
        ({"resources": {"gpu_memory": "12"}}, False),
        ({"resources": {"host_memory": "auto..3GiB"}}, False),
        ({"time_limit": "1h30m"}, True),
        ({"time_limit": "90"}, False),
        ({"name": "No Name"}, False),
        ({"train": {"steps": 0}}, False),
        ({"train": {"stepz": 5}}, False),
        ({"kind": "dream"}, False),
        ({"elastic": {"max_slowdown": 1.5, "shrink": False}}, True),
        ({"elastic": {"max_slowdown": 0.5}}, False),
        ({"elastic": {"shrink": "yes"}}, False),
        ({"schedule": {"not_before": "2026-11-22T22:00", "window": "nights", "at_end": "pause"}}, True),
        ({"schedule": {"not_before": "2026-11-22"}}, False),
        ({"schedule": {"not_before": "22:00"}}, False),
        ({"schedule": {"window": "No Name"}}, False),
        ({"schedule": {"at_end": "stop"}}, False),
        ({"after": {"ok": "first", "any": ["12"]}}, True),
        ({"after": "first"}, True),
        ({"after": {"okay": "first"}}, False),
        ({"after": [1]}, False),
        ({"array": "1,3,5-9%2"}, True),
        ({"array": "16"}, False),
        ({"priority": "interactive"}, True),
        ({"priority": "urgent"}, False),
    ],
)
def test_the_schema_says_what_the_parser_does(change: dict[str, Any], valid: bool) -> None:
    data = {**TRAIN, **change}
    assert Draft202012Validator(spec.schema()).is_valid(data) is valid
    if valid:
        spec.parse(data)
    else:
        with pytest.raises(JobFileError):
            spec.parse(data)


def test_a_file_needs_no_name_by_the_schema() -> None:
    unnamed = {key: value for key, value in TRAIN.items() if key != "name"}
    assert Draft202012Validator(spec.schema()).is_valid(unnamed)


@pytest.mark.parametrize("path", AS_WRITTEN)
def test_fields_taken_as_written_exist(path: tuple[str, ...]) -> None:
    sections = [
        kind if len(path) == 1 or path[1] == "*" else kind.section_at(path[:1]) for kind in KINDS.values()
    ]
    field = path[1] if len(path) > 1 and path[1] != "*" else path[0]
    assert any(section is not None and field in section.model_fields for section in sections)

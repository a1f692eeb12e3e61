"""The types of single values in a job file: counts, names, sizes, durations, points in time, tasks of an array.

Owns what one value may be and how it is written back. Does not own the fields themselves (`sections`, `queueing`,
`job`) nor the grammars (`units`, `arrays`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec.arrays import ARRAY_PATTERN, ArrayRange
from superpipe_cluster.spec.base import refused
from superpipe_cluster.spec.units import (
    BYTE_RANGE_PATTERN,
    BYTES_PATTERN,
    DURATION_PATTERN,
    MOMENT_PATTERN,
    ByteRange,
    parse_bytes,
    parse_duration,
    parse_moment,
    spell_bytes,
    spell_duration,
    spell_moment,
)

T = TypeVar("T")

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
#: Counts end where Redis' Lua numbers and tensor sizes are still far from theirs.
_MOST = 2**40


def _not_a_truth_value(value: object) -> object:
    # To Python, and so to pydantic, `true` is the number 1.
    if isinstance(value, bool):
        raise refused(f"expected a number, got {str(value).lower()}")
    return value


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise refused("holds a NUL character, which no path and no variable can")
    return text


def _located(parse: Callable[[object], T]) -> Callable[[object], T]:
    """The same parser, with its `BadInput` turned into what pydantic collects and locates."""

    def parse_or_refuse(value: object) -> T:
        try:
            return parse(value)
        except BadInput as error:
            raise refused(error.message, error.hint) from None

    return parse_or_refuse


def _auto_or_bytes(value: object) -> Literal["auto"] | int:
    if value == "auto":
        return "auto"
    size_bytes = parse_bytes(value)
    if size_bytes == 0:
        raise BadInput("a memory size must be more than zero", hint="write a size like 12GiB, or auto")
    return size_bytes


def _auto_or_count(value: object) -> Literal["auto"] | int:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST:
        return value
    raise refused("expected a whole number of 1 or more, or auto")


def _auto_or_range(value: object) -> Literal["auto"] | ByteRange:
    if value == "auto":
        return "auto"
    return value if isinstance(value, ByteRange) else ByteRange.parse(value)


def _some_seconds(value: object) -> float:
    seconds = parse_duration(value)
    if seconds == 0:
        raise BadInput("a time limit must be more than zero", hint="leave it out for no limit")
    return seconds


def _name_of(what: str) -> Callable[[str], str]:
    """A check that a text can be the name of `what`."""

    def check(name: str) -> str:
        if re.match(NAME_PATTERN, name) is None or name.endswith("\n"):
            raise refused(
                f"{name[:80]!r} cannot be a {what}'s name",
                f"use up to 63 lowercase letters, digits, dots, dashes and underscores: {safe_name(name)}",
            )
        return name

    return check


def safe_name(text: str) -> str:
    """The nearest allowed job name; `job` when nothing of the text can stay."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).lstrip("._-")[:63].rstrip("-") or "job"


def _array(value: object) -> ArrayRange:
    return value if isinstance(value, ArrayRange) else ArrayRange.parse(value)


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _prompts(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list | tuple):
        texts: tuple[object, ...] = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if texts and all(isinstance(text, str) for text in texts):
            return tuple(str(text) for text in texts)
    raise refused("expected a file of prompts, or a list of texts", 'prompts.txt or ["def f(", "class "]')


# The bounds come before the validator: outside of it they would be missing in the JSON schema.
Count = Annotated[int, Field(ge=1, le=_MOST), BeforeValidator(_not_a_truth_value)]
CountOrZero = Annotated[int, Field(ge=0, le=_MOST), BeforeValidator(_not_a_truth_value)]
#: Above 0, and 1 at most.
Probability = Annotated[float, Field(gt=0, le=1), BeforeValidator(_not_a_truth_value)]
#: At least 0, and less than 1.
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_not_a_truth_value)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_not_a_truth_value)]
PositiveOrZero = Annotated[float, Field(ge=0), BeforeValidator(_not_a_truth_value)]
#: How many times the whole model's step a step may take.
Slowdown = Annotated[float, Field(ge=1), BeforeValidator(_not_a_truth_value)]
#: true or false, and no word that Python takes for one of them.
Flag = Annotated[bool, Field(strict=True)]

#: Any text that the operating system takes, the empty one too.
AnyText = Annotated[str, AfterValidator(_without_nul)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
Name = Annotated[str, AfterValidator(_name_of("job")), Field(json_schema_extra={"pattern": NAME_PATTERN})]
WindowName = Annotated[
    str, AfterValidator(_name_of("window")), Field(json_schema_extra={"pattern": NAME_PATTERN})
]


def _unit_schema(pattern: str, *examples: str) -> WithJsonSchema:
    schema: dict[str, Any] = {"type": "string", "pattern": pattern, "examples": list(examples)}
    return WithJsonSchema(schema)


def _auto_or(pattern: str) -> str:
    return f"^auto$|{pattern}"


#: A count, or `auto`.
AutoOrCount = Annotated[
    Literal["auto"] | int,
    PlainValidator(_auto_or_count),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": _MOST}]}),
]

#: Device memory: `auto`, or guaranteed..wanted.
Memory = Annotated[
    Literal["auto"] | ByteRange,
    PlainValidator(_located(_auto_or_range)),
    PlainSerializer(str, return_type=str),
    _unit_schema(_auto_or(BYTE_RANGE_PATTERN), "auto", "12GiB", "10GiB..24GiB"),
]

#: Host memory in bytes, or `auto`.
HostMemory = Annotated[
    Literal["auto"] | int,
    PlainValidator(_located(_auto_or_bytes)),
    PlainSerializer(lambda value: value if value == "auto" else spell_bytes(value), return_type=str),
    _unit_schema(_auto_or(BYTES_PATTERN), "auto", "16GiB"),
]

#: Seconds, written with a unit.
Duration = Annotated[
    float,
    PlainValidator(_located(_some_seconds)),
    PlainSerializer(spell_duration, return_type=str),
    _unit_schema(DURATION_PATTERN, "8h", "90m", "1h30m"),
]

#: A file of prompts, or the prompts themselves.
Prompts = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]

#: A point in time.
Moment = Annotated[
    datetime,
    PlainValidator(_located(parse_moment)),
    PlainSerializer(spell_moment, return_type=str),
    _unit_schema(MOMENT_PATTERN, "2026-11-22T22:00", "2026-11-22T22:00+01:00"),
]

#: The tasks of an array, and how many of them at once.
Array = Annotated[
    ArrayRange,
    PlainValidator(_located(_array)),
    PlainSerializer(str, return_type=str),
    _unit_schema(ARRAY_PATTERN, "0-15", "0-15%4", "1,3,5-9"),
]

#: Paths or globs: a list, or one of them.
Patterns = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_more),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }
    ),
]

#: Ids or names of other jobs: a list, or one of them.
JobRefs = Annotated[
    tuple[Text, ...],
    BeforeValidator(_one_or_more),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
            ]
        }
    ),
]

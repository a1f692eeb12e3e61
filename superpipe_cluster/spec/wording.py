"""What pydantic finds, in words for people: `expected a whole number, got 'ten'`, `did you mean lr?`.

Owns the wording of every kind of mistake and its hint. Does not own the rules themselves (`sections`, `job`,
`fields`) nor places in files (`document`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, cast

from superpipe_cluster.spec.base import REFUSED, FieldPath, StrictModel
from superpipe_cluster.spec.job import KINDS
from superpipe_cluster.spec.problems import Problem, dotted

_LONGEST = 60

_BOUNDS = {
    "greater_than": "must be more than {gt:.0f}",
    "greater_than_equal": "must be at least {ge:.0f}",
    "less_than": "must be less than {lt:.0f}",
    "less_than_equal": "must be at most {le:.0f}",
}


def problem(details: Mapping[str, Any], model: type[StrictModel]) -> Problem:
    """The problem in one of pydantic's error details, found while validating `model`."""
    path: FieldPath = tuple(part for part in details["loc"] if part != "[key]")
    kind, given, context = cast("str", details["type"]), details["input"], details.get("ctx", {})
    if kind == REFUSED:
        lacks = tuple((*path, *field) for field in context["lacks"])
        return Problem(path, context["message"], context["hint"], lacks=lacks)
    if kind == "extra_forbidden":
        return _unknown_field(path, model)
    if kind == "missing":
        return Problem(path, "missing", _description(path, model), lacks=(path,))
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        hint = _did_you_mean(str(given), choices)
        return Problem(path, f"expected one of {', '.join(choices)}; got {shown(given)}", hint)
    if kind in _BOUNDS:
        return Problem(path, f"{_BOUNDS[kind].format(**context)}, got {shown(given)}")
    expected, hint = _expected(kind, given)
    if expected is None:
        return Problem(path, details["msg"], hint)
    return Problem(path, f"expected {expected}, got {shown(given)}", hint)


def unknown_kind(kind: object, guess: str | None) -> Problem:
    """The job's `kind` is not one of ours."""
    known = ", ".join(KINDS)
    if kind is None:
        return Problem(("kind",), "missing", f"write kind: {guess}" if guess else f"one of {known}")
    hint = f"did you mean `{guess}`?" if guess else None
    return Problem(("kind",), f"expected one of {known}; got {shown(kind)}", hint)


def shown(value: object) -> str:
    """A value as the user would know it again, cut to a readable length."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _expected(kind: str, given: object) -> tuple[str | None, str | None]:
    """What a value of a wrong type should have been, and a hint."""
    family = kind.partition("_")[0]
    if family == "int":
        return "a whole number", None
    if family in ("float", "finite"):
        return "a number", None
    if family == "bool":
        return "true or false", None
    if family == "string":
        if kind == "string_too_short":
            return "a text", None
        simple = isinstance(given, int | float)
        return "a text", f'put it in quotes: "{shown(given)}"' if simple else None
    if kind in ("tuple_type", "list_type"):
        return "a list", f"write it as a list: [{given}]" if isinstance(given, str | int | float) else None
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "fields under it", None
    if kind == "too_short":
        return "at least one entry", None
    return None, None


def _unknown_field(path: FieldPath, model: type[StrictModel]) -> Problem:
    name = str(path[-1])
    inside = model.section_at(path[:-1]) or model
    if len(path) == 1:
        for kind, other in KINDS.items():
            if other is not model and name in other.model_fields:
                return Problem(
                    path, f"belongs to kind: {kind}", "remove it, or change the kind", about_key=True
                )
    close = difflib.get_close_matches(name.lower(), inside.model_fields, n=1)
    meant = (*path[:-1], close[0]) if close else _other_home(name, model)
    if meant is None:
        return Problem(path, "unknown field", f"known here: {', '.join(inside.model_fields)}", about_key=True)
    # In the right section, the name alone says it.
    hint = f"did you mean `{close[0] if close else dotted(meant)}`?"
    if len(meant) == 1 and not close:
        hint = f"`{name}` belongs at the top level"
    return Problem(path, "unknown field", hint, about_key=True, meant=meant)


def _other_home(name: str, model: type[StrictModel]) -> FieldPath | None:
    """Where a field of this name is known: after spelling, the commonest mistake is the wrong section."""
    if name in model.model_fields:
        return (name,)
    for home in model.model_fields:
        section = model.section_at((home,))
        if section is not None and name in section.model_fields:
            return (home, name)
    return None


def _description(path: FieldPath, model: type[StrictModel]) -> str | None:
    inside = model.section_at(path[:-1])
    field = inside.model_fields.get(str(path[-1])) if inside else None
    return field.description if field else None


def _did_you_mean(word: str, choices: list[str]) -> str | None:
    close = difflib.get_close_matches(word.lower(), choices, n=1)
    return f"did you mean `{close[0]}`?" if close else None

"""`--set train.steps=5`: changing a job file's values without editing it.

Owns the grammar of overrides and where they may reach. Does not validate what they set (`parse` does, and
`load` locates it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from superpipe_cluster.spec import document as documents
from superpipe_cluster.spec.base import FieldPath
from superpipe_cluster.spec.document import Document
from superpipe_cluster.spec.problems import Problem, dotted

_GRAMMAR = "write --set FIELD=VALUE, like --set train.steps=5"


def apply_overrides(
    document: Document, overrides: Sequence[str]
) -> tuple[dict[FieldPath, int], list[tuple[int, str, Problem]]]:
    """Write each override into the document's data, later ones over earlier ones.

    Returns:
        The paths set, each with the number of its override, for locating what is wrong under them; and the
        overrides that could not be applied, each with its number and place, `--set train.steps`.
    """
    done: dict[FieldPath, int] = {}
    problems: list[tuple[int, str, Problem]] = []
    for number, override in enumerate(overrides):
        name, equals, text = override.partition("=")
        path: FieldPath = tuple(part.strip() for part in name.split("."))
        if not equals or not all(path):
            problems.append(
                (number, f"--set {override}", Problem((), "not of the form FIELD=VALUE", _GRAMMAR))
            )
            continue
        where = place(path)
        try:
            value = documents.read(text, at=path)
        except documents.Unreadable as error:
            problems.append((number, where, error.problem))
            continue
        problems += [(number, where, problem) for _, problem in value.problems]
        problem = _put(document.data, path, value.data)
        if problem is not None:
            problems.append((number, where, problem))
        else:
            done[path] = number
    return done, problems


def place(path: FieldPath) -> str:
    """How a mistake in an override is located."""
    return f"--set {dotted(path)}"


def _put(data: dict[str, Any], path: FieldPath, value: Any) -> Problem | None:
    inner = data
    for depth, part in enumerate(path[:-1], start=1):
        if inner.get(str(part)) is None:
            inner[str(part)] = {}
        below = inner[str(part)]
        if not isinstance(below, dict):
            what = "a list, set as a whole" if isinstance(below, list) else "a value, without fields under it"
            return Problem(path[:depth], f"is {what}", f"write --set {dotted(path[:depth])}=...")
        inner = cast("dict[str, Any]", below)
    inner[str(path[-1])] = value
    return None

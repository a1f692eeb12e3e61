"""Plain data into a `JobSpec` and back.

Owns finding every mistake in one pass, whatever the job came from. Does not read files and gives no places in
them (`load` does both).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from superpipe_cluster.errors import JobFileError
from superpipe_cluster.spec import wording
from superpipe_cluster.spec.base import StrictModel
from superpipe_cluster.spec.job import KINDS, JobSpec
from superpipe_cluster.spec.job_base import JobBase
from superpipe_cluster.spec.problems import Problem, counted, without_echoes


def parse(data: object) -> JobSpec:
    """Build a job from plain data, as it comes over HTTP; strict.

    Raises:
        JobFileError: with every mistake in `problems`.
    """
    job, problems = check(data)
    if job is None or problems:
        texts = tuple(problem.text() for problem in problems)
        raise JobFileError(f"the job has {counted(len(texts))}", problems=texts)
    return job


def parse_stored(data: Mapping[str, object]) -> JobSpec:
    """Build a job from a stored record; fields that a newer version wrote and this one lacks are dropped.

    Raises:
        JobFileError: with every mistake in `problems`.
    """
    model = KINDS.get(str(data.get("kind")))
    return parse(data if model is None else _known(data, model))


def dump(job: JobBase) -> dict[str, Any]:
    """The job as JSON data, sizes and durations with their units: `parse(dump(job)) == job`."""
    return job.model_dump(mode="json")


def check(data: object) -> tuple[JobSpec | None, list[Problem]]:
    """The job, if it can be built, and every mistake found.

    When the `kind` itself is wrong, the rest is checked as the kind that was probably meant.
    """
    if not isinstance(data, dict):
        problem = Problem((), f"expected fields like `kind: train`, got {wording.shown(data)}")
        return None, [problem]
    fields = cast("dict[str, object]", data)
    problems: list[Problem] = []
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        guess = _probable_kind(fields)
        problems.append(wording.unknown_kind(kind, guess))
        if guess is None:
            return None, problems
        kind = guess
        fields = {**fields, "kind": guess}
    # Validated by the kind's own class rather than by the union: pydantic would put the tag into every path.
    model = KINDS[kind]
    try:
        job = cast("JobSpec", model.model_validate(fields))
    except ValidationError as error:
        problems += [wording.problem(details, model) for details in error.errors(include_url=False)]
        return None, without_echoes(problems)
    return (None if problems else job), problems


def _probable_kind(fields: dict[str, object]) -> str | None:
    close = difflib.get_close_matches(str(fields.get("kind")).lower(), KINDS, n=1)
    if close:
        return close[0]
    return next((kind for kind in KINDS if kind in fields), None)


def _known(data: Mapping[str, object], model: type[StrictModel]) -> dict[str, object]:
    known: dict[str, object] = {}
    for name, value in data.items():
        if name in model.model_fields:
            section = model.section_at((name,))
            inner = cast("dict[str, object]", value) if isinstance(value, dict) else None
            known[name] = value if section is None or inner is None else _known(inner, section)
    return known

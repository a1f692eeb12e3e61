"""A job file on disk into a `JobSpec`, with every mistake at its line and column.

Owns the order of things: read, override, make paths absolute, validate, look for the files. The parts
themselves are `document`, `overrides`, `files` and `parse`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from superpipe_cluster import bundled
from superpipe_cluster.errors import FileMissing, JobFileError, NotFound
from superpipe_cluster.spec import commands, files
from superpipe_cluster.spec import document as documents
from superpipe_cluster.spec.base import FieldPath
from superpipe_cluster.spec.document import Document, Mark
from superpipe_cluster.spec.fields import safe_name
from superpipe_cluster.spec.job import KINDS, JobSpec
from superpipe_cluster.spec.overrides import apply_overrides, place
from superpipe_cluster.spec.parse import check
from superpipe_cluster.spec.problems import Problem, counted

#: A job file is a page of text; anything larger was named by mistake.
_MOST_BYTES = 2**20
_EXAMPLES = "start from a ready one: `spcluster examples`"


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job file.

    Args:
        path: the YAML file. Relative paths inside it start at its folder and are absolute in the result.
        overrides: changes in the form `train.steps=5`, applied in order; relative paths in them start at
            the job file's folder, too.

    Raises:
        JobFileError: with every mistake in `problems`, each with its place and a hint.
        FileMissing: the job file, or, in an otherwise right one, a file that it names, is not there.
    """
    shown = os.fspath(path)
    text = _read(shown)
    try:
        document = documents.read(text)
    except documents.Unreadable as error:
        raise _error(shown, [error.problem.text(f"{shown}:{error.mark}")]) from None
    data = document.data
    if not isinstance(data, dict):
        raise _error(shown, [_not_fields(data).text(f"{shown}:1:1")])
    data = cast("dict[str, Any]", data)
    base = Path(os.path.abspath(shown)).parent

    done, unapplied = apply_overrides(document, overrides)
    if data.get("name") is None:
        data["name"] = safe_name(Path(shown).stem)
    is_script = data.get("kind") == "script"
    if is_script and data.get("folder") is None:
        data["folder"] = "."
    files.resolve(data, base)
    job, problems = check(data)
    problems += _unknown_worker(data)
    # A value that cannot be read has its mistake already, whatever else it is not.
    unread = {problem.path for _, problem in document.problems if not problem.about_key}
    problems = [problem for problem in problems if problem.path not in unread]
    missing = files.missing(data) + (list(commands.problems(data)) if is_script else [])

    sources = _Sources(shown, document, done)
    if job is not None and not problems and not document.problems and not unapplied:
        if missing:
            places = [(sources.shorten(problem), sources.where(problem)) for problem in missing]
            raise files.missing_error(places)
        return job
    located = [(sources.mark(problem), sources.text(problem)) for problem in problems + missing]
    located += [(mark, problem.text(f"{shown}:{mark}")) for mark, problem in document.problems]
    located += [(_after_all(number), problem.text(where)) for number, where, problem in unapplied]
    raise _error(shown, [text for _, text in sorted(located, key=lambda entry: entry[0])])


class _Sources:
    """Where each path of the job comes from: a place in the file, or an override."""

    def __init__(self, shown: str, document: Document, sets: dict[FieldPath, int]) -> None:
        self._shown = shown
        self._document = document
        self._sets = sets

    def _nearest(self, problem: Problem) -> Mark | FieldPath:
        """The place of the field, or of what is written nearest around it: a missing field has none."""
        prefixes = [problem.path[:length] for length in range(len(problem.path), -1, -1)]
        # What the file says at or below an override is no longer what the job says.
        if (path := next((path for path in prefixes if path in self._sets), None)) is not None:
            return path
        for path in prefixes:
            by_name = problem.about_key and path == problem.path
            mark = (self._document.keys if by_name else self._document.values).get(path)
            # A section that the file does not have was made by an override of something in it.
            made = next((longer for longer in self._sets if path and longer[: len(path)] == path), None)
            if mark is not None or made is not None:
                return mark or made or path
        return Mark(1, 1)

    def mark(self, problem: Problem) -> Mark:
        """For sorting: mistakes of the file in its order, then those of overrides."""
        nearest = self._nearest(problem)
        return nearest if isinstance(nearest, Mark) else _after_all(self._sets[nearest])

    def where(self, problem: Problem) -> str:
        """`train.yaml:5:3`, or `--set train.steps`."""
        nearest = self._nearest(problem)
        return f"{self._shown}:{nearest}" if isinstance(nearest, Mark) else place(nearest)

    def shorten(self, problem: Problem) -> Problem:
        """The problem without its path, when its place is an override that says the same."""
        return replace(problem, path=()) if self._nearest(problem) == problem.path else problem

    def text(self, problem: Problem) -> str:
        """The problem in words, behind its place."""
        return self.shorten(problem).text(self.where(problem))


def _after_all(override: int) -> Mark:
    return Mark(2**31, override)


def _read(shown: str) -> str:
    try:
        if os.path.isdir(shown):
            inside = sorted(name for name in os.listdir(shown) if name.endswith((".yaml", ".yml")))
            hint = f"name a file in it: {os.path.join(shown, inside[0])}" if inside else "name a YAML file"
            raise FileMissing(f"{shown} is a folder, not a job file", hint=hint)
        with open(shown, "rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise FileMissing(f"there is no job file {shown}", hint=files.similar(shown) or _EXAMPLES) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        message = f"cannot read the job file {shown}: {reason}"
        raise FileMissing(message, hint="check its path and permissions") from None
    if len(content) > _MOST_BYTES:
        raise _error(shown, [Problem((), "larger than 1 MiB: this is no job file").text(f"{shown}:1:1")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        mark = Mark(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        message = f"byte 0x{content[error.start]:02x} is not UTF-8 text"
        problem = Problem((), message, "save the file as UTF-8")
        raise _error(shown, [problem.text(f"{shown}:{mark}")]) from None


def _not_fields(data: object) -> Problem:
    if data is None:
        return Problem((), "the file is empty", _EXAMPLES)
    what = "a list" if isinstance(data, list) else "a single text"
    return Problem((), f"expected fields like `kind: train`, got {what}")


def _unknown_worker(data: dict[str, Any]) -> list[Problem]:
    worker = data.get("worker")
    defaults = {kind.model_fields["worker"].default for kind in KINDS.values()}
    if not isinstance(worker, str) or not worker or files.is_path(worker) or worker in defaults:
        return []
    try:
        bundled.worker_path(worker)
    except NotFound as error:
        return [Problem(("worker",), error.message, error.hint)]
    return []


def _error(shown: str, texts: list[str]) -> JobFileError:
    return JobFileError(f"{shown} has {counted(len(texts))}", problems=tuple(texts))

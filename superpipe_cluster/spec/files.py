"""The files of the submitter's machine that a job names: making them absolute, finding them, missing them.

Owns which fields name files and what globs mean. Works on the job as plain nested dictionaries, so that
missing files are reported together with all other mistakes, also when the job is not valid otherwise. Does
not read the files.
"""

from __future__ import annotations

import difflib
import glob
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from superpipe_cluster.errors import FileMissing
from superpipe_cluster.spec.base import FieldPath
from superpipe_cluster.spec.problems import Problem

#: A prefix of `model.source`: the output of another job.
JOB_PREFIX = "job:"
#: A prefix in `data.files`: the standard library of the running Python, real text that is on every machine.
STDLIB_PREFIX = "python-stdlib:"
#: In `images`: pictures that are made on the spot and need no files.
GENERATED = "generated:"
_STDLIB_GLOB = "**/*.py"
#: Lie inside the standard library's folder without belonging to it.
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}

_Role = Literal["program", "pattern", "file", "folder", "place", "output", "tree"]

#: Fields with one path or glob, or a list of them; in a `tree` a folder stands for what is in it.
_PATTERNS: tuple[tuple[FieldPath, _Role], ...] = (
    (("embed", "texts"), "pattern"),
    (("embed", "images"), "tree"),
    (("images", "train"), "tree"),
    (("images", "eval"), "tree"),
)


@dataclass(frozen=True)
class _Named:
    """A field that names something on disk."""

    at: FieldPath
    text: str
    role: _Role


def is_path(worker: str) -> bool:
    """Whether a worker is a program of the user's own, named by its path, rather than a bundled one."""
    return "/" in worker or worker.endswith(".py")


def resolve(data: dict[str, Any], base: Path) -> None:
    """Make every path of the job absolute, in place; relative ones start at `base`, the job file's folder."""
    for named in _named(data, base):
        _replace(data, named.at, _absolute(named.text, base))


def missing(data: dict[str, Any]) -> list[Problem]:
    """Every field of a resolved job that names something that is not there or cannot be read."""
    return [problem for named in _named(data) if (problem := _check(named)) is not None]


def local_files(data: dict[str, Any]) -> list[Path]:
    """Every local file and folder that a resolved job names, globs expanded, each once.

    Sources of the running Python are checked but not listed: every machine has its own.

    Raises:
        FileMissing: something is not there; the message names all of it.
    """
    if problems := missing(data):
        raise missing_error([(problem, None) for problem in problems])
    found: dict[Path, None] = {}
    for named in _named(data):
        if named.role in ("pattern", "tree") and not named.text.startswith(STDLIB_PREFIX):
            found.update(dict.fromkeys(expand(named.text)))
        elif named.role not in ("pattern", "tree", "output") and named.at != ("folder",):
            found[Path(named.text)] = None
    return list(found)


def missing_error(problems: Sequence[tuple[Problem, str | None]]) -> FileMissing:
    """One error for everything that is missing, each with its place in the job file where that is known."""
    if len(problems) == 1:
        problem, where = problems[0]
        return FileMissing(replace(problem, hint=None).text(where), hint=problem.hint)
    return FileMissing("\n".join(problem.text(where) for problem, where in problems))


def expand_patterns(patterns: Sequence[str]) -> list[Path]:
    """The files that `data.files` names, pattern by pattern, each once.

    Raises:
        FileMissing: a pattern matches nothing.
    """
    if problems := missing({"data": {"files": list(patterns)}}):
        raise missing_error([(problem, None) for problem in problems])
    return list(dict.fromkeys(path for pattern in patterns for path in expand(pattern)))


def expand(pattern: str) -> list[Path]:
    """The files that one path or glob names, or that are in the folder that it names, sorted."""
    if os.path.isdir(pattern):
        pattern = f"{glob.escape(pattern)}/**"
    return sorted(_matches(pattern))


def _matches(pattern: str) -> Iterator[Path]:
    if pattern.startswith(STDLIB_PREFIX):
        yield from _stdlib(pattern.removeprefix(STDLIB_PREFIX) or _STDLIB_GLOB)
    # A file whose name merely looks like a glob, `notes[1].txt`, is meant before the glob is.
    elif os.path.isfile(pattern):
        yield Path(pattern)
    else:
        yield from (Path(name) for name in glob.iglob(pattern, recursive=True) if os.path.isfile(name))


@cache
def _stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _stdlib(pattern: str) -> Iterator[Path]:
    root = _stdlib_root()
    searches = [(root, pattern)]
    if pattern.startswith("**/"):
        # Folder by folder, to stay out of site-packages: walking it takes far longer than all the rest.
        inner = (folder for folder in root.iterdir() if folder.is_dir() and folder.name not in _NOT_STDLIB)
        searches = [(root, pattern.removeprefix("**/")), *((folder, pattern) for folder in inner)]
    for folder, search in searches:
        for name in glob.iglob(search, root_dir=folder, recursive=True):
            path = folder / name
            if not _NOT_STDLIB.intersection(path.relative_to(root).parts) and path.is_file():
                yield path


def _named(data: dict[str, Any], base: Path | None = None) -> Iterator[_Named]:
    """The fields that name files, where they hold text; anything else in them is reported as a wrong value.

    `base` tells local folders from hub names in a job that is not resolved yet.
    """
    for at, role in (
        (("worker",), "program"),
        (("generate", "prompts"), "file"),
        (("paint", "prompts"), "file"),
        (("data", "chat_template"), "file"),
        (("model", "source"), "folder"),
        (("model", "tokenizer"), "folder"),
        (("folder",), "place"),
        (("venv",), "place"),
        (("output",), "output"),
    ):
        text = _at(data, at)
        if not isinstance(text, str) or not text or "\0" in text:
            continue
        if (role == "program" and not is_path(text)) or (role == "folder" and not _is_folder(text, base)):
            continue
        yield _Named(at, text, cast("_Role", role))
    for field in ("files", "eval_files"):
        patterns = _at(data, ("data", field))
        for index, pattern in enumerate(cast("list[object]", patterns) if isinstance(patterns, list) else []):
            if isinstance(pattern, str) and pattern and "\0" not in pattern:
                yield _Named(("data", field, index), pattern, "pattern")
    for at, role in _PATTERNS:
        given = _at(data, at)
        many = enumerate(cast("list[object]", given)) if isinstance(given, list) else [(None, given)]
        for index, pattern in many:
            if isinstance(pattern, str) and pattern not in ("", GENERATED) and "\0" not in pattern:
                yield _Named(at if index is None else (*at, index), pattern, role)


def _is_folder(text: str, base: Path | None) -> bool:
    """Whether a model or tokenizer is a local folder; otherwise it is a word, a job or a hub name."""
    if text == "bytes" or text.startswith(JOB_PREFIX):
        return False
    # Hub names look like relative paths of one or two parts, so those are local only if they are there.
    written_as_path = text.startswith((".", "/", "~")) or text.count("/") > 1
    return written_as_path or (base is not None and os.path.isdir(base / text))


def _absolute(text: str, base: Path) -> str:
    if text.startswith(STDLIB_PREFIX):
        return text
    expanded = os.path.expanduser(text)
    if os.path.isabs(expanded):
        return os.path.normpath(expanded)
    literal = os.path.normpath(base / expanded)
    # In a glob, brackets in the names of the folders above are not part of the pattern.
    if glob.has_magic(expanded) and not os.path.exists(literal):
        return os.path.normpath(os.path.join(glob.escape(str(base)), expanded))
    return literal


def _check(named: _Named) -> Problem | None:
    text = named.text
    message = hint = None
    if named.role == "output":
        if os.path.exists(text) and not os.path.isdir(text):
            message, hint = f"{text} is a file", "name a folder; it need not exist yet"
    elif named.role in ("folder", "place"):
        if not os.path.isdir(text):
            message, hint = f"no such folder: {text}", similar(text)
    elif named.role == "tree" and os.path.isdir(text):
        if next(_matches(f"{glob.escape(text)}/**"), None) is None:
            message, hint = f"there is no file in {text}", "name a folder with images in it"
    elif named.role in ("pattern", "tree") and (glob.has_magic(text) or text.startswith(STDLIB_PREFIX)):
        if next(_matches(text), None) is None:
            message, hint = f"no file matches {text}", "in a pattern, ** stands for folders in folders"
    elif os.path.isdir(text):
        inside = f"{text}/**/*.txt" if named.role == "pattern" else f"{text}/FILE"
        message, hint = f"{text} is a folder", f"name what is meant in it: {inside}"
    elif not os.path.isfile(text):
        message, hint = f"no such file: {text}", similar(text)
    elif not os.access(text, os.R_OK):
        message, hint = f"{text} cannot be read", "check its permissions"
    return Problem(named.at, message, hint) if message else None


def similar(path: str) -> str | None:
    """A hint for a path that does not exist: its nearest neighbour, if one is near."""
    folder, name = os.path.split(path)
    try:
        close = difflib.get_close_matches(name, os.listdir(folder or "."), n=1)
    except OSError:
        return f"there is no folder {folder} to look in"
    return f"did you mean {os.path.join(folder, close[0])}?" if close else None


def _at(data: dict[str, Any], path: FieldPath) -> object:
    value: object = data
    for part in path:
        value = cast("dict[object, object]", value).get(part) if isinstance(value, dict) else None
    return value


def _replace(data: Any, path: FieldPath, text: str) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = text

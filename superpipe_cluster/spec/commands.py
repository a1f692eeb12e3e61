"""The command of a script: its words, and which of them are the submitter's files.

Owns what of a command, and of `files`, travels with the job, and how a word becomes the path of its copy. Does not run
anything, and does not read the files.

[Note: which files travel] A word of the command that names a file, relative to the script's folder, means that file as
it was when the job was submitted: its copy travels with the job, and the command is run with the copy's path. So do the
modules that a Python file imports from beside it, and whatever `files` names. An absolute path is used where it is:
data sets and weights do not travel. Nor does what a command writes into, `> log.txt`.
"""

from __future__ import annotations

import ast
import glob
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from superpipe_cluster.spec.files import similar
from superpipe_cluster.spec.problems import Problem

#: A quoted text or a bare word of a shell command; with `into`, something is written there.
_WORD = re.compile(
    r"""(?P<into>\d?>>?\s*)?(?P<word>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'|&;<>()]+)|(?P<next>[|&;()\n])"""
)
#: What makes a command more than words: only a shell can run it.
_SHELL = re.compile(r"[|&;<>()$`*?\[\]{}~#\n\\]|^\s*\w+=")
#: Programs whose first argument that is no option is a program itself.
_INTERPRETER = re.compile(r"(.*/)?(python[\d.]*|bash|sh|zsh)")
_PROGRAMS = (".py", ".sh")


def argv(run: str | Sequence[str], meant: Callable[[str], str | None]) -> list[str]:
    """The arguments to run a command with.

    Args:
        run: the command, as one text or word by word.
        meant: the path that a word stands for, if it stands for another one than itself.
    """
    if not isinstance(run, str):
        return [meant(word) or word for word in run]

    def replaced(found: re.Match[str]) -> str:
        raw = found["word"]
        if raw is None or found["into"] is not None:
            return found[0]
        before, word = _split(_plain(raw))
        path = meant(word)
        return raw if path is None else before + shlex.quote(path)

    text = _WORD.sub(replaced, run)
    return ["/bin/sh", "-c", text] if _SHELL.search(run) else shlex.split(text)


def is_closed(run: str) -> bool:
    """Whether a command of plain words can be taken apart; what only a shell can run is the shell's to complain of."""
    try:
        return bool(_SHELL.search(run) or shlex.split(run))
    except ValueError:
        return False


def inside(word: str) -> str | None:
    """A word as a path in the script's folder; None if it cannot be one."""
    if not word or word.startswith(("-", "~")) or os.path.isabs(word):
        return None
    path = os.path.normpath(word)
    return None if path == "." or path.split(os.sep)[0] == ".." else path


def travelling(run: str | Sequence[str], files: Iterable[str], folder: Path) -> list[str]:
    """The files that go with a script, relative to `folder`. See [Note: which files travel]."""
    found: dict[str, None] = {}
    for word, _ in _words(run):
        path = inside(word)
        if path is not None and (folder / path).is_file():
            found[path] = None
    for pattern in files:
        found.update(dict.fromkeys(_matches(pattern, folder)))
    queue = list(found)
    while queue:
        for path in _imported(folder, queue.pop()):
            if path not in found:
                found[path] = None
                queue.append(path)
    return sorted(found)


def problems(data: dict[str, Any]) -> Iterator[Problem]:
    """What a resolved script names and its folder does not have."""
    folder, run, files = Path(str(data.get("folder"))), data.get("run"), data.get("files")
    if isinstance(run, str | list | tuple) and folder.is_dir():
        for word, is_program in _words(cast("str | Sequence[str]", run)):
            if is_program and not os.path.isfile(folder / word):
                yield Problem(("run",), f"no such file: {folder / word}", similar(str(folder / word)))
    for index, pattern in enumerate(cast("list[object]", files) if isinstance(files, list | tuple) else ()):
        if not isinstance(pattern, str) or not pattern:
            continue
        if inside(pattern) is None:
            hint = "name the folder above all files in `folder`; an absolute path is used where it is, without this"
            yield Problem(("files", index), f"{pattern} is not inside {folder}", hint)
        elif not _matches(pattern, folder):
            yield Problem(
                ("files", index), f"no file matches {folder / pattern}", similar(str(folder / pattern))
            )


def _words(run: str | Sequence[str]) -> Iterator[tuple[str, bool]]:
    """The words of a command that may name files, each with whether it has to name a program that is there."""
    begins, interpreted = True, False
    for word in run if not isinstance(run, str) else _bare(run):
        if word is None:  # another command follows
            begins, interpreted = True, False
            continue
        _, path = _split(word)
        local = not re.search(r"[$*?`]", path)
        program = (begins and "/" in path) or (interpreted and path.endswith(_PROGRAMS))
        yield path, program and local and not path.startswith("~")
        if interpreted:  # until its program, or `-c` and `-m`, which have none
            interpreted = path.startswith("-") and path not in ("-c", "-m")
        else:
            interpreted = _INTERPRETER.fullmatch(path) is not None
        begins = begins and path != word  # LR=0.1 python ...


def _bare(run: str) -> Iterator[str | None]:
    for found in _WORD.finditer(run):
        if found["next"] is not None:
            yield None
        elif found["into"] is None:
            yield _plain(found["word"])


def _plain(raw: str) -> str:
    return raw[1:-1] if raw[:1] in "\"'" else raw


def _split(word: str) -> tuple[str, str]:
    """`--config=a.yaml` as `--config=` and `a.yaml`."""
    before, equals, after = word.rpartition("=")
    return before + equals, after


def _matches(pattern: str, folder: Path) -> list[str]:
    """The files in `folder` that a path, a folder's path or a glob names, relative to it."""
    if inside(pattern) is None:
        return []
    text = os.path.normpath(pattern)
    named = [text] if (folder / text).exists() else glob.glob(text, root_dir=folder, recursive=True)
    found: list[str] = []
    for name in named:
        path = folder / name
        within = path.rglob("*") if path.is_dir() else (path,)
        found += [
            str(one.relative_to(folder)) for one in within if one.is_file() and not _is_waste(one, folder)
        ]
    return sorted(found)


def _is_waste(path: Path, folder: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".git") for part in path.relative_to(folder).parts)


def _imported(folder: Path, program: str) -> Iterator[str]:
    """The files beside a Python file that it imports, relative to `folder`; a package comes whole."""
    if not program.endswith(".py"):
        return
    try:
        tree = ast.parse((folder / program).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # whoever runs it will say so
    beside = os.path.dirname(program)
    for name in sorted({name for node in ast.walk(tree) for name in _imports(node)}):
        module, package = os.path.join(beside, f"{name}.py"), os.path.join(beside, name)
        if (folder / module).is_file():
            yield module
        elif (folder / package / "__init__.py").is_file():
            yield from _matches(package, folder)


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [str(node.module).partition(".")[0]]
    return []

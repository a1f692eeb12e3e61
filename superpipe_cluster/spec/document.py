"""The text of a job file: YAML into plain data, with the line and column of every key and value.

Owns reading, the flavour of YAML and places in the text. Does not know what a job is, apart from the few
fields whose text is taken as written.

[Note: which YAML] PyYAML reads YAML 1.1, where `3e-4` is a text, `010` is eight, `yes` is true, `1:30` is
ninety and `2026-11-21` a date. Here, numbers are what they look like (`3e-4`, `1_000`), `true` and `false`
are the only truth values, and everything else is text. Numbers with leading zeros stay text too: a numeric
field reads `08` as eight, and a free-form one keeps both digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from superpipe_cluster.spec.base import FieldPath
from superpipe_cluster.spec.problems import Problem

#: Aliases can make a small file stand for an endless one; a real job file has some dozens of values.
_MOST_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_ANY = "*"
#: Fields that are texts whatever they look like: a job's name may be 2026, and an environment variable `yes`.
AS_WRITTEN: tuple[FieldPath, ...] = (
    ("name",),
    ("env", _ANY),
    ("after",),
    ("after", _ANY),
    ("after", _ANY, _ANY),
    ("array",),
    ("schedule", "window"),
    ("schedule", "not_before"),
    ("data", "files", _ANY),
    ("data", "eval_files", _ANY),
    ("data", "columns", _ANY),
    ("generate", "prompts", _ANY),
    ("paint", "prompts", _ANY),
    ("paint", "negative_prompt"),
    ("embed", "texts"),
    ("embed", "texts", _ANY),
    ("embed", "images"),
    ("embed", "images", _ANY),
    ("embed", "field"),
    ("embed", "id_field"),
    ("embed", "prompt"),
    ("images", "train"),
    ("images", "train", _ANY),
    ("images", "eval"),
    ("images", "eval", _ANY),
    ("images", "image_field"),
    ("images", "label_field"),
    ("model", "source"),
    ("run",),
    ("run", _ANY),
    ("files", _ANY),
    ("pip", _ANY),
)


class _Resolver(yaml.SafeLoader):
    """PyYAML's parser with the scalars of [Note: which YAML]."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own protocol: a class attribute that add_* fills)


def _resolves(kind: str, pattern: str, first: str) -> None:
    _Resolver.add_implicit_resolver(f"{_TAG}{kind}", re.compile(pattern), list(first))  # pyright: ignore[reportUnknownMemberType]


_resolves("null", r"^(~|null|Null|NULL|)$", "~nN\0")
_resolves("bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolves("int", r"^[-+]?(0|[1-9][0-9]*(_[0-9]+)*)$", "-+0123456789")
_resolves("float", r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$", "-+.0123456789")

# An empty scalar has no first character to go by.
_Resolver.yaml_implicit_resolvers[""] = _Resolver.yaml_implicit_resolvers.pop("\0")


@dataclass(frozen=True, order=True)
class Mark:
    """A place in the text, both numbers from 1, as editors count."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass
class Document:
    """A job file as data.

    Attributes:
        data: nested dictionaries and lists; its paths are the keys of the maps below.
        keys: where each field's name stands.
        values: where each value begins.
        problems: mistakes of the text itself that did not keep it from being read, with their places.
    """

    data: Any = None
    keys: dict[FieldPath, Mark] = field(default_factory=dict[FieldPath, Mark])
    values: dict[FieldPath, Mark] = field(default_factory=dict[FieldPath, Mark])
    problems: list[tuple[Mark, Problem]] = field(default_factory=list[tuple[Mark, Problem]])


class Unreadable(Exception):
    """The text is no YAML: nothing can be said beyond this one problem."""

    def __init__(self, mark: Mark, problem: Problem) -> None:
        super().__init__(problem.message)
        self.mark = mark
        self.problem = problem


def read(text: str, *, at: FieldPath = ()) -> Document:
    """Read YAML text; `at` is the path that it stands for, when it is one value and not a whole file.

    Raises:
        Unreadable: a syntax error.
    """
    document = Document()
    try:
        node = _compose(text)
        if node is not None:
            document.data = _Builder(document).build(node, at, frozenset())
    except yaml.MarkedYAMLError as error:
        raise _syntax(error) from None
    except yaml.reader.ReaderError as error:
        raise _bad_character(text, error) from None
    except RecursionError:
        raise Unreadable(Mark(1, 1), Problem((), "nested too deeply")) from None
    return document


# PyYAML's stubs leave this one untyped.
_compose = cast("Callable[[str], Node | None]", partial(yaml.compose, Loader=_Resolver))  # pyright: ignore[reportUnknownMemberType]


class _Builder:
    """Turns YAML nodes into data, noting where everything stands."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._values = 0

    def build(self, node: Node, path: FieldPath, above: frozenset[int]) -> Any:
        mark = _mark(node)
        self._values += 1
        if self._values > _MOST_VALUES or id(node) in above:
            raise Unreadable(mark, Problem(path, "the file refers to itself, or is far too large"))
        self._document.values[path] = mark
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        above = above | {id(node)}
        if isinstance(node, SequenceNode):
            items = cast("list[Node]", node.value)
            return [self.build(item, (*path, index), above) for index, item in enumerate(items)]
        assert isinstance(node, MappingNode)
        return self._mapping(node, path, above)

    def _mapping(self, node: MappingNode, path: FieldPath, above: frozenset[int]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in cast("list[tuple[Node, Node]]", node.value):
            if not isinstance(key, ScalarNode):
                self._complain(key, Problem(path, "the name of a field must be a plain word", about_key=True))
                continue
            # Names are texts always: `on:` and `1:` are the fields "on" and "1".
            name = cast("str", key.value)
            inner = (*path, name)
            if name in data:
                message = f"given twice, first on line {self._document.keys[inner].line}"
                self._complain(key, Problem(inner, message, "keep one of the two", about_key=True))
                continue
            self._document.keys[inner] = _mark(key)
            data[name] = self.build(value, inner, above)
            if isinstance(value, MappingNode):
                # A section stands where its name does; where its first field happens to stand says nothing.
                self._document.values[inner] = self._document.keys[inner]
        return data

    def _scalar(self, node: ScalarNode, path: FieldPath) -> Any:
        text = cast("str", node.value)
        kind = node.tag.removeprefix(_TAG)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._complain(node, Problem(path, "half of a character (a lone surrogate) cannot be stored"))
            return text.encode("utf-8", "replace").decode()
        if kind == "null":
            return None
        if kind == "str" or _as_written(path):
            return text
        convert = _CONVERSIONS.get(kind)
        if convert is None:
            self._complain(
                node, Problem(path, f"YAML tags are not supported: {node.tag}", "write a plain value")
            )
            return text
        try:
            return convert(text)
        except (ValueError, OverflowError):
            self._complain(node, Problem(path, f"{text[:40]!r} cannot be read as a number"))
            return text

    def _complain(self, node: Node, problem: Problem) -> None:
        self._document.problems.append((_mark(node), problem))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_CONVERSIONS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": _finite,
}


def _as_written(path: FieldPath) -> bool:
    return any(
        len(path) == len(pattern)
        and all(want in (_ANY, is_) for want, is_ in zip(pattern, path, strict=True))
        for pattern in AS_WRITTEN
    )


def _mark(node: Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


_SYNTAX_HINTS = (
    ("'\\t'", "indent with spaces, not with tabs"),
    ("mapping values are not allowed", "put text that holds a colon in quotes, and check the indentation"),
    ("expected a single document", "one file holds one job: remove the --- between them"),
    ("character '@'", "put the text in quotes"),
    ("character '`'", "put the text in quotes"),
    ("character '%'", "put the text in quotes"),
    ("undefined alias", "put text that begins with * in quotes"),
    ("expected <block end>", "check the indentation: fields of one section begin in the same column"),
)


def _syntax(error: yaml.MarkedYAMLError) -> Unreadable:
    place = error.problem_mark or error.context_mark
    mark = Mark(place.line + 1, place.column + 1) if place else Mark(1, 1)
    words = ", ".join(part for part in (error.context, error.problem) if part)
    hint = next((hint for sign, hint in _SYNTAX_HINTS if sign in words), None)
    return Unreadable(mark, Problem((), f"not valid YAML: {words}", hint))


def _bad_character(text: str, error: yaml.reader.ReaderError) -> Unreadable:
    position = cast("int", error.position)
    before = text[:position]
    mark = Mark(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)
    code = ord(text[position]) if position < len(text) else 0
    return Unreadable(mark, Problem((), f"character U+{code:04X} is not allowed in YAML", "remove it"))

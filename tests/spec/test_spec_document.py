"""The flavour of YAML: what scalars mean, and where things stand."""

from __future__ import annotations

from typing import Any

import pytest

from superpipe_cluster.spec import document
from superpipe_cluster.spec.document import Mark


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("+1.5e+3", 1500.0),
        ("12", 12),
        ("-0", 0),
        ("1_000", 1000),
        ("08", "08"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2026-11-21", "2026-11-21"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("1e", "1e"),
        ("12GiB", "12GiB"),
        ("~", None),
        ("null", None),
        ("", None),
        ('"12"', "12"),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    read = document.read(f"params: {{x: {text}}}").data["params"]["x"]
    assert read == value
    assert type(read) is type(value)


def test_names_and_variables_are_text_however_they_look() -> None:
    data = document.read("name: 2026\nenv: {A: yes, B: 010, C: 1_0, D: 3e-4, E: true}\nafter: [1, 2]\n").data
    assert data == {
        "name": "2026",
        "env": {"A": "yes", "B": "010", "C": "1_0", "D": "3e-4", "E": "true"},
        "after": ["1", "2"],
    }


def test_keys_are_text_always() -> None:
    assert document.read("on: 1\n1: 2\nnull: 3\n").data == {"on": 1, "1": 2, "null": 3}


def test_aliases_stand_for_what_they_name() -> None:
    assert document.read("a: &x [1, 2]\nb: *x\n").data == {"a": [1, 2], "b": [1, 2]}


def test_every_key_and_value_has_its_place() -> None:
    read = document.read("a: 1\nb:\n  - x\n  - c: é 3\n    d: {e: 4}\n")
    assert read.keys == {
        ("a",): Mark(1, 1),
        ("b",): Mark(2, 1),
        ("b", 1, "c"): Mark(4, 5),
        ("b", 1, "d"): Mark(5, 5),
        ("b", 1, "d", "e"): Mark(5, 9),
    }
    assert read.values[("b", 1, "c")] == Mark(4, 8)
    assert read.values[("b", 0)] == Mark(3, 5)
    assert read.values[("b", 1, "d")] == Mark(5, 5), "a section stands where its name does"


def test_the_marker_some_editors_write_first_is_no_character() -> None:
    assert document.read("\ufeffa: 1").data == {"a": 1}

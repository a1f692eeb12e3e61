"""The picture in the README, the table and the enums say the same."""

from __future__ import annotations

import ast
import inspect
import re
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import pytest

from superpipe_cluster.lifecycle import states, step
from superpipe_cluster.lifecycle.events import EVENTS
from superpipe_cluster.lifecycle.states import EndReason, JobState, WaitReason
from superpipe_cluster.lifecycle.table import TABLE

README = Path(inspect.getfile(states)).with_name("README.md")


def drawn_edges() -> set[tuple[str | None, str, str]]:
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", README.read_text(), re.DOTALL)
    edges: set[tuple[str | None, str, str]] = set()
    for start, end, label in re.findall(r"^\s*(\S+) --> (\S+)(?: : (.*))?$", diagram, re.MULTILINE):
        for kind in filter(None, label.split(", ")):
            edges.add((None if start == "[*]" else start, kind, end))
    return edges


def test_the_diagram_is_the_table() -> None:
    assert drawn_edges() == {(start, kind, str(end)) for (start, kind), ends in TABLE.items() for end in ends}


def test_the_diagram_shows_which_states_are_final() -> None:
    final = set(re.findall(r"^\s*(\S+) --> \[\*\]$", README.read_text(), re.MULTILINE))
    assert final == {state for state in JobState if state.is_terminal}


def test_every_event_is_in_the_table_and_every_kind_in_the_table_is_an_event() -> None:
    assert {kind for _, kind in TABLE} == set(EVENTS)


def test_nothing_leaves_a_final_state_and_something_leaves_every_other() -> None:
    left = {start for start, _ in TABLE}
    assert left == {None} | {state for state in JobState if not state.is_terminal}


def test_every_state_is_reached() -> None:
    assert {end for ends in TABLE.values() for end in ends} == set(JobState)


def test_a_state_waits_or_holds_a_device_or_is_final() -> None:
    for state in JobState:
        assert [state.is_waiting, state.holds_device, state.is_terminal].count(True) == 1, state
        assert (state in states.REPORTING) == state.holds_device, state


@pytest.mark.parametrize("enum", [JobState, EndReason, WaitReason])
def test_every_member_is_documented(enum: type[StrEnum]) -> None:
    (body,) = [
        node.body
        for node in ast.parse(inspect.getsource(states)).body
        if isinstance(node, ast.ClassDef) and node.name == enum.__name__
    ]
    documented = {
        member.targets[0].id
        for member, text in pairwise(body)
        if isinstance(member, ast.Assign)
        and isinstance(member.targets[0], ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
    assert documented == set(enum.__members__)


def test_the_readme_names_every_reason_a_worker_can_give() -> None:
    given = set(EndReason) - step.STOP_REASONS - {EndReason.DEPENDENCY_FAILED}
    assert all(f"`{reason}`" in README.read_text() for reason in given)

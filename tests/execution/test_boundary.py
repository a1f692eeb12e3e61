from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpipe_cluster.errors import BudgetTooSmall
from superpipe_cluster.execution.boundary import Boundary, divide
from superpipe_cluster.execution.control import ChildLine, encode
from waiting import wait_until


@dataclass
class Stats:
    held_bytes: int
    floor_bytes: int | None


class Model:
    """A streamed model: what it holds, and the least it can."""

    def __init__(self, held_bytes: int, least_bytes: int = 0, *, measured: bool = True) -> None:
        self.held_bytes = held_bytes
        self.least_bytes = least_bytes
        self.measured = measured
        self.sticks = False
        self.is_open = True
        self.asked: list[tuple[int, int | None]] = []

    def resize(self, budget: int, *, k: int | None) -> None:
        if budget < self.least_bytes:
            raise BudgetTooSmall(f"needs {self.least_bytes} bytes", needed_bytes=self.least_bytes)
        self.asked.append((budget, k))
        if not self.sticks:
            self.held_bytes = budget

    def stats(self) -> Stats:
        return Stats(self.held_bytes, self.least_bytes if self.measured else None)


class Desk:
    """A boundary, its actor's end of the line, and what the actor hears."""

    def __init__(self, budget_bytes: int) -> None:
        import socket

        self.actor, theirs = socket.socketpair()
        self._theirs = theirs
        self.line = ChildLine(theirs)
        self.told: list[dict[str, Any]] = []
        self.boundary = Boundary(self.line, budget_bytes, self.told.append)

    def say(self, **message: Any) -> None:
        before = self.line.wishes
        self.actor.sendall(encode(message))
        wait_until(lambda: self.line.wishes is not before, "the wish has arrived")

    def ask(self, budget_bytes: int, revision: int) -> None:
        self.say(type="budget", bytes=budget_bytes, revision=revision)

    def close(self) -> None:
        self.actor.close()
        self._theirs.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk(1000)
    yield made
    made.close()


def test_a_budget_is_put_in_force_and_acknowledged(desk: Desk) -> None:
    model = Model(1000, 100)
    desk.boundary.add(model, 1000, 3)
    assert not desk.boundary.reach()
    desk.ask(600, 1)
    assert desk.boundary.budget_bytes == 1000  # until the boundary
    assert desk.boundary.reach()
    assert (model.asked, desk.boundary.budget_bytes) == ([(600, 3)], 600)
    assert desk.told == [
        {"budget_bytes": 600, "budget_revision": 1, "budget_refused": None, "floor_bytes": 100}
    ]
    assert not desk.boundary.reach()


def test_of_several_budgets_the_newest_is_put_in_force(desk: Desk) -> None:
    model = Model(1000, 100)
    desk.boundary.add(model, 1000, None)
    desk.ask(600, 2)
    desk.actor.sendall(encode({"type": "budget", "bytes": 300, "revision": 1}))
    desk.ask(700, 3)
    desk.boundary.reach()
    assert model.asked == [(700, None)]
    assert desk.told[-1]["budget_revision"] == 3


def test_one_that_is_too_small_is_refused_with_what_is_needed(desk: Desk) -> None:
    model = Model(1000, 400)
    desk.boundary.add(model, 1000, None)
    desk.ask(300, 1)
    assert not desk.boundary.reach()
    assert (desk.boundary.budget_bytes, model.held_bytes) == (1000, 1000)
    (told,) = desk.told
    assert (told["budget_bytes"], told["budget_revision"], told["floor_bytes"]) == (1000, 1, 400)
    assert "400 bytes" in told["budget_refused"]


def test_a_floor_that_has_fallen_is_the_floor(desk: Desk) -> None:
    model = Model(1000, 400)
    desk.boundary.add(model, 1000, None)
    desk.ask(300, 1)
    desk.boundary.reach()
    assert (desk.boundary.floor_bytes(), desk.boundary.budget_bytes) == (400, 1000)
    model.least_bytes = 200
    assert desk.boundary.floor_bytes() == 200
    desk.ask(300, 2)
    desk.boundary.reach()
    assert (desk.boundary.budget_bytes, desk.told[-1]["floor_bytes"]) == (300, 200)


def test_before_its_first_step_a_model_is_not_shrunk(desk: Desk) -> None:
    model = Model(0, 400, measured=False)
    desk.boundary.add(model, 1000, None)
    desk.ask(300, 1)
    desk.boundary.reach()
    assert desk.told == []
    model.measured = True
    desk.boundary.reach()
    assert desk.told[0]["budget_refused"] is not None


def test_nothing_is_acknowledged_before_it_has_left(desk: Desk) -> None:
    model = Model(1000, 100)
    desk.boundary.add(model, 1000, None)
    model.sticks = True
    desk.ask(500, 1)
    desk.boundary.reach()
    assert (desk.told, desk.boundary.budget_bytes) == ([], 1000)
    model.sticks = False
    desk.boundary.reach()
    assert desk.told[0]["budget_bytes"] == 500


def test_a_program_that_streams_nothing_says_so(desk: Desk) -> None:
    closed = Model(0)
    desk.boundary.add(closed, 1000, None)
    closed.is_open = False
    desk.ask(500, 1)
    desk.boundary.reach()
    (told,) = desk.told
    assert (told["budget_bytes"], told["floor_bytes"]) == (1000, 1000)
    assert "streams no model" in told["budget_refused"]


def test_models_share_in_proportion_and_none_gets_less_than_its_floor(desk: Desk) -> None:
    large, small = Model(600, 100), Model(200, 190)
    desk.boundary.add(large, 600, None)
    desk.boundary.add(small, 200, None)
    desk.ask(500, 1)
    desk.boundary.reach()
    assert (large.held_bytes, small.held_bytes) == (210, 190)  # 400 of 500: a fifth is the program's own
    desk.ask(1000, 2)
    desk.boundary.reach()
    assert (large.held_bytes, small.held_bytes) == (600, 200)


def test_a_need_that_shows_only_when_it_is_tried_leaves_the_others_as_they_were(desk: Desk) -> None:
    one, other = Model(500, 0), Model(500, 450, measured=False)
    desk.boundary.add(one, 500, None)
    desk.boundary.add(other, 500, None)
    desk.ask(600, 1)
    desk.boundary.reach()
    assert (one.held_bytes, other.held_bytes) == (150, 450)
    desk.ask(400, 2)
    desk.boundary.reach()
    assert (one.held_bytes, other.held_bytes) == (150, 450)
    assert desk.told[-1]["budget_refused"] is not None


def test_a_pause_is_stood_out_and_budgets_are_taken_meanwhile(desk: Desk) -> None:
    model = Model(1000, 100)
    desk.boundary.add(model, 1000, None)
    desk.say(type="pause", on=True)
    program = threading.Thread(target=desk.boundary.reach)
    program.start()
    wait_until(lambda: desk.told == [{"paused": True}], "it stands still")
    desk.ask(600, 1)
    wait_until(lambda: len(desk.told) == 2, "it has acknowledged")
    assert model.held_bytes == 600
    assert program.is_alive()
    desk.say(type="pause", on=False)
    program.join(10)
    assert desk.told[-1] == {"paused": False}


def test_a_stop_ends_a_pause(desk: Desk) -> None:
    desk.say(type="pause", on=True)
    program = threading.Thread(target=desk.boundary.reach)
    program.start()
    wait_until(lambda: desk.told, "it stands still")
    desk.say(type="stop", why="cancelled")
    program.join(10)
    assert not program.is_alive()


@given(
    budget=st.integers(0, 10**12),
    models=st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 10**12)), min_size=1, max_size=5),
)
def test_what_is_divided_is_never_more_than_there_is(budget: int, models: list[tuple[int, int]]) -> None:
    parts, floors = [Fraction(part, 1000) for part, _ in models], [floor for _, floor in models]
    room = budget * min(Fraction(1), sum(parts))
    given = divide(budget, parts, floors)
    if given is None:
        assert sum(floors) > room - len(models)
    else:
        assert sum(given) <= room
        assert all(share >= floor for share, floor in zip(given, floors, strict=True))

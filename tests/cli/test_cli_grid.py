"""Tables of plain text: within their width, whatever is in them, and fast with ten thousand rows."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from superpipe_cluster.cli.grid import Column, lines

ID = Column("ID", justify="right")
NAME = Column("NAME", narrow="shorten", widest=12)
TEXT = Column("TEXT", narrow="fold")


def shown(
    *rows: tuple[Text | str, ...], columns: tuple[Column, ...] = (ID, NAME, TEXT), width: int = 30
) -> list[str]:
    return list(lines(columns, rows, width))


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    assert shown(("7", "a", "x"), ("12", "bee", "")) == ["ID NAME TEXT", " 7 a    x", "12 bee"]


def test_what_may_gives_way_first() -> None:
    assert shown(("12345", "a-very-long-name", "some words that go on")) == [
        "   ID NAME        TEXT",
        "12345 a-very-lon… some words",
        "                  that go on",
    ]


def test_when_nothing_else_is_left_all_columns_give_way() -> None:
    assert shown(("123456789", "name", "text"), width=16) == ["    ID NAME TEXT", "12345… name text"]


def test_the_widest_is_never_exceeded_though_there_is_room() -> None:
    assert shown(("1", "n" * 40, "x"), width=200)[1] == f" 1 {'n' * 11}… x"


def test_wide_characters_count_as_what_they_take() -> None:
    assert shown(("1", "漢字", "x"), ("2", "ab", "y")) == ["ID NAME TEXT", " 1 漢字 x", " 2 ab   y"]


@pytest.mark.parametrize("evil", ["a\x1b[2Jb", "a\x07b", "a\rb", "a\x9bb", "a\u2028b"])
def test_no_cell_can_move_the_cursor(evil: str) -> None:
    assert shown(("1", evil, evil))[1] == " 1 ab   ab"


def test_lines_within_a_cell_stay_in_it() -> None:
    assert shown(("1", "a\nb", "x\ny")) == ["ID NAME TEXT", " 1 a b  x", "        y"]


def test_a_style_is_put_around_the_text_and_not_around_the_room() -> None:
    row = (Text("7", style="red"), "a", "x")
    (heading, line) = lines((ID, NAME, TEXT), [row], 40, coloured=True)
    assert line == " \x1b[31m7\x1b[0m a    x"
    assert "\x1b[1mNAME\x1b[0m" in heading
    assert list(lines((ID, NAME, TEXT), [row], 40)) == ["ID NAME TEXT", " 7 a    x"]


words = st.text(max_size=30) | st.text(st.characters(categories=["Lo"]), max_size=10)
some_columns = st.lists(
    st.builds(
        Column,
        st.sampled_from(["", "A", "HEADING"]),
        narrow=st.sampled_from(["keep", "shorten", "fold"]),
        justify=st.sampled_from(["left", "right"]),
        widest=st.none() | st.integers(1, 20),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(
    some_columns.flatmap(
        lambda found: st.tuples(st.just(found), st.lists(st.tuples(*[words] * len(found)), max_size=4))
    )
)
@example(([Column("", narrow="fold"), Column("")], [("0" * 20 + "\u2e80" * 30, "1" * 9)]))
def test_no_line_is_longer_than_there_is_room(made: tuple[list[Column], list[tuple[str, ...]]]) -> None:
    columns, rows = made
    for line in lines(columns, rows, 60):
        assert cell_len(line) <= 60
        assert line == line.rstrip(" ") or line.strip(" ") == ""


def test_ten_thousand_rows_take_a_moment() -> None:
    rows = [(str(number), f"job-{number}", "waits") for number in range(10_000)]
    began_s = time.process_time()
    assert len(list(lines((ID, NAME, TEXT), rows, 80))) == 10_001
    assert time.process_time() - began_s < 2.0

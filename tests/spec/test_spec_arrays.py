"""Arrays of tasks: what is read, what is refused with a hint, and that spelling loses nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpipe_cluster.errors import BadInput
from superpipe_cluster.spec import ArrayRange
from superpipe_cluster.spec.arrays import ARRAY_PATTERN, LARGEST_INDEX, MOST_TASKS


@pytest.mark.parametrize(
    ("text", "indices", "limit", "spelled"),
    [
        ("0-3", (0, 1, 2, 3), None, "0-3"),
        ("0-15%4", tuple(range(16)), 4, "0-15%4"),
        ("1,3,5-9", (1, 3, 5, 6, 7, 8, 9), None, "1,3,5-9"),
        ("9, 1-2", (1, 2, 9), None, "1-2,9"),
        ("7-7", (7,), None, "7-7"),
        ("3,4", (3, 4), None, "3-4"),
        (" 0-1%9 ", (0, 1), 9, "0-1%9"),
    ],
)
def test_an_array_is_read_into_its_indices(
    text: str, indices: tuple[int, ...], limit: int | None, spelled: str
) -> None:
    array = ArrayRange.parse(text)
    assert (array.indices, array.limit, str(array)) == (indices, limit, spelled)
    assert re.search(ARRAY_PATTERN, text.strip())


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (16, "16 could be an index or a count", "write 0-15 for 16 tasks, or 16-16 for the one"),
        ("16", "16 could be an index or a count", "write 0-15 for 16 tasks"),
        ("1", "1 could be an index or a count", "leave it out, or 1-1"),
        ("0", "0 could be an index or a count", "0-0"),
        ("3-1", "3-1 runs backwards", "write 1-3"),
        ("1,1-2", "the task 1 is named twice", "write 0-15"),
        ("0-3%0", "'0-3%0' is not an array of tasks", "0-15%4 for four of them at once"),
        ("0-3%", "is not an array", "write 0-15"),
        ("a-b", "is not an array", "write 0-15"),
        ("-1-3", "is not an array", "write 0-15"),
        ("0..3", "is not an array", "write 0-15"),
        ("", "is not an array", "write 0-15"),
        (None, "not an array", "write 0-15"),
        (True, "not an array", "write 0-15"),
        ("0-999999", f"more than {MOST_TASKS} tasks", "several arrays"),
        ("0-9999999", "is not an array", "write 0-15"),
        ("0-9998,20000-20001", f"more than {MOST_TASKS} tasks", "several arrays"),
        ("1," * 600, "not an array", "write 0-15"),
    ],
)
def test_anything_else_is_refused_with_a_hint(text: object, message: str, hint: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        ArrayRange.parse(text)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("made", [(), (2, 1), (1, 1), (-1,), (LARGEST_INDEX + 1,), range(MOST_TASKS + 1)])
def test_no_other_array_can_be_made(made: tuple[int, ...]) -> None:
    with pytest.raises(BadInput):
        ArrayRange(tuple(made))


@settings(deadline=None)
@given(
    st.sets(st.integers(0, 40), min_size=1).map(lambda found: tuple(sorted(found))),
    st.none() | st.integers(1, 999),
)
def test_spelled_arrays_read_back_exactly(indices: tuple[int, ...], limit: int | None) -> None:
    array = ArrayRange(indices, limit)
    assert ArrayRange.parse(str(array)) == array
    assert re.search(ARRAY_PATTERN, str(array))

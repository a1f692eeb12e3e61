"""A device as a bar: every byte in its place, readable without colours."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpipe_cluster.cli.bars import FOREIGN, FREE, HELD, PROMISED, Share, bar

GIB = 2**30


@pytest.mark.parametrize(
    ("foreign", "shares", "drawn"),
    [
        (0, [], "····················"),
        (0, [("7", 5, 5)], "7████···············"),
        (0, [("7", 10, 5)], "7████▒▒▒▒▒··········"),
        (4, [("7", 4, 4), ("12", 4, 0)], "7███12▒▒········xxxx"),
        (0, [("1", 10, 10), ("2", 10, 10)], "1█████████2█████████"),
        (0, [("123", 2, 1)], "█▒··················"),  # no room for its id
        (0, [("1", 4, 9)], "1███················"),  # it holds more than it may: drawn as what counts
    ],
)
def test_the_parts_stand_in_order(foreign: int, shares: list[tuple[str, int, int]], drawn: str) -> None:
    given_shares = [Share(label, promised * GIB, held * GIB) for label, promised, held in shares]
    assert bar(20 * GIB, foreign * GIB, given_shares, 20).plain == drawn


sizes = st.integers(0, 40 * GIB)


@settings(deadline=None)
@given(
    st.integers(0, 40 * GIB), sizes, st.lists(st.tuples(sizes, sizes), max_size=5), st.integers(1, 200),
)  # fmt: skip
def test_a_bar_is_as_wide_as_asked_whatever_is_in_it(
    whole: int, foreign: int, shares: list[tuple[int, int]], width: int
) -> None:
    drawn = bar(whole, foreign, [Share("1", promised, held) for promised, held in shares], width).plain
    assert len(drawn) == width
    assert set(drawn) <= {HELD, PROMISED, FOREIGN, FREE, "1"}

"""Examples in sequences: each once, apart from one another, and the loss where it was."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpipe_cluster.errors import BadInput
from superpipe_cluster.finetuning.examples import Example
from superpipe_cluster.finetuning.sequences import Sequences, best_fit

ROOM = 12


@given(st.lists(st.integers(1, ROOM), max_size=40))
def test_packing_takes_each_once_and_fills_bins_well(lengths: list[int]) -> None:
    bins = best_fit(lengths, ROOM)
    assert Counter(number for one in bins for number in one) == Counter(range(len(lengths)))
    filled = sorted(sum(lengths[number] for number in one) for one in bins)
    assert all(0 < one <= ROOM for one in filled)
    # No two bins could be one: the least that any fit does.
    assert len(filled) < 2 or filled[0] + filled[1] > ROOM


@st.composite
def examples(draw: st.DrawFn) -> list[Example]:
    found = []
    for row in range(draw(st.integers(1, 12))):
        tokens = draw(st.lists(st.integers(1, 99), min_size=2, max_size=ROOM))
        trained = [
            False,
            *draw(st.lists(st.booleans(), min_size=len(tokens) - 2, max_size=len(tokens) - 2)),
            True,
        ]
        found.append(Example(row, tokens, trained))
    return found


@given(examples(), st.booleans(), st.integers(1, 4))
def test_batches_hold_every_example_as_it_was(given_: list[Example], packed: bool, size: int) -> None:
    sequences = Sequences(0, ROOM if packed else None)
    sequences.add(given_)
    assert sequences.examples == len(given_)
    assert sequences.tokens == sum(len(one.tokens) for one in given_)
    seen = []
    for start in range(0, len(sequences), size):
        batch = sequences.batch(range(start, min(start + size, len(sequences))))
        assert batch["input_ids"].shape[1] <= ROOM
        lines = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        for number, (ids, labels) in enumerate(lines):
            if packed:
                places = batch["position_ids"][number].tolist()
                begins = [at for at, place in enumerate(places) if place == 0]
                parts = list(zip(begins, [*begins[1:], len(ids)], strict=True))
            else:
                parts = [(0, sum(batch["attention_mask"][number].tolist()))]
            for begin, end in parts:
                if set(ids[begin:end]) != {0}:
                    seen.append((tuple(ids[begin:end]), tuple(labels[begin:end])))
            assert all(ids[at] == label for at, label in enumerate(labels) if label != -100)
            ends = max(end for begin, end in parts if set(ids[begin:end]) != {0})
            assert not any(ids[ends:])
    expected = Counter(
        (
            tuple(one.tokens),
            tuple(token if mask else -100 for token, mask in zip(one.tokens, one.trained, strict=True)),
        )
        for one in given_
    )
    assert Counter(seen) == expected


@given(st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_what_is_held_out_is_not_trained_on(rows: int, fraction: float, seed: int) -> None:
    def tokens_of(sequences: Sequences) -> set[int]:
        return {
            token
            for number in range(len(sequences))
            for token in sequences.batch([number])["input_ids"][0].tolist()
        }

    def split() -> tuple[set[int], set[int]]:
        training = Sequences(0, None)
        # Two pieces of each row, which must not be on both sides.
        training.add(Example(row, [row + 1, row + 1], [False, True]) for row in range(rows) for _ in range(2))
        held_out = training.hold_out(fraction, seed)
        assert held_out.examples + training.examples == 2 * rows
        return tokens_of(training), tokens_of(held_out)

    kept, held = split()
    assert kept | held == set(range(1, rows + 1))
    assert not kept & held
    assert len(held) == min(max(1, round(rows * fraction)), rows - 1)
    assert split() == (kept, held), "the same for every attempt"


def test_one_row_cannot_be_split() -> None:
    only = Sequences(0, None)
    only.add([Example(0, [1, 2], [False, True])] * 2)
    with pytest.raises(BadInput, match="only one row"):
        only.hold_out(0.5, 0)

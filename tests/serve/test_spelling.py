"""Text as it is shown, token by token: all of it, whole characters, and nothing of a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from superpipe_cluster.language_models import ByteTokenizer
from superpipe_cluster.serving.spelling import Speller

TOKENIZER = ByteTokenizer()
texts = st.text(alphabet="ab \né€😀", max_size=30)


def shown(tokens: list[int], stops: list[str]) -> tuple[list[str], bool]:
    speller = Speller(TOKENIZER.decode, stops)
    pieces: list[str] = []
    for token in tokens:
        pieces.append(speller.add(token))
        if speller.stopped:
            return pieces, True
    return [*pieces, speller.finish()], speller.stopped


@given(texts, st.lists(st.text(alphabet="ab \né€😀", min_size=1, max_size=3), max_size=3))
def test_it_shows_all_up_to_the_first_stop_and_never_takes_back(text: str, stops: list[str]) -> None:
    pieces, stopped = shown(TOKENIZER.encode(text), stops)
    # The first stop to be complete wins; of those that are complete at once, the one that begins first.
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    done = min((end for end, _ in ends), default=None)
    expected = text if done is None else text[: min(at for end, at in ends if end == done)]
    assert "".join(pieces) == expected
    assert stopped == bool(ends)


@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_come_out_as_they_are_decoded_whole(tokens: list[int]) -> None:
    pieces, _ = shown(tokens, [])
    assert "".join(pieces) == TOKENIZER.decode(tokens)


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    speller = Speller(TOKENIZER.decode, ["\n\n"])
    assert [speller.add(token) for token in "a\nb€".encode()] == ["a", "", "\nb", "", "", "€"]

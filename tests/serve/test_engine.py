"""Whoever asks is answered as if alone, whoever comes, leaves or takes memory away. Over a model of arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superpipe_cluster.errors import DeviceOutOfMemory
from superpipe_cluster.serving.asking import News, Request, Said, Sampling, Vector
from superpipe_cluster.serving.engine import Engine, Limits
from superpipe_cluster.serving.faults import Fault
from superpipe_cluster.serving.packed import Passed, Piece

CPU = torch.device("cpu")
LIMITS = Limits(context=24, max_requests=3, queue=2)
VOCABULARY, END = 16, 0


def next_token(tokens: Sequence[int]) -> int:
    return (sum(place * token for place, token in enumerate(tokens, start=1)) + 7 * len(tokens)) % VOCABULARY


def decode(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("a") + token) for token in tokens)


@dataclass
class Arithmetic:
    """In the place of `Packed`: the next token follows from all before it, and a cache is the tokens themselves."""

    passes: list[list[Piece]] = field(default_factory=list)
    runs_out: int = 0
    makes_text: bool = True

    def new_cache(self) -> Any:
        one = torch.zeros(1, dtype=torch.uint8)
        return SimpleNamespace(tokens=[], layers=[SimpleNamespace(keys=one, values=None)])  # a byte per token

    def run(self, pieces: Sequence[Piece], device: torch.device) -> Passed:
        self.passes.append([replace(piece, tokens=tuple(piece.tokens)) for piece in pieces])
        scores, vectors = [], []
        for piece in pieces:
            if piece.vector:
                vectors.append([float(sum(piece.tokens))])
                continue
            cache: Any = piece.cache
            assert len(cache.tokens) == piece.start, "what it has seen is what it is said to have seen"
            cache.tokens.extend(piece.tokens)
            if self.runs_out:
                self.runs_out -= 1
                raise DeviceOutOfMemory("no room")  # the caches of some have grown, those of others have not
            scores.append(torch.eye(VOCABULARY)[next_token(cache.tokens)])
        made = torch.stack(scores) if scores else torch.zeros(0, VOCABULARY)
        return Passed(made, torch.tensor(vectors) if vectors else None)


class Lab:
    def __init__(self) -> None:
        self.model = Arithmetic()
        self.engine = Engine(self.model, CPU, decode, (END,), LIMITS)  # type: ignore[arg-type]
        self.heard: dict[Request, list[News]] = {}

    def ask(self, prompt: list[int], max_tokens: int) -> Request:
        news: list[News] = []
        request = Request(prompt, news.append, max_tokens, Sampling(temperature=0))
        self.engine.submit(request)
        self.heard[request] = news
        return request

    def finish(self) -> None:
        while self.engine.run():
            pass
        assert self.engine.active == self.engine.waiting == 0

    def said(self, request: Request) -> tuple[str, str | None]:
        *parts, last = self.heard[request]
        assert isinstance(last, Said), last
        assert all(isinstance(part, Said) and part.finish is None for part in parts)
        return "".join(part.text for part in (*parts, last) if isinstance(part, Said)), last.finish


def alone(prompt: list[int], max_tokens: int) -> tuple[str, str]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        token = next_token(tokens)
        if token == END:
            return decode(tokens[len(prompt) :]), "stop"
        tokens.append(token)
    return decode(tokens[len(prompt) :]), "length"


prompts = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=12)
happenings = st.one_of(
    st.tuples(st.just("ask"), prompts, st.integers(0, 12)),
    st.tuples(st.just("run"), st.integers(1, 4)),
    st.tuples(st.just("leave"), st.integers(0, 20)),
    st.tuples(st.just("hold"), st.integers(0, 40)),
    st.tuples(st.just("run out")),
)


@given(st.lists(happenings, max_size=40))
def test_everybody_is_answered_as_if_alone(story: list[tuple[Any, ...]]) -> None:
    lab = Lab()
    for happening in story:
        match happening:
            case "ask", prompt, max_tokens:
                full = lab.engine.active + lab.engine.waiting >= LIMITS.max_requests + LIMITS.queue
                if not full:
                    lab.ask(prompt, max_tokens)
                    continue
                with pytest.raises(Fault) as refused:
                    lab.ask(prompt, max_tokens)
                assert (refused.value.status, refused.value.code) == (429, "queue_full")
                assert refused.value.retry_after_s is not None
            case "run", times:
                for _ in range(times):
                    lab.engine.run()
            case "leave", number if number < len(lab.heard):
                list(lab.heard)[number].cancelled = True
            case "hold", spare_bytes:
                lab.engine.hold(spare_bytes)
            case ("run out",) if lab.engine.active > 1:
                lab.model.runs_out = 1
            case _:
                pass
    lab.model.runs_out = 0
    lab.finish()
    for request, news in lab.heard.items():
        if request.cancelled:
            assert not any(isinstance(one, Fault) for one in news[:-1])
        elif request.wants_vector:
            assert news == [Vector([float(sum(request.prompt))])]
        else:
            assert lab.said(request) == alone(request.prompt, request.max_tokens)
    assert all(len(pieces) <= LIMITS.max_requests for pieces in lab.model.passes)


def test_a_pass_brings_everybody_forward() -> None:
    lab = Lab()
    asked = [lab.ask([5, number], 6) for number in (1, 2, 4)]
    lab.finish()
    longest = max(len(alone(request.prompt, 6)[0]) for request in asked)
    assert len(lab.model.passes) <= longest + 1


def test_who_comes_joins_at_the_next_pass() -> None:
    lab = Lab()
    lab.ask([5, 1], 8)
    lab.engine.run()
    lab.ask([3, 3, 3], 8)
    lab.engine.run()
    assert [len(piece.tokens) for piece in lab.model.passes[-1]] == [1, 3]


def test_caches_together_stay_within_what_is_held_for_them() -> None:
    lab = Lab()
    lab.engine.rehearse()
    lab.engine.hold(spare_bytes=10)  # tokens of a byte each: 24 + 10
    for _ in range(3):
        lab.ask([9] * 6, 8)
    lab.model.passes.clear()
    lab.finish()
    at_once = [sum(len(piece.cache.tokens) for piece in pieces if piece.cache) for pieces in lab.model.passes]  # type: ignore[attr-defined]
    assert max(len(pieces) for pieces in lab.model.passes) == 2
    assert max(at_once) <= 34


def test_who_leaves_the_queue_leaves_a_place_in_it() -> None:
    lab = Lab()
    asked = [lab.ask([9] * 6, 12) for _ in range(LIMITS.max_requests)]
    lab.engine.hold(0)  # room for one at a time
    lab.engine.run()
    asked += [lab.ask([9] * 6, 12) for _ in range(4 - lab.engine.waiting)]
    for request in asked[2:]:
        request.cancelled = True
    lab.engine.run()
    assert (lab.engine.active, lab.engine.waiting) == (1, 1)
    lab.ask([5, 1], 4)


def test_the_rehearsal_is_as_large_as_any_pass() -> None:
    lab = Lab()
    lab.engine.rehearse()
    rehearsed = sum(len(piece.tokens) for piece in lab.model.passes.pop())
    lab.engine.hold(1000)
    for _ in range(3):
        lab.ask([9] * 12, 12)
    lab.finish()
    assert max(sum(len(piece.tokens) for piece in pieces) for pieces in lab.model.passes) <= rehearsed
    assert len(lab.model.passes[0]) == 2, (
        "prompts of 24 tokens fill a pass of 24; the third waits for the next"
    )


def test_a_request_that_does_not_fit_alone_is_refused_and_the_others_go_on() -> None:
    lab = Lab()
    lab.model.runs_out = 1
    first = lab.ask([1, 2], 3)
    lab.engine.run()
    (news,) = lab.heard[first]
    assert isinstance(news, Fault)
    assert (news.status, news.code) == (503, "out_of_memory")
    second = lab.ask([1, 2], 3)
    lab.finish()
    assert lab.said(second) == alone([1, 2], 3)


def test_an_end_sends_away_who_waits_and_finishes_who_is_in() -> None:
    lab = Lab()
    asked = [lab.ask([5, number], 4) for number in range(1, 6)]
    lab.engine.run()
    lab.engine.close()
    with pytest.raises(Fault) as closed:
        lab.ask([1], 1)
    assert (closed.value.status, closed.value.retry_after_s) == (503, 5)
    lab.finish()
    for request in asked[:3]:
        assert lab.said(request) == alone(request.prompt, 4)
    for request in asked[3:]:
        assert [news.status for news in lab.heard[request] if isinstance(news, Fault)] == [503]


def test_who_cannot_be_finished_is_told() -> None:
    lab = Lab()
    request = lab.ask([5, 1], 8)
    lab.engine.run()
    lab.engine.abandon()
    assert isinstance(lab.heard[request][-1], Fault)
    assert not lab.engine.run()

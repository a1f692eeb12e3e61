"""Who is in which pass: requests join between two passes, advance by a token in each, and leave when they are done.

Owns the queue, the room for caches, and the answers under way. One thread owns the model and calls `run`; any other may
`submit`. [Note: reserved] A request joins when the keys and values of its prompt and of the longest answer it may get
fit beside those of the others; so nobody who was let in has to leave for want of memory, unless the budget shrinks.
Whoever has to, does so newest first and is computed anew later: it keeps what it has said and its random numbers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from superpipe_cluster.errors import DeviceOutOfMemory
from superpipe_cluster.serving.asking import Request, Said, Vector
from superpipe_cluster.serving.choosing import Chooser
from superpipe_cluster.serving.faults import Fault
from superpipe_cluster.serving.packed import Packed, Piece, bytes_of
from superpipe_cluster.serving.spelling import Speller

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is answered at once.

    Attributes:
        context: tokens of the longest request, prompt and answer together.
        max_requests: answered at the same time.
        queue: waiting for that.
    """

    context: int
    max_requests: int
    queue: int


class _Answer:
    """A request under way. Without a cache, all its tokens are to be computed (again)."""

    def __init__(
        self, request: Request, decode: Callable[[Sequence[int]], str], device: torch.device
    ) -> None:
        self.request = request
        self.tokens = list(request.prompt)
        self.cache: DynamicCache | None = None
        self.began_s = time.monotonic()
        self.speller = Speller(decode, request.stops)
        self.chooser = Chooser(request.sampling, device)

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def rows(self) -> int:
        """Tokens that its next pass has to compute."""
        return 1 if self.cache is not None else len(self.tokens)


class Engine:
    """Answers requests, many in each pass.

    Args:
        packed: the model.
        device: where it computes.
        decode: tokens to text.
        ends: tokens that end an answer.
        limits: how much is answered at once.

    Attributes:
        makes_text: whether the model answers with text, and not with vectors only.
        answered: requests answered to their end.
        made: tokens made.
        passes: made over the model.
    """

    def __init__(
        self,
        packed: Packed,
        device: torch.device,
        decode: Callable[[Sequence[int]], str],
        ends: Collection[int],
        limits: Limits,
    ) -> None:
        self.limits = limits
        self.makes_text = packed.makes_text
        self.answered = self.made = self.passes = 0
        self._packed = packed
        self._device = device
        self._decode = decode
        self._ends = frozenset(ends)
        self._room_tokens = limits.context
        self._token_bytes = 1
        self._seconds = 1.0  # of an answer, lately
        self._changed = threading.Condition()
        self._waiting: deque[Request | _Answer] = deque()
        self._active: list[_Answer] = []
        self._closed = False

    # ---- from any thread -------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Requests that are being answered."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def submit(self, *requests: Request) -> None:
        """Take requests in, all of them or none.

        Raises:
            Fault: as many are waiting as may, or no more are taken.
        """
        with self._changed:
            if self._closed:
                raise _closing()
            free = self.limits.max_requests - len(self._active)
            if len(self._waiting) + len(requests) > free + self.limits.queue:
                turns = ceil(len(self._waiting) / self.limits.max_requests)
                raise Fault(
                    429,
                    f"{self.active} requests are being answered and {self.waiting} wait: there is no room for more",
                    code="queue_full",
                    retry_after_s=min(60, max(1, ceil(turns * self._seconds))),
                )
            self._waiting.extend(requests)
            self._changed.notify_all()

    # ---- from the thread that owns the model -----------------------------------------------------------

    def rehearse(self) -> None:
        """A pass as large as any: a request of full length, and one token for each of the others.

        What it needs is then known to whoever streams the model, and to `hold`.

        Raises:
            DeviceOutOfMemory: the budget does not hold that.
        """
        if not self.makes_text:
            self._packed.run([Piece([0] * self.limits.context, vector=True)], self._device)
            return
        rest = [Piece([0], 0, self._packed.new_cache()) for _ in range(self.limits.max_requests - 1)]
        last = Piece([0] * self.limits.context, 0, self._packed.new_cache())
        self._packed.run([*rest, last], self._device)
        one = rest[0] if rest else last
        assert one.cache is not None
        self._token_bytes = max(1, bytes_of(one.cache) // len(one.tokens))

    def hold(self, spare_bytes: int) -> None:
        """Let caches have so many bytes beside what the rehearsal needed."""
        self._room_tokens = self.limits.context + max(0, spare_bytes) // self._token_bytes
        while len(self._active) > 1 and self._reserved() > self._room_tokens:
            self._put_back()

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody asks, but no longer than `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed, timeout_s)

    def run(self) -> bool:
        """One pass for everybody who is here and has a place in it; False if there is nobody."""
        self._join()
        answers = self._next()
        if not answers:
            return False
        pieces = [self._piece(answer) for answer in answers]
        try:
            passed = self._packed.run(pieces, self._device)
        except DeviceOutOfMemory as error:
            self._run_out(error)
            return True
        self.passes += 1
        scores, vectors = iter(passed.scores), iter(() if passed.vectors is None else passed.vectors.tolist())
        for answer, piece in zip(answers, pieces, strict=True):
            if piece.vector:
                self._tell_vector(answer, next(vectors, None))
            else:
                answer.cache = piece.cache
                self._tell_token(answer, answer.chooser.choose(next(scores)))
        return True

    def close(self) -> None:
        """Take nobody in any more, and send those away who wait; who is being answered can still be, by `run`."""
        with self._changed:
            self._closed = True
            sent_away, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        for one in sent_away:
            _request(one).hear(_closing())

    def abandon(self) -> None:
        """Tell everybody who is left that there will be no answer."""
        self.close()
        for answer in self._active:
            answer.request.hear(_closing())
        self._active = []

    # ---- who is in -------------------------------------------------------------------------------------

    def _join(self) -> None:
        self._active = [answer for answer in self._active if not answer.request.cancelled]
        with self._changed:
            self._waiting = deque(one for one in self._waiting if not _request(one).cancelled)
            while self._waiting and len(self._active) < self.limits.max_requests:
                first = self._waiting[0]
                if self._active and self._reserved() + _request(first).reserves > self._room_tokens:
                    return  # whoever is behind does not overtake
                self._waiting.popleft()
                known = isinstance(first, _Answer)
                self._active.append(first if known else _Answer(first, self._decode, self._device))

    def _reserved(self) -> int:
        return sum(answer.request.reserves for answer in self._active)

    def _next(self) -> list[_Answer]:
        """Those in the next pass: everybody with a cache, and of the others as many tokens as were rehearsed."""
        room, chosen = self.limits.context, []
        for answer in self._active:
            if answer.cache is None:
                if answer.rows > room:
                    continue
                room -= answer.rows
            chosen.append(answer)
        return chosen

    def _piece(self, answer: _Answer) -> Piece:
        if answer.request.wants_vector:
            return Piece(answer.tokens, vector=True)
        if answer.cache is None:
            return Piece(answer.tokens, 0, self._packed.new_cache())
        return Piece(answer.tokens[-1:], len(answer.tokens) - 1, answer.cache)

    def _put_back(self) -> None:
        """The newest goes back in the line, to be computed anew."""
        newest = self._active.pop()
        newest.cache = None
        with self._changed:
            self._waiting.appendleft(newest)

    def _run_out(self, error: DeviceOutOfMemory) -> None:
        """The pass was broken off in the middle: what caches hold is no longer known."""
        for answer in self._active:
            answer.cache = None
        if len(self._active) > 1:
            self._put_back()
            self._room_tokens = max(self.limits.context, self._reserved())
        else:
            refused = self._active.pop().request
            refused.hear(Fault(503, error.message, code="out_of_memory", retry_after_s=30))

    # ---- what they are told ----------------------------------------------------------------------------

    def _tell_vector(self, answer: _Answer, values: list[float] | None) -> None:
        no_vector = Fault(
            400, "this model does not show its hidden states", code="no_embeddings", param="model"
        )
        self._leave(answer)
        answer.request.hear(no_vector if values is None else Vector(values))

    def _tell_token(self, answer: _Answer, token: int) -> None:
        self.made += 1
        answer.tokens.append(token)
        is_end, is_last = token in self._ends, answer.made >= answer.request.max_tokens
        text = "" if is_end else answer.speller.add(token)
        if not is_end and not answer.speller.stopped and not is_last:
            if text:
                answer.request.hear(Said(text, None, answer.made))
            return
        text += answer.speller.finish()
        by_itself = is_end or answer.speller.stopped
        self._leave(answer)
        answer.request.hear(Said(text, "stop" if by_itself else "length", answer.made))

    def _leave(self, answer: _Answer) -> None:
        self._active.remove(answer)
        self.answered += 1
        self._seconds += 0.1 * (time.monotonic() - answer.began_s - self._seconds)


def _request(one: Request | _Answer) -> Request:
    return one.request if isinstance(one, _Answer) else one


def _closing() -> Fault:
    return Fault(503, "the job that serves this model is ending", code="model_ending", retry_after_s=5)

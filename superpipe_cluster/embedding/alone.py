"""The vector that each row has alone, with many rows in each pass over the streamed weights.

Owns who goes together, and how many. [Note: vectors alone] The last bits of a vector depend on who else is in its
batch. Here every operator is given each row by itself, so they do not, and a pass may have as many rows as there is
room for. Texts go side by side through models that can tell them apart (`Packed`, as when they are served); texts of
one length, and images, through any model, operator by operator (`Each`).

[Note: room for a pass] How many fit is measured: what a token takes in the largest pass so far says how many more there
is room for. Texts side by side take a little more each than one alone, for what goes into attention and comes out of
it; so the first pass of them is a smaller one, and is measured anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from superpipe_cluster.embedding.each import Each, NotAlike
from superpipe_cluster.embedding.encoder import Encoder
from superpipe_cluster.errors import BadInput, DeviceOutOfMemory
from superpipe_cluster.serving.packed import Packed, Piece
from superpipe_cluster.streaming import Streamer

#: The part of the room for texts one by one that those side by side begin with. See [Note: room for a pass].
_FIRST = 0.75


@dataclass(frozen=True)
class _Row:
    """A text or an image: its tokens (an image counts as one), and itself as a batch of one."""

    tokens: list[int]
    batch: dict[str, torch.Tensor]


class Alone:
    """Makes vectors. See [Note: vectors alone].

    Args:
        encoder: with its model.
        device: where that computes.
    """

    def __init__(self, encoder: Encoder, device: torch.device) -> None:
        self._encoder = encoder
        self._device = device
        self._packed: Packed | None = None
        self._is_settled = not encoder.needs_tokens_alone  # whether texts go side by side
        self._are_alike = True
        #: Tokens of the largest pass so far; of the next one at most; and of any, once memory has run out.
        self._largest, self._room, self._most = 0, 0, math.inf
        self._token_bytes = 0.0

    def vectors(
        self, rows: Sequence[Any], streamer: Streamer, room_bytes: int, should_stop: Callable[[], bool]
    ) -> torch.Tensor | None:
        """Of each row, in their order: `float[rows, dimensions]`.

        Args:
            rows: as for `Encoder.batch`; texts are quickest with the longest first.
            streamer: of the model.
            room_bytes: in which a pass must fit, with all that it needs.
            should_stop: asked between two passes; then there is no result.

        Raises:
            DeviceOutOfMemory: a row alone needs more than the budget.
        """
        left = [_Row(_tokens_of(row), self._encoder.batch([row])) for row in rows]
        made: list[torch.Tensor] = []
        while left:
            chosen, loads = self._next(left), streamer.stats().loads
            if len(chosen) > 1 and not self._is_settled:
                self._pack(chosen[:2])
                chosen = self._next(left)
            is_largest = _size(chosen) >= self._largest and (len(chosen) > 1 or self._packed is None)
            if is_largest:
                self._largest = _size(chosen)
            try:
                made += self._pass(chosen)
                left = left[len(chosen) :]
            except DeviceOutOfMemory:
                if len(chosen) == 1:
                    raise
                self._most = _size(chosen) // 2
            if left and should_stop():
                return None
            stats = streamer.stats()
            if is_largest:
                # More than a token takes, for some of these bytes do not grow with the pass, and the floor has a spare.
                self._token_bytes = 1.03 * stats.others_bytes / self._largest
            # If no weights came, they are all there, and a larger pass would save nothing.
            if stats.loads > loads and self._token_bytes:
                spare_bytes = room_bytes - (stats.floor_bytes or 0)
                self._room = self._largest + int(spare_bytes / self._token_bytes)
        return torch.cat(made)

    # ---- who goes together -----------------------------------------------------------------------------

    def _next(self, left: Sequence[_Row]) -> list[_Row]:
        """The first row, and those behind it that fit beside it."""
        chosen, room = list(left[:1]), min(self._room, self._most)
        if not self._is_settled:
            room = room * _FIRST
        for row in left[1:]:
            may_join = self._packed or not self._is_settled
            may_join = may_join or (self._are_alike and len(row.tokens) == len(chosen[0].tokens))
            if not may_join or _size([*chosen, row]) > room:
                break
            chosen.append(row)
        return chosen

    def _pack(self, rows: Sequence[_Row]) -> None:
        """Have texts go side by side from now on, if the model can do that and these two have the same vectors then."""
        self._is_settled = True
        expected = [self._encoder.encode(self._there(row)) for row in rows]
        try:
            self._packed = Packed(self._encoder.model)
        except BadInput:
            return
        try:
            is_same = all(map(torch.equal, self._pass(rows), expected))
        except Exception:  # models do what nobody has foreseen
            is_same = False
        if not is_same:
            self._packed.close()
            self._packed = None
            return
        self._largest, self._room, self._token_bytes = 0, int(self._room * _FIRST), 0.0

    # ---- passes ----------------------------------------------------------------------------------------

    def _pass(self, rows: Sequence[_Row]) -> list[torch.Tensor]:
        """The vectors of some rows, `float[1, dimensions]` each."""
        if self._packed is not None and len(rows) > 1:
            hidden = self._packed.run([Piece(row.tokens, vector=True) for row in rows], self._device).hidden
            return [
                self._encoder.finish((states,), self._there(row)["attention_mask"])
                for states, row in zip(hidden, rows, strict=True)
            ]
        if (
            self._packed is not None
        ):  # as it was planned: side by side with nobody it would take a little more
            self._packed.close()
            vectors = self._encoder.encode(self._there(rows[0]))
            self._packed.open()
            return [vectors]
        batches = [self._there(row) for row in rows]
        if len(rows) > 1:
            try:
                vectors = self._encoder.encode(
                    {name: Each.of([one[name] for one in batches]) for name in batches[0]}
                )
                assert isinstance(vectors, Each)
                return list(vectors.parts)
            except NotAlike:
                self._are_alike = False
        return [self._encoder.encode(batch) for batch in batches]

    def _there(self, row: _Row) -> dict[str, torch.Tensor]:
        return {name: value.to(self._device) for name, value in row.batch.items()}


def _tokens_of(row: Any) -> list[int]:
    return row["input_ids"] if isinstance(row, dict) else [0]


def _size(rows: Sequence[_Row]) -> int:
    """Tokens, or images."""
    return sum(len(row.tokens) for row in rows)

"""Sequences: examples one by one or packed, and batches of them with labels.

Owns what goes into the model: `input_ids`, `labels` with -100 where no loss is, and what keeps examples apart.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from superpipe_cluster.errors import BadInput

if TYPE_CHECKING:
    import torch

    from superpipe_cluster.finetuning.examples import Example

#: What torch's cross entropy leaves out.
_NO_LOSS = -100


class Sequences:
    """Examples in a few flat arrays: some nine bytes a token.

    Args:
        pad: the token that fills batches up.
        packed_to: put as many examples into a sequence as fit into so many tokens; None for one in each.
    """

    def __init__(self, pad: int, packed_to: int | None) -> None:
        self._pad = pad
        self._packed_to = packed_to
        self._tokens = array("i")
        self._trained = bytearray()
        self._starts = array("q", [0])
        self._rows = array("q")
        self._sequences: list[list[int]] = []

    def add(self, examples: Iterable[Example]) -> None:
        """Append examples."""
        for example in examples:
            self._tokens.extend(example.tokens)
            self._trained.extend(example.trained)
            self._starts.append(len(self._tokens))
            self._rows.append(example.row)
        self._arrange()

    def hold_out(self, fraction: float, seed: int) -> Sequences:
        """Take the examples of some rows out, chosen by `seed`: at least one row, and not all.

        Raises:
            BadInput: there is only one row.
        """
        import torch

        rows = sorted(set(self._rows))
        if len(rows) < 2:
            raise BadInput(
                "data.eval_fraction: there is only one row, and none can be held out",
                hint="give more rows (a text file is one), or data.eval_files",
            )
        count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        held = {rows[place] for place in order[:count]}
        kept, out = Sequences(self._pad, self._packed_to), Sequences(self._pad, self._packed_to)
        for number, row in enumerate(self._rows):
            (out if row in held else kept)._append(self, number)
        for one in (kept, out):
            one._arrange()
        self.__dict__.update(kept.__dict__)
        return out

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return len(self._rows)

    @property
    def tokens(self) -> int:
        """How many tokens there are, without padding."""
        return len(self._tokens)

    def batch(self, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        """The model's inputs for these sequences, `int64[sequences, longest of them]`.

        Packed examples are told apart by positions that begin anew, and no mask is given: that is how transformers
        recognizes them.
        """
        import torch

        width = max(self._length(number) for number in chosen)
        shape = (len(chosen), width)
        ids, labels = torch.full(shape, self._pad), torch.full(shape, _NO_LOSS)
        mask, positions = torch.zeros(shape, dtype=torch.long), torch.arange(width).repeat(len(chosen), 1)
        for line, number in enumerate(chosen):
            at = 0
            for example in self._sequences[number]:
                start, end = self._starts[example], self._starts[example + 1]
                to = at + end - start
                tokens = torch.tensor(self._tokens[start:end])
                trained = torch.tensor(list(self._trained[start:end]), dtype=torch.bool)
                ids[line, at:to] = tokens
                labels[line, at:to] = torch.where(trained, tokens, _NO_LOSS)
                mask[line, at:to] = 1
                positions[line, at:] = torch.arange(width - at)
                at = to
            positions[line, at:] = torch.arange(width - at)
        apart = {"attention_mask": mask} if self._packed_to is None else {"position_ids": positions}
        return {"input_ids": ids, "labels": labels, **apart}

    def _append(self, other: Sequences, example: int) -> None:
        start, end = other._starts[example], other._starts[example + 1]
        self._tokens.extend(other._tokens[start:end])
        self._trained.extend(other._trained[start:end])
        self._starts.append(len(self._tokens))
        self._rows.append(other._rows[example])

    def _length(self, sequence: int) -> int:
        return sum(self._starts[one + 1] - self._starts[one] for one in self._sequences[sequence])

    def _arrange(self) -> None:
        lengths = [end - start for start, end in zip(self._starts, self._starts[1:], strict=False)]
        if self._packed_to is None:
            self._sequences = [[number] for number in range(len(lengths))]
        else:
            self._sequences = best_fit(lengths, self._packed_to)


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of the things with these lengths, in bins of `room`: the longest first, each where least is left.

    Args:
        lengths: none is more than `room`.
        room: of each bin.
    """
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # by the room that is left
    rooms: list[int] = []  # those of `open_bins` with any bin, in order
    for number in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        at = bisect_left(rooms, lengths[number])
        if at == len(rooms):
            left, chosen = room, len(bins)
            bins.append([])
        else:
            left = rooms[at]
            chosen = open_bins[left].pop()
            if not open_bins[left]:
                del rooms[at]
        bins[chosen].append(number)
        left -= lengths[number]
        if left and not open_bins.setdefault(left, []):
            insort(rooms, left)
        if left:
            open_bins[left].append(chosen)
    return bins

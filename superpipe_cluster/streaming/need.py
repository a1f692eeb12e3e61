"""What a program needs beside its slabs, as seen while it runs.

Owns the memory of this step and the last one: the room that fetching ahead has to leave, and the smallest budget that
would have done. It does not know what is held.
"""

from __future__ import annotations

from superpipe_cluster.errors import BudgetTooSmall

#: Programs keep a little more from step to step (losses, say): this part of the measured minimum is added to it.
_SPARE = 50


class Need:
    """Bytes of everything but slabs ("others"), at the worst moments of this step and of the last whole one."""

    def __init__(self) -> None:
        self._others = self._others_before = 0
        self._least = self._least_before = 0  # others and the slabs of one operator
        self._at_begin = 0
        self._least_ever = 0
        #: The largest step that may come, where the program has made it on purpose; else none is known.
        self._rehearsed: int | None = None

    def begin_step(self, others: int) -> None:
        """A step starts, with `others` bytes in use."""
        self._others_before, self._others = self._others, others
        self._least_ever = max(self._least_ever, self._least)
        self._least_before, self._least = self._least, others
        self._at_begin = others

    def note(self, others: int, operands: int) -> None:
        """`others` bytes are in use while an operator runs on slabs of `operands` bytes."""
        self._others = max(self._others, others)
        self._least = max(self._least, others + operands)

    def rehearsed(self) -> None:
        """From now on no step needs more than the largest so far did, beside what is held when it begins."""
        self._rehearsed = max(self._least_ever, self._least) or None

    def most_others(self, now: int) -> int:
        """Others to reckon with, if `now` are in use."""
        return max(now, self._others, self._others_before)

    def floor(self, others: int, largest_unit: int) -> int | None:
        """The smallest budget in which every step so far could have been made; None before the first.

        More than `check` asks for: the steps to come may be like any of those before, not only like the last two. Where
        the largest was rehearsed, what counts is that one, and what is held now.
        """
        if self._rehearsed is not None:
            return _with_spare(max(self._rehearsed, others))
        least = max(self._least_ever, self._least)
        return _with_spare(max(least, others, self._at_begin + largest_unit)) if least else None

    def check(self, budget_bytes: int, others: int, largest_unit: int) -> None:
        """Refuse a budget that this program could not go on with.

        Args:
            budget_bytes: of everything.
            others: bytes in use now.
            largest_unit: bytes of all slabs of the unit where they are most.

        Raises:
            BudgetTooSmall: a moment of this step or of the last one needed more, or the step that was rehearsed does.
        """
        if self._rehearsed is not None:
            measured = max(self._rehearsed, others)
        else:
            measured = max(self._least, self._least_before, others)
            if self._least:
                # An optimizer's first step goes parameter by parameter, the next ones unit by unit.
                measured = max(measured, self._at_begin + largest_unit)
        needed = _with_spare(measured)
        if budget_bytes < needed:
            raise BudgetTooSmall(
                f"a budget of {budget_bytes} bytes is less than the {needed} bytes that this model and its activations "
                "need at some moment of a step",
                needed_bytes=needed,
                hint=f"give at least {needed} bytes; a smaller batch needs fewer from the second step on",
            )


def _with_spare(measured: int) -> int:
    return measured + measured // _SPARE

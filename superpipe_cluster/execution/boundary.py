"""A program's step boundaries: where a new budget is put in force, and where a pause is stood out.

Owns the worker's half of [Note: two phases] in `lifecycle.record`: the newest budget that was asked for is applied in
the program's own thread, between two steps, and acknowledged once what is held fits it. Several models share the
job's budget in the proportions that the program gave them, none below the smallest budget it can run in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Protocol

from superpipe_cluster.errors import BudgetTooSmall
from superpipe_cluster.execution.control import ChildLine, Wishes
from superpipe_cluster.sizes import format_bytes


class Stats(Protocol):
    """Of `streaming.StreamStats`, what is needed here."""

    @property
    def held_bytes(self) -> int: ...  # noqa: D102
    @property
    def floor_bytes(self) -> int | None: ...  # noqa: D102


class Resizable(Protocol):
    """Of `streaming.Streamer`, what is needed here."""

    @property
    def is_open(self) -> bool: ...  # noqa: D102
    def resize(self, budget: int, *, k: int | None) -> None: ...  # noqa: D102
    def stats(self) -> Stats: ...  # noqa: D102


@dataclass(slots=True)
class _Share:
    """One streamed model's part of the job's budget. `floor_bytes` is None before its first step."""

    streamer: Resizable
    part: Fraction
    k: int | None
    budget_bytes: int
    floor_bytes: int | None = None

    def resize(self, budget_bytes: int) -> None:
        self.streamer.resize(budget_bytes, k=self.k)
        self.budget_bytes = budget_bytes


class Boundary:
    """The budget and the pauses of one attempt. Used by the thread that runs the program.

    Args:
        line: where the actor's wishes come from.
        budget_bytes: the attempt's first budget.
        tell: sends an acknowledgement to the actor at once.

    Attributes:
        budget_bytes: the budget in force.
    """

    def __init__(self, line: ChildLine, budget_bytes: int, tell: Callable[[dict[str, Any]], None]) -> None:
        self.budget_bytes = budget_bytes
        self._line = line
        self._tell = tell
        self._revision = 0
        self._shares: list[_Share] = []

    def add(self, streamer: Resizable, budget_bytes: int, k: int | None) -> None:
        """From now on `streamer` has its part of every budget: `budget_bytes` of the one in force.

        Args:
            streamer: a model under streaming.
            budget_bytes: the bytes it has.
            k: its limit in units, which stays.
        """
        self._shares.append(_Share(streamer, Fraction(budget_bytes, self.budget_bytes), k, budget_bytes))

    def floor_bytes(self) -> int | None:
        """The smallest budget in which the job's models can go on; None before anything is known of it."""
        shares = self._open_shares()
        floors = [share.floor_bytes for share in shares if share.floor_bytes is not None]
        return _needed(sum(floors), shares) if floors else None

    def reach(self) -> bool:
        """A step boundary: put in force what is asked for, and stand still for as long as that is asked.

        Returns whether anything of this has happened: then the last steps do not tell how long the next ones take.
        """
        wishes = self._line.wishes
        resized = self._apply(wishes)
        if not wishes.pause or wishes.stop is not None:
            return resized
        self._tell({"paused": True})
        while wishes.pause and wishes.stop is None:
            wishes = self._line.wait_for_others(wishes)
            self._apply(wishes)
        self._tell({"paused": False})
        return True

    # ---- budgets ---------------------------------------------------------------------------------------

    def _apply(self, wishes: Wishes) -> bool:
        if wishes.budget_bytes is None or wishes.revision <= self._revision:
            return False
        shares = self._open_shares()
        if not shares:
            self._acknowledge(wishes.revision, "its program streams no model", floor_bytes=self.budget_bytes)
            return False
        if wishes.budget_bytes < self.budget_bytes and all(share.floor_bytes is None for share in shares):
            return False  # what a step needs is not known before the first: asked again at the next boundary
        refusal = self._resize(shares, wishes.budget_bytes)
        if refusal is None:
            if any(share.streamer.stats().held_bytes > share.budget_bytes for share in shares):
                return False  # not all of it has left yet, and nothing is free before that
            self.budget_bytes = wishes.budget_bytes
        self._acknowledge(wishes.revision, refusal, floor_bytes=self.floor_bytes())
        return refusal is None

    def _acknowledge(self, revision: int, refusal: str | None, *, floor_bytes: int | None) -> None:
        self._revision = revision
        words = {"budget_bytes": self.budget_bytes, "budget_revision": revision, "budget_refused": refusal}
        self._tell(words if floor_bytes is None else {**words, "floor_bytes": floor_bytes})

    def _resize(self, shares: Sequence[_Share], budget_bytes: int) -> str | None:
        """Divide `budget_bytes` among `shares`; the reason if that cannot be done, and then nothing has changed."""
        before = [share.budget_bytes for share in shares]
        while True:
            floors = [share.floor_bytes or 0 for share in shares]
            new = divide(budget_bytes, [share.part for share in shares], floors)
            if new is None:
                needed = _needed(sum(floors), shares)
                return f"needs {format_bytes(needed)} ({needed} bytes) at some moment of a step"
            short = self._try(shares, new)
            if short is None:
                return None
            share, error = short
            self._try(shares, before)
            if error.needed_bytes <= (share.floor_bytes or 0):
                return error.message
            share.floor_bytes = error.needed_bytes

    @staticmethod
    def _try(shares: Sequence[_Share], new: Sequence[int]) -> tuple[_Share, BudgetTooSmall] | None:
        """Put `new` in force; None, or the share that cannot do with so little, and why. Others may have changed."""
        # Those that shrink come first, so that at no moment all together have more than the larger budget.
        for share, share_bytes in sorted(zip(shares, new, strict=True), key=_grows):
            try:
                share.resize(share_bytes)
            except BudgetTooSmall as error:
                return share, error
        return None

    def _open_shares(self) -> list[_Share]:
        self._shares = [share for share in self._shares if share.streamer.is_open]
        for share in self._shares:
            measured = share.streamer.stats().floor_bytes
            if measured is not None:  # it falls where the program has rehearsed its largest step
                share.floor_bytes = measured
        return self._shares


def divide(budget_bytes: int, parts: Sequence[Fraction], floors: Sequence[int]) -> list[int] | None:
    """`budget_bytes` in the proportions of `parts`, none below its floor; None if the floors do not fit together.

    Args:
        budget_bytes: what there is for all.
        parts: of the whole; what they leave of 1 is the program's own, and parts of more than 1 are scaled down.
        floors: the fewest bytes for each.
    """
    room = int(budget_bytes * min(Fraction(1), sum(parts, Fraction(0))))
    given: dict[int, int] = {}  # those that would fall below their floor have just that
    while len(given) < len(parts):
        others = [number for number in range(len(parts)) if number not in given]
        left, of_all = room - sum(given.values()), sum((parts[number] for number in others), Fraction(0))
        shares = {number: int(left * parts[number] / of_all) for number in others}
        low = [number for number in others if shares[number] < floors[number]]
        if not low:
            given.update(shares)
            return [given[number] for number in range(len(parts))]
        given.update((number, floors[number]) for number in low)
    return None


def _needed(floors_bytes: int, shares: Sequence[_Share]) -> int:
    return ceil(floors_bytes / min(Fraction(1), sum((share.part for share in shares), Fraction(0))))


def _grows(one: tuple[_Share, int]) -> int:
    share, share_bytes = one
    return share_bytes - share.budget_bytes

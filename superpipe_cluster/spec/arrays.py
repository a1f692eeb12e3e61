"""The tasks of an array as people write them: `0-15`, `0-15%4`, `1,3,5-9`.

Owns the grammar and its exact spelling. Does not make tasks: that is the head's work, at submission.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from superpipe_cluster.errors import BadInput

#: More tasks than this are a mistyped number.
MOST_TASKS = 10_000
#: Indices stay short enough to be read in a listing, `12_999999`.
LARGEST_INDEX = 999_999

#: What `ArrayRange.parse` takes. A number alone is not among it: it could be an index or a count.
ARRAY_PATTERN = r"^(?=.*[,-])[0-9]{1,6}(-[0-9]{1,6})?(, ?[0-9]{1,6}(-[0-9]{1,6})?)*(%[1-9][0-9]{0,5})?$"

_LONGEST = 1000
_GRAMMAR = "write 0-15 for 16 tasks, 0-15%4 for four of them at once, or 1,3,5-9"


@dataclass(frozen=True)
class ArrayRange:
    """The indices of an array's tasks.

    Attributes:
        indices: one per task, ascending, each once.
        limit: how many of the tasks may hold a device at once; None for all of them.
    """

    indices: tuple[int, ...]
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.indices:
            raise BadInput("an array has at least one task", hint=_GRAMMAR)
        if len(self.indices) > MOST_TASKS:
            raise BadInput(
                f"{len(self.indices)} tasks are more than {MOST_TASKS}", hint="make several arrays"
            )
        if self.indices[0] < 0 or self.indices[-1] > LARGEST_INDEX:
            raise BadInput(f"the index of a task is a number from 0 to {LARGEST_INDEX}", hint=_GRAMMAR)
        if self.limit is not None and self.limit < 1:
            raise BadInput("at least one task must be allowed at once", hint="leave out the % for no limit")
        for before, after in pairwise(self.indices):
            if after <= before:
                wrong = (
                    f"the task {after} is named twice" if after == before else "the indices are not in order"
                )
                raise BadInput(wrong, hint=_GRAMMAR)

    @classmethod
    def parse(cls, text: object) -> ArrayRange:
        """Read `0-15%4`: indices and ranges of them in any order, then how many at once.

        Raises:
            BadInput: it is none of these, names a task twice, or has too many.
        """
        if isinstance(text, int) and not isinstance(text, bool):
            text = str(text)
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise BadInput("not an array of tasks", hint=_GRAMMAR)
        stripped = text.strip()
        if re.fullmatch(r"[0-9]{1,6}", stripped):
            count = int(stripped)
            meant = f"write 0-{max(count - 1, 0)} for {max(count, 1)} tasks" if count != 1 else "leave it out"
            raise BadInput(
                f"{stripped} could be an index or a count",
                hint=f"{meant}, or {stripped}-{stripped} for the one task with this index",
            )
        if re.fullmatch(ARRAY_PATTERN, stripped) is None:
            raise BadInput(f"{stripped[:60]!r} is not an array of tasks", hint=_GRAMMAR)
        written, _, limit = stripped.partition("%")
        indices: list[int] = []
        for part in written.split(","):
            first, _, last = part.strip().partition("-")
            low, high = int(first), int(last or first)
            if high < low:
                raise BadInput(f"{part.strip()} runs backwards", hint=f"write {high}-{low}")
            if len(indices) + high - low >= MOST_TASKS:
                raise BadInput(f"more than {MOST_TASKS} tasks", hint="make several arrays")
            indices.extend(range(low, high + 1))
        return cls(tuple(sorted(indices)), int(limit) if limit else None)

    def __str__(self) -> str:
        """The shortest spelling: `parse(str(x)) == x`."""
        runs: list[list[int]] = []
        for index in self.indices:
            if runs and index == runs[-1][-1] + 1:
                runs[-1].append(index)
            else:
                runs.append([index])
        alone = len(self.indices) == 1
        spelled = ",".join(f"{run[0]}-{run[-1]}" if alone or len(run) > 1 else str(run[0]) for run in runs)
        return spelled if self.limit is None else f"{spelled}%{self.limit}"

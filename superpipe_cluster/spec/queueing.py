"""The sections of a job file about its place in the queue: elastic, schedule, after.

Owns when a job may start and how far it gives way to others. What it is to do is in `sections`, what its array is
in `arrays`. The text under each field is its description in the JSON schema and in error hints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, cast

from superpipe_cluster.spec.base import Complaint, StrictModel
from superpipe_cluster.spec.fields import Flag, JobRefs, Moment, Slowdown, WindowName


class ElasticSection(StrictModel):
    """How far the job's budget may follow the others' needs while it runs, between its guarantee and its wish."""

    shrink: Flag = True
    """Give bytes back when another job needs them to start, down to the guarantee."""
    grow: Flag = True
    """Take bytes that nobody waits for, up to the wish."""
    max_slowdown: Slowdown | None = None
    """Never shrink it to where a step is forecast to take more than so many times the whole model's; null: any."""


class ScheduleSection(StrictModel):
    """When the job may run."""

    window: WindowName | None = None
    """A window of the cluster's, as `spcluster windows` lists them: the job starts and grows only while it is open."""
    at_end: Literal["shrink", "pause", "requeue"] = "shrink"
    """What becomes of the job when its window closes: on with its guarantee, stand still, or save and queue again."""
    not_before: Moment | None = None
    """The earliest start, `2026-11-22T22:00` in the local time of whoever submits, or with an offset: `...+01:00`."""

    @property
    def begin_at(self) -> float | None:
        """The earliest start in unix seconds."""
        return None if self.not_before is None else self.not_before.timestamp()


class AfterSection(StrictModel):
    """Ids or names of the jobs to wait for; a list, or one name, means `ok`."""

    shorthand: ClassVar[str | None] = "ok"

    ok: JobRefs = ()
    """Jobs that must have succeeded; if one does not, this job is cancelled."""
    any: JobRefs = ()
    """Jobs that must have ended, whichever way."""
    fail: JobRefs = ()
    """Jobs that must have failed; if one does not, this job is cancelled."""

    @classmethod
    def rules(cls, given: Mapping[str, object]) -> Iterator[Complaint]:
        """No job can both succeed and fail."""
        ok, fail = given.get("ok"), given.get("fail")
        both = _names(ok) & _names(fail)
        if both:
            yield Complaint(
                ("fail",),
                f"{sorted(both)[0]} cannot both succeed and fail",
                "name it under one of ok and fail",
            )

    @property
    def all(self) -> tuple[str, ...]:
        """Every job it waits for, each once."""
        return tuple(dict.fromkeys((*self.ok, *self.any, *self.fail)))


def _names(written: object) -> set[str]:
    """The names in a value as given: a list, or one of them."""
    if isinstance(written, list | tuple):
        return {one for one in cast("Sequence[object]", written) if isinstance(one, str)}
    return {written} if isinstance(written, str) else set()

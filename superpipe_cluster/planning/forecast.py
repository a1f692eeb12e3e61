"""The forecast: for each budget what a run takes in bytes and seconds, before anything runs.

Owns the figures that people and the head look at, and their JSON form; importing it loads no torch. `planner` finds
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

#: A budget "without slowdown" makes a step at most this much longer than with the whole model on the device.
NO_SLOWDOWN = 1.02


@dataclass(frozen=True)
class ForecastRow:
    """One budget.

    Attributes:
        budget_bytes: device bytes of everything.
        k: most units that the budget can hold.
        k_prime: units per transfer batch.
        peak_bytes: most device bytes in use at any moment.
        host_bytes: host memory of the master copies, and of what waits there beside them.
        copies_bytes: of this, the master copies.
        link_bytes_per_step: both directions.
        loads_per_step: times that a unit's weights are brought.
        step_s: seconds of a step, once the order is learned.
        slowdown: that over a step with the whole model on the device.
        bound: what a step waits for: the `compute`, or the `link`.
    """

    budget_bytes: int
    k: int
    k_prime: int
    peak_bytes: int
    host_bytes: int
    link_bytes_per_step: int
    loads_per_step: float
    step_s: float
    slowdown: float
    bound: Literal["compute", "link"]
    copies_bytes: int = 0


@dataclass(frozen=True)
class Forecast:
    """A run at every budget.

    Attributes:
        rows: by budget, smallest first.
        floor_bytes: the smallest workable budget.
        no_slowdown_bytes: the smallest budget with a step within 2 % of the whole model's.
        whole_bytes: the budget from which on nothing ever leaves the device.
        whole_step_s: seconds of a step with the whole model on the device.
        units: that the model was split into.
        device: what the seconds are of.
        assumed: whether the device was never measured, so that the seconds are a GPU's of middling speed.
        corrected: measured over forecast seconds of earlier runs of this program, by which all seconds were multiplied.
        fingerprint: the same for the same program on the same kind of device.
    """

    rows: tuple[ForecastRow, ...]
    floor_bytes: int
    no_slowdown_bytes: int
    whole_bytes: int
    whole_step_s: float
    units: int
    device: str
    assumed: bool = False
    corrected: float = 1.0
    fingerprint: str = ""

    def at(self, budget_bytes: int) -> ForecastRow | None:
        """What a run in `budget_bytes` comes to; in between two rows it is in between. None below the floor.

        More than the largest row's budget is not made use of.
        """
        below = max((row for row in self.rows if row.budget_bytes <= budget_bytes), key=_budget, default=None)
        above = min((row for row in self.rows if row.budget_bytes >= budget_bytes), key=_budget, default=None)
        if below is None or above is None or below.budget_bytes == budget_bytes:
            return below
        return _between(below, above, budget_bytes)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Forecast:
        """The forecast that `to_dict` wrote; unknown keys of a newer version are left out."""
        known = _known(cls.__dataclass_fields__, stored)
        rows = tuple(ForecastRow(**_known(ForecastRow.__dataclass_fields__, row)) for row in stored["rows"])
        return cls(**{**known, "rows": rows})


def _budget(row: ForecastRow) -> int:
    return row.budget_bytes


def _between(low: ForecastRow, high: ForecastRow, budget_bytes: int) -> ForecastRow:
    share = (budget_bytes - low.budget_bytes) / (high.budget_bytes - low.budget_bytes)

    def mean(one: float, other: float) -> float:
        return one + share * (other - one)

    return replace(
        low,
        budget_bytes=budget_bytes,
        peak_bytes=int(mean(low.peak_bytes, high.peak_bytes)),
        host_bytes=int(mean(low.host_bytes, high.host_bytes)),
        copies_bytes=int(mean(low.copies_bytes, high.copies_bytes)),
        link_bytes_per_step=int(mean(low.link_bytes_per_step, high.link_bytes_per_step)),
        loads_per_step=mean(low.loads_per_step, high.loads_per_step),
        step_s=mean(low.step_s, high.step_s),
        slowdown=mean(low.slowdown, high.slowdown),
    )


@dataclass(frozen=True)
class Measured:
    """A few real steps at one budget.

    Attributes:
        budget_bytes: device bytes of everything.
        peak_bytes: most device bytes in use at any moment.
        link_bytes_per_step: both directions.
        loads_per_step: times that a unit's weights were brought.
        step_s: the median of their seconds.
    """

    budget_bytes: int
    peak_bytes: int
    link_bytes_per_step: float
    loads_per_step: float
    step_s: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def _known(fields: Iterable[str], stored: dict[str, Any]) -> dict[str, Any]:
    return {name: stored[name] for name in fields if name in stored}

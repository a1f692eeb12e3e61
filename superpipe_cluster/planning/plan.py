"""The plan of a job: byte counts of its model, and the arithmetic from a budget to `k`.

Owns the numbers and what follows from them. How they are found is `profile`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from superpipe_cluster.planning.forecast import Forecast

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Probe:
    """How to run one step of a job's model, as its worker program declares it.

    Attributes:
        model: the model, built with whatever the probe's caller made of tensors (fake ones: no memory, no weights).
        step: runs one forward, or one forward and backward of one micro-batch.
        optimizer: makes the job's optimizer for some parameters, None if the job does not train.
        accumulate: micro-batches per step of the optimizer.
        before_update: what else happens before the optimizer steps (clipping), if anything does.
        master_weights: the type of the copies that the optimizer steps, None if it steps the weights themselves.
        steps: of those that the program counts in its progress, how many one run of this is: a forecast's seconds are
            those of one. Less than 1 where many runs are one of them.
    """

    model: nn.Module
    step: Callable[[], object]
    optimizer: Callable[[list[torch.Tensor]], torch.optim.Optimizer] | None = None
    accumulate: int = 1
    before_update: Callable[[], object] | None = None
    master_weights: torch.dtype | None = None
    steps: float = 1.0


@dataclass(frozen=True)
class PlannedDevice:
    """The device that a plan is made for.

    Attributes:
        gpu: name of the GPU, None for a virtual device.
        link_bytes_per_s: declared speed of a virtual device's link.
        capacity_bytes: its memory; a budget of so much is among those that are forecast.
    """

    gpu: str | None = None
    link_bytes_per_s: float | None = None
    capacity_bytes: int | None = None


#: Buffers through which everything passes that waits on a disk: `homes/staging.py` has them in both directions.
STAGING_BYTES = 16 << 20
#: This part of the smallest workable budget is added to it.
_SPARE = 50


@dataclass(frozen=True)
class Plan:
    """What a model takes, in bytes.

    Attributes:
        unit_bytes: weights of each unit.
        largest_unit_bytes: weights, gradients and optimizer state of the unit where they are largest.
        resident_bytes: what always stays on the device: buffers, and parameters that cannot be streamed.
        activation_bytes: most bytes of activations and temporaries at any moment of a step.
        streamed_bytes: weights, gradients and optimizer state of all units.
        overhead_bytes: what the device itself takes (a CUDA context).
        forecast: bytes and seconds by budget; None in plans of an older version.
        frozen_bytes: of each unit, the weights that are not trained.
    """

    unit_bytes: tuple[int, ...]
    largest_unit_bytes: int
    resident_bytes: int
    activation_bytes: int
    streamed_bytes: int
    overhead_bytes: int = 0
    forecast: Forecast | None = None
    frozen_bytes: tuple[int, ...] = ()

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.unit_bytes)

    @property
    def model_bytes(self) -> int:
        """Weights and buffers of the whole model."""
        return sum(self.unit_bytes) + self.resident_bytes

    @property
    def _always_bytes(self) -> int:
        return self.overhead_bytes + self.resident_bytes + self.activation_bytes

    @property
    def floor_bytes(self) -> int:
        """The smallest budget that a job is given.

        Where bytes are counted one by one, the smallest workable one and a little for what a job does beside the
        probe's step (its batch, its losses). On a GPU, whose allocator needs some room of its own, the largest unit
        with all that belongs to it, beside what always stays.
        """
        counted = self._always_bytes + self.largest_unit_bytes
        if self.forecast is None:
            return counted
        needed = self.forecast.floor_bytes
        return max(counted, needed) if self.overhead_bytes else needed + needed // _SPARE

    @property
    def whole_bytes(self) -> int:
        """The budget from which on nothing is ever evicted."""
        return self._always_bytes + self.streamed_bytes

    @property
    def host_bytes(self) -> int:
        """Host RAM of the master copies, once gradients and optimizer state have theirs, and of what waits there."""
        rows = () if self.forecast is None else self.forecast.rows
        return max(self.streamed_bytes, *(row.host_bytes for row in rows), 0) + self.resident_bytes

    @property
    def disk_host_bytes(self) -> int:
        """The same where the master copies are in a file."""
        rows = () if self.forecast is None else self.forecast.rows
        beside = max((row.host_bytes - row.copies_bytes for row in rows), default=0)
        return beside + self.resident_bytes + STAGING_BYTES

    def k(self, budget_bytes: int) -> int:
        """Units whose weights a budget can hold at once (0 below the floor)."""
        room, count = budget_bytes - self._always_bytes, 0
        for size in sorted(self.unit_bytes):
            room -= size
            if room < 0:
                break
            count += 1
        return count if budget_bytes >= self.floor_bytes else 0

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the fields, and the derived figures that people look at."""
        return {
            **asdict(self),
            "forecast": self.forecast.to_dict() if self.forecast is not None else None,
            "units": self.units,
            "model_bytes": self.model_bytes,
            "floor_bytes": self.floor_bytes,
            "whole_bytes": self.whole_bytes,
            "host_bytes": self.host_bytes,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Plan:
        """The plan that `to_dict` wrote; unknown keys of a newer version are left out."""
        fields = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        forecast = fields.get("forecast")
        return cls(
            **{
                **fields,
                "unit_bytes": tuple(fields["unit_bytes"]),
                "frozen_bytes": tuple(fields.get("frozen_bytes", ())),
                "forecast": Forecast.from_dict(forecast) if forecast else None,
            }
        )

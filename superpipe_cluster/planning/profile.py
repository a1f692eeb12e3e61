"""The plan of a job: its program recorded, its bytes counted, its seconds forecast.

Owns the way from a trace to a `Plan`; the units come from the same partition as in the run, and what lives when from
the runtime itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from superpipe_cluster.planning.forecast import Forecast
from superpipe_cluster.planning.machine_profile import CPU, MachineProfile, assumed_gpu
from superpipe_cluster.planning.measuring import host_profile, machine_profile, time_operators
from superpipe_cluster.planning.plan import Plan, PlannedDevice
from superpipe_cluster.planning.planner import Planner
from superpipe_cluster.planning.trace import Compute, NewSlab, Pass, Trace
from superpipe_cluster.streaming.budget import Terms
from superpipe_cluster.streaming.devices.cuda_device import CONTEXT_BYTES
from superpipe_cluster.streaming.slab import Slab

#: A person waits for it.
_TIMING_S = 6.0


def plan_of(trace: Trace, *, cuda: bool, forecast: Forecast | None = None) -> Plan:
    """The bytes of `trace`, beside the forecast that was made of it."""
    weights = [_weights_bytes(trace, unit) for unit in range(len(trace.units))]
    together = list(weights)
    for one in (*trace.first, *trace.steady):
        for event in one.events:
            if isinstance(event, NewSlab):
                together[event.unit] += event.nbytes
    return Plan(
        unit_bytes=tuple(
            sum(one.size.numel() * one.dtype.itemsize for one in unit.parameters) for unit in trace.units
        ),
        largest_unit_bytes=max(together, default=0),
        resident_bytes=trace.resident_bytes,
        activation_bytes=max((_highest(step) for step in (trace.first, trace.steady)), default=0),
        streamed_bytes=sum(together),
        overhead_bytes=CONTEXT_BYTES if cuda else 0,
        forecast=forecast,
        frozen_bytes=tuple(_weights_bytes(trace, unit, frozen=True) for unit in range(len(trace.units))),
    )


def forecast_on(trace: Trace, device: PlannedDevice, terms: Terms, also: Sequence[int] = ()) -> Forecast:
    """The forecast of `trace` on `device`; a GPU that is hidden and was never measured is taken for a middling one."""
    if device.capacity_bytes is not None:
        also = [*also, device.capacity_bytes]
    if device.gpu is None:
        place = torch.device("cpu")
    elif torch.cuda.is_available():
        place = torch.device("cuda", 0)
    else:
        known = MachineProfile.load(device.gpu) or assumed_gpu(device.gpu)
        return Planner(trace, known, terms=terms, host=host_profile(trace)).forecast(also=also)
    known = machine_profile(place)
    if time_operators(trace, known, place, limit_s=_TIMING_S):
        known.save()
    declared = device.link_bytes_per_s if known.device == CPU else None
    host = host_profile(trace) if known.device != CPU else None
    return Planner(trace, known, link_bytes_per_s=declared, terms=terms, host=host).forecast(also=also)


def _weights_bytes(trace: Trace, unit: int, *, frozen: bool = False) -> int:
    """Bytes of a slab of the unit's weights, or of those that are not trained."""
    meta = torch.device("meta")
    tensors = {
        one.name: torch.empty_strided(one.size, one.stride, dtype=one.dtype, device=meta)
        for one in trace.units[unit].parameters
        if not (frozen and one.trainable)
    }
    return Slab(0, "weights", tensors, meta).nbytes


def _highest(step: tuple[Pass, ...]) -> int:
    """Most bytes of everything that is on no slab, at any moment of a step."""
    now = highest = 0
    for one in step:
        for event in one.events:
            if isinstance(event, Compute):
                highest = max(highest, now + event.highest_bytes)
                now += event.net_bytes
    return highest

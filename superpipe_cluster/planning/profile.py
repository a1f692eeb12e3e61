"""Counts the bytes of a model and of one step of it, with tensors that have no memory.

Owns the measurement. The model is built under `FakeTensorMode`, so that kernels are chosen as for the real device and
shapes and lifetimes are real, while no weight is ever allocated; units come from the same partition as in the run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from superpipe_cluster.planning.plan import Plan, Probe
from superpipe_cluster.streaming.cuda_device import CONTEXT_BYTES
from superpipe_cluster.streaming.live import LiveTensors
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.units import Unit, partition


class _PeakBytes(TorchDispatchMode):
    """The most bytes of operator results that are alive at once; views of the model's own tensors are none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._live = LiveTensors(self._charge, not_counted=own)

    def _charge(self, nbytes: int) -> None:
        self.now += nbytes
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._live.settle()
        result = func(*args, **(kwargs or {}))
        self._live.see(result)
        return result


def profile(make_probe: Callable[[], Probe], *, cuda: bool = False) -> Plan:
    """The plan of the model that `make_probe` builds.

    Args:
        make_probe: builds the model and its step; called under fake tensors.
        cuda: whether the device is a CUDA GPU, which has a context of its own.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        probe = make_probe()
        parts = partition(probe.model)
        activations = _peak_of_step(probe)
    meta = torch.device("meta")
    state = _state_of(probe, parts.units)
    largest = streamed = 0
    for unit in parts.units:
        weights = Slab(0, "weights", dict(unit.parameters), meta).nbytes
        trainable = {name: p for name, p in unit.parameters.items() if p.requires_grad}
        gradients = Slab(0, "gradients", dict(trainable), meta).nbytes if probe.optimizer else 0
        together = weights + gradients + state[unit.name]
        largest, streamed = max(largest, together), streamed + together
    return Plan(
        unit_bytes=tuple(unit.nbytes for unit in parts.units),
        largest_unit_bytes=largest,
        resident_bytes=sum(tensor.nbytes for tensor in parts.resident.values()),
        activation_bytes=activations,
        streamed_bytes=streamed,
        overhead_bytes=CONTEXT_BYTES if cuda else 0,
    )


def _peak_of_step(probe: Probe) -> int:
    """Peak of everything but weights and finished gradients, which leave for their slab as soon as they are there."""

    def leave(parameter: torch.Tensor) -> None:
        parameter.grad = None

    hooks = [p.register_post_accumulate_grad_hook(leave) for p in probe.model.parameters() if p.requires_grad]
    with _PeakBytes(probe.model) as live:
        probe.step()
    for hook in hooks:
        hook.remove()
    return live.peak


def _state_of(probe: Probe, units: list[Unit]) -> dict[str, int]:
    """Bytes of optimizer state by unit, from one step on shapes alone."""
    if probe.optimizer is None:
        return {unit.name: 0 for unit in units}
    shadows: dict[str, list[torch.Tensor]] = {}
    for unit in units:
        shadows[unit.name] = []
        for parameter in unit.parameters.values():
            if parameter.requires_grad:
                shadow = nn.Parameter(
                    torch.empty_strided(
                        parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta"
                    )
                )
                shadow.grad = torch.empty_like(shadow)
                shadows[unit.name].append(shadow)
    everything = [shadow for group in shadows.values() for shadow in group]
    if not everything:
        return {unit.name: 0 for unit in units}
    optimizer = probe.optimizer(everything)
    optimizer.step()
    return {
        name: sum(
            value.nbytes
            for shadow in group
            for value in optimizer.state.get(shadow, {}).values()
            if isinstance(value, torch.Tensor) and value.numel() > 1
        )
        for name, group in shadows.items()
    }

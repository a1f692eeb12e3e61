"""Updates on the host: weights, gradients and optimizer state meet in host memory, and threads compute there.

Owns the threads and what they work on. The host copy of a unit's weights is the master anyway, so nothing of the state
ever crosses the link: per step, gradients leave the device, which they do as backward goes on, and new weights come.

[Note: while the program goes on] `step()` hands the units to threads and returns. Each waits for its own gradients,
and the next forward waits for a unit when it needs it, so updates overlap with the copies of other gradients and with
the forward of the units updated before. A slab whose host copy is being worked on says so (`Slab.host_work`); whoever
wants to read or write that copy waits for it. Nothing is updated before `step()` is called: until then clipping, a
scaler or another backward may still change any gradient.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from superpipe_cluster.errors import BadInput, Unstreamable
from superpipe_cluster.streaming.device import Copy
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.guard import GUARD
from superpipe_cluster.streaming.slab import Slab

#: Torch's own threads share the work of one large tensor; more units at once help as long as tensors are small.
_MOST_THREADS = 4

Where = Literal["on_device", "on_host"]
Member = tuple[dict[str, Any], nn.Parameter]  # a parameter with its group


@dataclass
class _Work:
    """One parameter in host memory.

    Attributes:
        group: its options.
        weight: its host copy.
        gradient: likewise.
        state: the optimizer's entries for it.
        master: the higher-precision weight that is stepped instead, if there is one.
    """

    group: dict[str, Any]
    weight: torch.Tensor
    gradient: torch.Tensor
    state: dict[str, Any]
    master: torch.Tensor | None


class HostSteps:
    """The threads of one optimizer.

    Args:
        engine: residency of the model's slabs.
        make: makes a plain optimizer from parameter groups.
    """

    def __init__(self, engine: Engine, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]) -> None:
        self._engine = engine
        self._make = make
        self._optimizers: dict[int, torch.optim.Optimizer] = {}  # of each unit: threads must not share one
        threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="spcluster-step")
        self._under_way: list[Future[None]] = []

    def takes(self, parameter: nn.Parameter) -> bool:
        """Whether the update of `parameter` can be computed here: its weight has a host copy."""
        unit = self._engine.unit_of.get(parameter)
        return unit is not None and self._engine.weights[unit].has(parameter)

    def weight(self, parameter: nn.Parameter) -> torch.Tensor:
        """The host copy of `parameter`, up to date."""
        slab = self._engine.weights[self._engine.unit_of[parameter]]
        self._engine.before_host_use(slab, to_write=False)
        return slab.on_host(parameter.data)

    def start(
        self,
        units: dict[int, list[Member]],
        state: Mapping[Any, dict[str, Any]],
        masters: dict[nn.Parameter, torch.Tensor],
    ) -> None:
        """Start updating `units`, each on its own.

        Args:
            units: of each unit, the parameters to update; all of them `takes()` takes.
            state: the optimizer's; entries of new parameters are filled in by the threads.
            masters: likewise; on the host.
        """
        self.finish()
        engine = self._engine
        weights = [engine.weights[unit] for unit in units]
        used = {unit: self._gradient_slabs(members) for unit, members in units.items()}
        engine.start_storing([slab for slabs in used.values() for slab in slabs])
        engine.evict(weights)  # stale from now on
        engine.home.finish()
        options: dict[
            int, dict[str, Any]
        ] = {}  # as they are now: a schedule may change them before the threads run
        for members in units.values():
            for group, _ in members:
                options.setdefault(id(group), _snapshot(group))
        for (unit, members), slab in zip(units.items(), weights, strict=True):
            engine.home.before_write(slab)
            work = [
                _Work(options[id(group)], slab.on_host(p.data), self._gradient(p), state[p], masters.get(p))
                for group, p in members
            ]
            copies = [one.storing for one in used[unit] if one.storing is not None]
            future = self._threads.submit(self._step, unit, work, copies)
            self._under_way.append(future)
            for one in (slab, *used[unit]):
                one.host_work = future

    def finish(self) -> None:
        """Return once all updates are done.

        Raises:
            Exception: whatever an update raised.
        """
        under_way, self._under_way = self._under_way, []
        failures = [error for future in under_way if (error := future.exception()) is not None]
        if failures:
            raise failures[0]

    def close(self) -> None:
        """End the threads, once they are done."""
        self._threads.shutdown()

    @staticmethod
    def _gradient_slabs(members: list[Member]) -> list[Slab]:
        places = [GUARD.place_of(p.grad) for _, p in members if p.grad is not None]
        return list(dict.fromkeys(place.slab for place in places if place is not None))

    def _gradient(self, parameter: nn.Parameter) -> torch.Tensor:
        gradient = parameter.grad
        assert gradient is not None
        place = GUARD.place_of(gradient)
        if place is None:  # the program's own, or a sparse one
            return gradient.detach().to("cpu", copy=True)
        place.slab.ensure_host(self._engine.home)
        return place.slab.on_host(gradient.detach())

    def _step(self, unit: int, work: list[_Work], copies: list[Copy]) -> None:
        for copy in copies:
            copy.finish()
        groups: dict[int, dict[str, Any]] = {}
        state: dict[Any, dict[str, Any]] = {}
        with torch.no_grad():
            for one in work:
                target = one.weight if one.master is None else one.master
                twin = nn.Parameter(target)
                twin.grad = one.gradient.to(target.dtype)
                state[twin] = one.state
                groups.setdefault(id(one.group), {**one.group, "params": []})["params"].append(twin)
            optimizer = self._optimizers.get(unit)
            if optimizer is None:
                optimizer = self._optimizers[unit] = self._make(list(groups.values()))
            optimizer.param_groups = list(groups.values())
            optimizer.state.clear()
            optimizer.state.update(state)
            optimizer.step()
            optimizer.state.clear()
            optimizer.param_groups = []
            for one in work:
                if one.master is not None:
                    one.weight.copy_(one.master)


def _snapshot(group: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in group.items() if name != "params"}
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in options.items()
    }


def check_place(
    kind: type[torch.optim.Optimizer], by_units: bool, where: Where, master_weights: torch.dtype | None
) -> None:
    """Refuse a place and a type of master weights that have no meaning, or not for this class of optimizer."""
    if where not in get_args(Where):
        raise BadInput(f"an optimizer cannot be {where!r}", hint=f"use one of {', '.join(get_args(Where))}")
    if master_weights is not None and not master_weights.is_floating_point:
        raise BadInput(f"master weights cannot be {master_weights}", hint="use torch.float32")
    if not by_units and (where == "on_host" or master_weights is not None):
        raise Unstreamable(
            f"{kind.__name__} is no class of torch.optim, so nothing is known of how it treats its parameters",
            hint="leave out where and master_weights, or use a torch.optim class",
        )

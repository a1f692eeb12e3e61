"""Updates on the host: weights, gradients and optimizer state meet in host memory, and threads compute there.

Owns the threads and what they work on. The host copy of a unit's weights is the master anyway, so nothing of the state
ever crosses the link: per step, gradients leave the device, which they do as backward goes on, and new weights come.

[Note: while the program goes on] `step()` hands the units to threads and returns. Each waits for its own gradients,
and the next forward waits for a unit when it needs it, so updates overlap with the copies of other gradients and with
the forward of the units updated before. A slab whose host copy is being worked on says so (`Slab.host_work`); whoever
wants to read or write that copy waits for it. Nothing is updated before `step()` is called, as until then clipping, a
scaler or another backward may still change any gradient, unless the program has said that none of them will: see
`during_backward`.

[Note: what a thread waits for] For the gradients to arrive, and for the last copy of the old weights to the device,
which reads what the thread will overwrite. It has been started before the update is, and perhaps nobody waited for it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from superpipe_cluster.errors import BadInput, Unstreamable
from superpipe_cluster.streaming.devices.device import Copy
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.training.masters import Masters
from superpipe_cluster.streaming.watching.guard import GUARD

#: Torch's own threads share the work of one large tensor; more units at once help as long as tensors are small.
_MOST_THREADS = 4

Where = Literal["on_device", "on_host"]
Member = tuple[dict[str, Any], nn.Parameter]  # a parameter with its group
ByUnit = list[tuple[int | None, list[Member]]]  # what has a gradient; None for what is in no unit


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


def threads() -> int:
    """How many units are updated at once."""
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))


class HostSteps:
    """The threads of one optimizer.

    Args:
        engine: residency of the model's slabs.
        make: makes a plain optimizer from parameter groups.
        state: the optimizer's; entries of new parameters are filled in by the threads.
        masters: likewise; all on the host.
    """

    def __init__(
        self,
        engine: Engine,
        make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        state: defaultdict[Any, dict[str, Any]],
        masters: Masters,
    ) -> None:
        self._engine = engine
        self._make = make
        self._state = state
        self._masters = masters
        self._optimizers: dict[int, torch.optim.Optimizer] = {}  # of each unit: threads must not share one
        self._threads: Executor = ThreadPoolExecutor(threads(), thread_name_prefix="spcluster-step")
        self._under_way: list[Future[None]] = []

    def takes(self, parameter: nn.Parameter) -> bool:
        """Whether the update of `parameter` can be computed here: its weight has a host copy."""
        unit = self._engine.unit_of.get(parameter)
        return unit is not None and self._engine.weights[unit].has(parameter)

    def end_step(self, by_unit: ByUnit) -> ByUnit:
        """`step()` is called: start updating what can be updated here, once the updates of the last step are done.

        Returns:
            The rest.

        Raises:
            Exception: whatever an update of the last step raised.
        """
        self.finish()
        return self.start_all(by_unit)

    def start_all(self, by_unit: ByUnit) -> ByUnit:
        """Start updating what can be updated here; returns the rest."""
        units: dict[int, list[Member]] = {}
        rest: list[Member] = []
        for unit, members in by_unit:
            for member in members:
                if unit is None or not self.takes(member[1]):
                    rest.append(member)
                else:
                    units.setdefault(unit, []).append(member)
        self.start(units)
        return [(None, rest)] if rest else []

    def start(self, units: dict[int, list[Member]]) -> None:
        """Start updating `units`, each on its own.

        Args:
            units: of each unit, the parameters to update; all of them `takes()` takes.

        Raises:
            Unstreamable: another optimizer has one of them to itself.
        """
        engine = self._engine
        weights = [engine.weights[unit] for unit in units]
        for slab in weights:
            slab.check_claim()
        used = {unit: self.gradient_slabs(members) for unit, members in units.items()}
        engine.start_storing([slab for slabs in used.values() for slab in slabs])
        engine.evict(weights)  # stale from now on
        options: dict[
            int, dict[str, Any]
        ] = {}  # as they are now: a schedule may change them before the threads run
        for members in units.values():
            for group, _ in members:
                options.setdefault(id(group), snapshot(group))
        for (unit, members), slab in zip(units.items(), weights, strict=True):
            engine.home.before_write(slab)
            work = [self._work(options[id(group)], slab, parameter) for group, parameter in members]
            copies = [one.storing for one in used[unit] if one.storing is not None]
            if slab.last_load is not None:  # [Note: what a thread waits for]
                copies.append(slab.last_load)
            future = self._threads.submit(self._step, unit, work, copies)
            self._under_way.append(future)
            for one in (slab, *used[unit]):
                one.host_work = future
                one.ready = False  # the next operator on it waits for the copy, see `Engine.require`

    def finish(self) -> None:
        """Return once all updates are done.

        Raises:
            Exception: whatever an update raised.
        """
        under_way, self._under_way = self._under_way, []
        failures = [error for future in under_way if (error := future.exception()) is not None]
        if failures:
            raise failures[0]

    def tell_failures(self) -> None:
        """Wait for nothing, and raise what an update raised that is over."""
        over = [future for future in self._under_way if future.done()]
        self._under_way = [future for future in self._under_way if future not in over]
        failures = [error for future in over if (error := future.exception()) is not None]
        if failures:
            raise failures[0]

    def close(self) -> None:
        """End the threads, once they are done."""
        self._threads.shutdown()

    @staticmethod
    def gradient_slabs(members: list[Member]) -> list[Slab]:
        """The slabs that the gradients of `members` are on."""
        places = [GUARD.place_of(p.grad) for _, p in members if p.grad is not None]
        return list(dict.fromkeys(place.slab for place in places if place is not None))

    def _work(self, options: dict[str, Any], slab: Slab, parameter: nn.Parameter) -> _Work:
        weight = slab.on_host(parameter.data)
        master = self._masters.make(parameter, weight) if self._masters.wanted(parameter) else None
        return _Work(options, weight, self._gradient(parameter), self._state[parameter], master)

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


def snapshot(group: dict[str, Any]) -> dict[str, Any]:
    """The options of a parameter group as they are now."""
    options = {name: value for name, value in group.items() if name != "params"}
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in options.items()
    }


def check_place(
    kind: type[torch.optim.Optimizer],
    where: Where,
    master_weights: torch.dtype | None,
    *,
    by_units: bool,
    during_backward: bool,
) -> None:
    """Refuse keywords that have no meaning, or not for this class of optimizer."""
    if where not in get_args(Where):
        raise BadInput(f"an optimizer cannot be {where!r}", hint=f"use one of {', '.join(get_args(Where))}")
    if during_backward and where != "on_host":
        raise BadInput(
            f"an optimizer that is {where!r} cannot update during backward",
            hint='use where="on_host" as well',
        )
    if master_weights is not None and not master_weights.is_floating_point:
        raise BadInput(f"master weights cannot be {master_weights}", hint="use torch.float32")
    if not by_units and (where == "on_host" or master_weights is not None):
        raise Unstreamable(
            f"{kind.__name__} is no class of torch.optim, so nothing is known of how it treats its parameters",
            hint="leave out where and master_weights, or use a torch.optim class",
        )

"""Runs a trace on a clock: the real engine and policies, under any budget, in seconds that are only counted.

Owns the replay of events and the search for the smallest workable budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory
from superpipe_cluster.planning.activations import ReplayedOffload
from superpipe_cluster.planning.host_clock import HostClock
from superpipe_cluster.planning.trace import (
    Begin,
    Compute,
    Event,
    Fetch,
    FetchBefore,
    Forgotten,
    Gone,
    HostDone,
    HostStep,
    HostUse,
    Leave,
    Meaning,
    NewSlab,
    Pass,
    Require,
    Saved,
    Store,
    Trace,
    Wrote,
)
from superpipe_cluster.streaming.budget import Terms, window_of
from superpipe_cluster.streaming.devices.clock_device import ClockDevice, LinkSpeed
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.policies import make_policy
from superpipe_cluster.streaming.slab import Slab
from superpipe_cluster.streaming.units import Partition, Unit

#: `optimal` looks further ahead with every late step, and residents wander from step to step: time to settle, and steps
#: to take the mean of.
_WARM_UP, _STEPS = 6, 4


@dataclass(frozen=True)
class Replayed:
    """A run that did not happen.

    Attributes:
        k: most units that the budget can hold.
        k_prime: units per batch.
        peak_bytes: most device bytes in use at any moment, first step included.
        host_bytes: host memory of the master copies, and of what waits there beside them.
        copies_bytes: of this, the master copies.
        link_bytes: bytes over the link, both directions, in a step.
        loads: times that a unit's weights were brought, in a step.
        step_s: seconds of a step.
        stall_s: seconds of these in which the computation waited for a copy.
        compute_s: seconds of these in which it did not.
    """

    k: int
    k_prime: int
    peak_bytes: int
    host_bytes: int
    copies_bytes: int
    link_bytes: float
    loads: float
    step_s: float
    stall_s: float
    compute_s: float


@dataclass(frozen=True)
class Conditions:
    """What a trace is replayed under.

    Attributes:
        seconds: of each signature of the trace, by number, with all that goes with running it.
        link: of the device.
        batches_in_flight: see `Device`.
        overhead_bytes: see `Device`.
        terms: what is asked for beside bytes.
        host_seconds: likewise where the host computes it; None for `seconds`.
        access_s: of the program, each time that it asks for slabs that are not ready.
    """

    seconds: Sequence[float]
    link: LinkSpeed
    batches_in_flight: int = 1
    overhead_bytes: int = 0
    terms: Terms = field(default_factory=Terms)
    host_seconds: Sequence[float] | None = None
    access_s: float = 0.0


class Replay:
    """One engine on one clock, ready for the steps of a trace.

    Raises:
        BudgetTooSmall: as `stream` would.
    """

    def __init__(self, trace: Trace, conditions: Conditions, budget_bytes: int | None) -> None:
        self._conditions = conditions
        self.device = ClockDevice(
            conditions.link,
            budget_bytes,
            batches_in_flight=conditions.batches_in_flight,
            overhead_bytes=conditions.overhead_bytes,
        )
        units = [
            Unit(
                one.name, {p.name: _parameter(p.size, p.stride, p.dtype, p.trainable) for p in one.parameters}
            )
            for one in trace.units
        ]
        resident = torch.empty(trace.resident_bytes, dtype=torch.uint8, device="meta")
        parts = Partition(units, {"": resident})
        terms = conditions.terms
        self.k, self.k_prime = window_of(parts, conditions.overhead_bytes, budget_bytes, terms)
        policy = make_policy(
            terms.policy, k=self.k, k_prime=self.k_prime, in_flight=conditions.batches_in_flight
        )
        self.engine = Engine(self.device, policy, max_units=terms.k)
        self.device.charge(trace.resident_bytes)
        self.engine.take_over(units)
        self._kept: dict[int, torch.Tensor] = {}
        self._host = HostClock(self.device)
        self._offload: ReplayedOffload | None = None
        self._host_state_bytes = trace.host_state_bytes

    @property
    def host_bytes(self) -> int:
        """Most host memory that was taken at once, as far as it follows from the program."""
        activations = 0 if self._offload is None else self._offload.most_bytes
        return self.engine.host_bytes + self._host_state_bytes + activations

    def run(self, passes: Sequence[Pass]) -> None:
        """One step.

        Raises:
            BudgetTooSmall: slabs that are read together do not fit.
            DeviceOutOfMemory: the program's other tensors do not fit.
        """
        for one in passes:
            for _ in range(one.times):
                for event in one.events:
                    self._happen(event)

    def _happen(self, event: Event) -> None:
        engine = self.engine
        match event:
            case Compute():
                if event.reads:
                    self._bring([engine.slabs[number] for number in event.reads])
                    for number in event.writes:
                        engine.wrote(engine.slabs[number])
                seconds = self._conditions.seconds
                self.device.compute(sum(seconds[number] * count for number, count in event.work.items()))
                before = 0
                for level in event.rises or [max(0, event.highest_bytes)]:
                    engine.charge(level - before)
                    before = level
                if event.net_bytes != event.highest_bytes:
                    engine.charge(event.net_bytes - max(0, event.highest_bytes))
            case Require(slabs):
                self._require([engine.slabs[number] for number in slabs])
            case Wrote(slab):
                engine.wrote(engine.slabs[slab])
            case NewSlab():
                like = torch.empty(event.nbytes, dtype=torch.uint8, device="meta")
                made = engine.add_slab(event.unit, event.part, {"": like})
                if event.with_host:
                    made.ensure_host(engine.home)
            case Meaning(slab, kept):
                if kept:
                    self._kept[slab] = engine.slabs[slab].flat.detach()
                else:
                    del self._kept[slab]
            case HostUse(slab, writes):
                if writes:
                    engine.wrote_host(engine.slabs[slab])
                else:
                    engine.before_host_use(engine.slabs[slab], to_write=False)
            case Begin():
                engine.begin_step()
            case Store(slabs):
                engine.start_storing([engine.slabs[number] for number in slabs])
            case Leave(slabs):
                engine.evict([engine.slabs[number] for number in slabs])
            case HostStep(weights, gradients, work):
                seconds = self._conditions.host_seconds or self._conditions.seconds
                slabs = [engine.slabs[number] for number in (weights, *gradients)]
                self._host.update(slabs, sum(seconds[number] * count for number, count in work.items()))
            case HostDone():
                self._host.finish()
            case _:
                self._activation(event)

    def _activation(self, event: Saved | Gone | Fetch | FetchBefore | Forgotten) -> None:
        if self._offload is None:
            self._offload = ReplayedOffload(self.engine, self.device)
        match event:
            case Saved(number, nbytes):
                self._offload.saved(number, nbytes)
            case Gone(number):
                self._offload.gone(number)
            case Fetch(number):
                self._offload.fetch(number)
            case FetchBefore(number):
                self._offload.fetch_before(number)
            case Forgotten(number):
                self._offload.forgotten(number)

    def _bring(self, slabs: list[Slab]) -> None:
        """As the guard does before an operator."""
        engine = self.engine
        awaited = engine.waits_for
        if all(slab.ready for slab in slabs) and (awaited is None or not awaited.done()):
            engine.operands = slabs
        else:
            self._require(slabs)

    def _require(self, slabs: list[Slab]) -> None:
        self.device.compute(self._conditions.access_s)
        self.engine.require(slabs)


def _parameter(
    size: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, trainable: bool
) -> nn.Parameter:
    return nn.Parameter(
        torch.empty_strided(size, stride, dtype=dtype, device="meta"), requires_grad=trainable
    )


def replay(trace: Trace, conditions: Conditions, budget_bytes: int | None) -> Replayed:
    """What a run in `budget_bytes` comes to.

    Raises:
        BudgetTooSmall: the budget cannot hold what is read together.
        DeviceOutOfMemory: it cannot hold the program's other tensors.
    """
    run = Replay(trace, conditions, budget_bytes)
    device, engine = run.device, run.engine
    run.run(trace.first)
    for _ in range(_WARM_UP):
        run.run(trace.steady)
    began = (device.now_s, device.stall_s, device.h2d_bytes + device.d2h_bytes, engine.loads)
    for _ in range(_STEPS):
        run.run(trace.steady)
    ended = (device.now_s, device.stall_s, device.h2d_bytes + device.d2h_bytes, engine.loads)
    step_s, stall_s, link_bytes, loads = ((b - a) / _STEPS for a, b in zip(began, ended, strict=True))
    return Replayed(
        k=run.k,
        k_prime=run.k_prime,
        peak_bytes=device.peak_bytes(),
        host_bytes=run.host_bytes,
        copies_bytes=engine.host_bytes,
        link_bytes=link_bytes,
        loads=loads,
        step_s=step_s,
        stall_s=stall_s,
        compute_s=step_s - stall_s,
    )


def floor_bytes(trace: Trace, conditions: Conditions) -> int:
    """The smallest budget in which the trace runs: every operator with its slabs and all else that lives then.

    Raises:
        BudgetTooSmall: one operator reads more units than the conditions' `k`.
    """
    needed = _least_bytes(trace, conditions)
    while True:
        try:
            run = Replay(trace, conditions, needed)
            for passes in (trace.first, trace.steady, trace.steady):
                run.run(passes)
            return needed
        except BudgetTooSmall as error:
            if not error.needed_bytes:
                raise  # too few units, and no number of bytes would help
            needed = error.needed_bytes if error.needed_bytes > needed else needed + _GRAIN_BYTES
        except DeviceOutOfMemory:
            needed += _GRAIN_BYTES


_GRAIN_BYTES = 1 << 16


def _least_bytes(trace: Trace, conditions: Conditions) -> int:
    """The most that is needed at once at any event, if everything else leaves."""
    run = Replay(trace, conditions, None)
    run.run(trace.first)
    sizes = run.engine.window.sizes
    others = least = conditions.overhead_bytes + trace.resident_bytes
    operands = 0
    for one in (*trace.first, *trace.steady):
        for event in one.events:
            match event:
                case Require(slabs):
                    operands = sum(sizes[number] for number in slabs)
                case Compute():
                    if event.reads:
                        operands = sum(sizes[number] for number in event.reads)
                    least = max(least, others + operands + max(0, event.highest_bytes))
                    others += event.net_bytes
                case _:
                    pass
            least = max(least, others + operands)
    return least

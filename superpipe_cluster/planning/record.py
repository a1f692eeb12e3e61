"""Records a trace: the streaming runtime itself runs the program, with tensors that have no memory.

Owns the recording. The model is streamed for real (`stream_over`), under `FakeTensorMode`, over a clock device without
a limit, so that units, gradients and optimizer state come and go as in a run; what reaches the engine is written down.
"""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from superpipe_cluster.planning.activations import RecordedOffload
from superpipe_cluster.planning.plan import Probe
from superpipe_cluster.planning.trace import (
    Begin,
    Compute,
    Event,
    Gone,
    HostDone,
    HostStep,
    HostUse,
    Leave,
    Meaning,
    NewSlab,
    Parameter,
    Pass,
    Require,
    Store,
    Trace,
    TracedUnit,
    Wrote,
)
from superpipe_cluster.planning.work import Signatures
from superpipe_cluster.streaming.devices.clock_device import ClockDevice
from superpipe_cluster.streaming.engine import Engine
from superpipe_cluster.streaming.homes.contents import Contents
from superpipe_cluster.streaming.opening import stream_over
from superpipe_cluster.streaming.slab import Part, Slab
from superpipe_cluster.streaming.streamer import Activations, Streamer
from superpipe_cluster.streaming.training.host_steps import Where
from superpipe_cluster.streaming.training.optimizer import StreamedOptimizer
from superpipe_cluster.streaming.units import Unit
from superpipe_cluster.streaming.watching.guard import GUARD
from superpipe_cluster.streaming.watching.operators import Traits, traits_of


def record(
    make_probe: Callable[[], Probe], *, activations: Activations = "keep", where: Where = "on_device"
) -> Trace:
    """The trace of the program that `make_probe` builds.

    Args:
        make_probe: builds the model and its step; called under fake tensors, as are the steps themselves.
        activations: as in `stream`.
        where: as in `Streamer.optimizer`.

    Raises:
        SpclusterError: the program cannot be streamed.
    """
    if hasattr(nn.functional, "grouped_mm"):
        torch.library.register_fake("aten::_grouped_mm", _grouped_mm, allow_override=True)
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # Copying a module (as transformer encoders do when they are built) looks for memory where there is none.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        probe = make_probe()
        # On the CPU, because that is where autograd and the guard count bytes without a GPU.
        clock = ClockDevice(torch_device="cpu")
        kept: Activations = "keep" if activations == "offload" else activations
        streamer = stream_over(probe.model, clock, activations=kept, engine_type=RecordingEngine)
        engine = streamer._engine
        assert isinstance(engine, RecordingEngine)
        if activations == "offload":
            resident = streamer._parts.resident.values()
            engine.offload = streamer._hangings.offload = RecordedOffload(engine, engine, resident, mode)
        try:
            return _record(probe, streamer, engine, where)
        finally:
            streamer.close()


def _grouped_mm(
    one: torch.Tensor,
    other: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The product of a mixture's experts, without memory: torch describes it for bfloat16, and computes it for all."""
    size = (one.size(-2), other.size(-1))
    if one.dim() == other.dim():  # groups of rows by groups of columns, or matrix by matrix
        size = (one.size(0) if offs is None else offs.size(0), *size)
    return one.new_empty(size, dtype=out_dtype)


def _record(probe: Probe, streamer: Streamer, engine: RecordingEngine, where: Where) -> Trace:
    optimizer = streamed_optimizer(probe, streamer, where)
    host = None if optimizer is None else optimizer._host
    if host is not None:
        host._threads.shutdown()
        host._threads = HostRecorder(engine)
    steps: list[tuple[Pass, ...]] = []
    resident_bytes = engine.device.used_bytes()
    units = tuple(_traced(unit) for unit in engine.units)
    with _Operators(engine):
        for _ in range(2):  # the first one makes what the second one finds
            passes: list[Pass] = []
            # The second micro-batch adds to the first one's gradients, and all later ones are like it.
            for times in (1, probe.accumulate - 1):
                if times:
                    probe.step()
                    passes.append(Pass(engine.take_events(), times))
            if optimizer is not None:
                if probe.before_update is not None:
                    probe.before_update()
                if host is not None:
                    engine.note(HostDone())  # what a step begins with
                optimizer.step()
                optimizer.zero_grad()
                passes.append(Pass(engine.take_events()))
            steps.append(tuple(passes))
    return Trace(
        units=units,
        resident_bytes=resident_bytes,
        first=steps[0],
        steady=steps[1],
        signatures=engine.signatures,
        trains=optimizer is not None,
        host_state_bytes=0 if optimizer is None else optimizer.host_bytes,
        counted_as=probe.steps,
    )


def streamed_optimizer(
    probe: Probe, streamer: Streamer, where: Where = "on_device"
) -> StreamedOptimizer | None:
    """The optimizer that `probe` declares, over the units of `streamer`; None if it trains nothing."""
    trainable: list[torch.Tensor] = [p for p in probe.model.parameters() if p.requires_grad]
    if probe.optimizer is None or not trainable:
        return None
    plain = probe.optimizer(trainable)
    # The groups hold all of its options.
    return streamer.optimizer(
        type(plain), plain.param_groups, where=where, master_weights=probe.master_weights
    )


def _traced(unit: Unit) -> TracedUnit:
    return TracedUnit(
        unit.name,
        tuple(
            Parameter(name, p.size(), p.stride(), p.dtype, p.requires_grad)
            for name, p in unit.parameters.items()
        ),
    )


class RecordingEngine(Engine):
    """An engine that writes down what is asked of it; see [Note: events] in `trace`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.units: list[Unit] = []
        self.signatures = Signatures()
        #: Whether an operator of the program is running: what the guard asks for on its behalf is part of it.
        self.in_operator = False
        self._in_own_work = False
        #: What autograd saves, where it does not stay on the device.
        self.offload: RecordedOffload | None = None
        self.gone: deque[int] = deque()
        self._events: list[Event] = []
        self._kept: dict[int, bool] = {}  # gradient slab -> whether the program keeps tensors of it

    def take_events(self) -> list[Event]:
        """What has happened since this was called last."""
        GUARD.settle(self)
        if self.offload is not None:
            self.offload.tidy()
        self._look_at_gradients()
        events, self._events = self._events, []
        return events

    def note(self, event: Event) -> None:
        """Write `event` down."""
        self._look_at_gradients()
        self._events.append(event)

    def note_work(self, signature: int) -> None:
        """Write down that an operator runs now."""
        self._compute().work[signature] += 1

    def _compute(self) -> Compute:
        last = self._events[-1] if self._events else None
        if not isinstance(last, Compute):
            last = Compute()
            self._events.append(last)
        return last

    @contextmanager
    def _own_work(self) -> Iterator[None]:
        """What is asked of the engine meanwhile is asked by itself, and so will be in a replay."""
        before, self._in_own_work = self._in_own_work, True
        try:
            yield
        finally:
            self._in_own_work = before

    def _look_at_gradients(self) -> None:
        for number, kept in self._kept.items():
            now = self.slabs[number].outside_holders() > 0
            if now != kept:
                self._kept[number] = now
                self._events.append(Meaning(number, now))

    # ---- what is asked of it --------------------------------------------------------------------------

    @override
    def take_over(self, units: Iterable[Unit], contents: Contents | None = None) -> None:
        self.units = list(units)
        super().take_over(self.units, contents)

    @override
    def add_slab(self, unit: int, part: Part, tensors: Mapping[Any, torch.Tensor]) -> Slab:
        slab = super().add_slab(unit, part, tensors)
        self.note(NewSlab(unit, part, slab.nbytes, with_host=part != "gradients"))
        if part == "gradients":
            self._kept[slab.number] = False
        return slab

    @override
    def begin_step(self) -> None:
        self.note(Begin())
        super().begin_step()

    @override
    def require(self, slabs: Sequence[Slab]) -> None:
        if not self.in_operator:
            self.note(Require(tuple(dict.fromkeys(slab.number for slab in slabs))))
        super().require(slabs)

    @override
    def start_storing(self, slabs: Iterable[Slab]) -> None:
        slabs = list(slabs)
        if not self._in_own_work:
            self.note(Store(tuple(slab.number for slab in slabs)))
        super().start_storing(slabs)

    @override
    def evict(self, slabs: Iterable[Slab]) -> None:
        slabs = list(slabs)
        self.note(Leave(tuple(slab.number for slab in slabs)))
        with self._own_work():
            super().evict(slabs)

    @override
    def wrote(self, slab: Slab) -> None:
        self.note(Wrote(slab.number))
        super().wrote(slab)

    @override
    def take_gradient(self, parameter: nn.Parameter) -> None:
        noted = len(
            self._events
        )  # the gradient itself must not be looked at: who holds it decides what becomes of it
        super().take_gradient(parameter)
        if any(isinstance(event, Wrote) for event in self._events[noted:]):
            copy = (parameter, parameter)
            self.note_work(self.signatures.number_of(torch.ops.aten.copy_.default, copy, {}, parameter))

    @override
    def charge(self, nbytes: int) -> None:
        self._compute().charge(nbytes)
        super().charge(nbytes)
        while nbytes < 0 and self.gone:
            self.note(Gone(self.gone.popleft()))

    @override
    def before_host_use(self, slab: Slab, *, to_write: bool) -> None:
        self.note(HostUse(slab.number, writes=False))
        with self._own_work():
            super().before_host_use(slab, to_write=to_write)

    @override
    def wrote_host(self, slab: Slab) -> None:
        self.note(HostUse(slab.number, writes=True))
        super().wrote_host(slab)


class HostRecorder(Executor):
    """Stands where the threads of an optimizer on the host do: updates at once, and writes down what they compute."""

    def __init__(self, engine: RecordingEngine) -> None:
        self._engine = engine

    @override
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        engine, unit = self._engine, args[0]
        gradients = tuple(
            slab.number for slab in engine.gradients.get(unit, ()) if slab.outside_holders() > 0
        )
        with _HostOperators(engine.signatures) as seen:
            fn(*args, **kwargs)
        engine.note(HostStep(engine.weights[unit].number, gradients, seen.work))
        done: Future[Any] = Future()
        done.set_result(None)
        return done


class _HostOperators(TorchDispatchMode):
    """Counts operators."""

    def __init__(self, signatures: Signatures) -> None:
        super().__init__()
        self.work: Counter[int] = Counter()
        self._signatures = signatures

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(func, OpOverload) and not traits_of(func).passes:
            self.work[self._signatures.number_of(func, args, kwargs or {}, result)] += 1
        return result


class _Operators(TorchDispatchMode):
    """Stands above the guard and writes down every operator that the program runs."""

    def __init__(self, engine: RecordingEngine) -> None:
        super().__init__()
        self._engine = engine
        self._traits: dict[OpOverload, Traits] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        engine = self._engine
        if not isinstance(func, OpOverload):  # the guard refuses it
            return func(*args, **kwargs)
        traits = self._traits.get(func)
        if traits is None:
            traits = self._traits[func] = traits_of(func)
        if traits.passes:
            return func(*args, **kwargs)
        reads = self._slabs_in([args, list(kwargs.values())])
        GUARD.settle(engine)  # what has died by now makes room for what is read now
        if reads:
            writes = self._slabs_in(_written(traits, args, kwargs))
            for part in _parts(reads) if traits.over_lists else [reads]:
                engine.note(
                    Compute(
                        tuple(slab.number for slab in part),
                        tuple(slab.number for slab in part if slab in writes),
                    )
                )
        engine.in_operator = True
        try:
            result = func(*args, **kwargs)
        finally:
            engine.in_operator = False
        engine.note_work(engine.signatures.number_of(func, args, kwargs, result))
        return result

    def _slabs_in(self, values: Any) -> dict[Slab, None]:
        found: dict[Slab, None] = {}
        for value in values:
            if isinstance(value, torch.Tensor):
                place = GUARD.place_of(value)
                if place is not None and place.engine is self._engine and not place.on_host:
                    found[place.slab] = None
            elif isinstance(value, (list, tuple)):
                found.update(self._slabs_in(value))
        return found


def _written(traits: Traits, args: Any, kwargs: Any) -> list[Any]:
    return [
        kwargs.get(where) if isinstance(where, str) else args[where]
        for where in traits.writes
        if isinstance(where, str) or where < len(args)
    ]


def _parts(slabs: Iterable[Slab]) -> list[list[Slab]]:
    """The slabs unit by unit: so does the guard run an operator over lists."""
    parts: dict[int, list[Slab]] = {}
    for slab in slabs:
        parts.setdefault(slab.unit, []).append(slab)
    return list(parts.values())

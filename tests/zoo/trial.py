"""One specimen's trial: does it compute the same bits streamed as plain, with as little memory as it can live with?

Owns the program that is run (three AdamW steps, then two forward passes), the comparison, and the search for the
smallest workable budget. It does not know where specimens come from. Results of the plain run are kept and the
streamed runs are compared with them in place, so that comparing takes no device memory.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy
import torch
from torch import nn

from superpipe_cluster.errors import BudgetTooSmall, DeviceOutOfMemory, Unstreamable
from superpipe_cluster.streaming import StreamStats, stream

Status = Literal["exact", "resident", "refused", "irreproducible", "unfit", "failed"]

STEPS = 3
#: The search for the smallest budget stops when it is known to this share of the way to the whole.
_SEARCH_SHARE = 1 / 8


@dataclass(frozen=True)
class Specimen:
    """A tiny model with random weights, and its inputs.

    Attributes:
        library: the library that it comes from.
        name: its family within that library.
        build: makes it.
        inputs: positional and keyword arguments of its forward, from the model and a seed.
        train: whether it is trained; else it is asked only.
    """

    library: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module, int], tuple[tuple[Any, ...], dict[str, Any]]]
    train: bool = True


@dataclass
class Row:
    """What the trial of one specimen has shown.

    Attributes:
        status: `exact` (streamed and equal), `resident` (equal, but it cannot do with less than all of itself),
            `refused` (with a reason), `irreproducible` (two plain runs differ: no statement can be made), `unfit` (does
            not run plain as built here: no statement either), `failed` (different, or an error of the runtime).
        reason: why, if not exact.
        units: units it was split into.
        k_smallest: fewest units on the device with which it runs: the most that one operator reads together.
        smallest_bytes: smallest workable budget of the run.
        half_bytes: the budget half way between it and the whole.
        whole_bytes: peak of the run with everything on the device.
        loads: loads with `k_smallest` units on the device.
    """

    library: str
    name: str
    version: str
    status: Status
    reason: str = ""
    units: int = 0
    k_smallest: int = 0
    model_bytes: int = 0
    smallest_bytes: int = 0
    half_bytes: int = 0
    whole_bytes: int = 0
    loads: int = 0
    duration_s: float = 0.0


def try_out(specimen: Specimen, version: str) -> Row:
    """Run `specimen` plain twice, then streamed: whole, at the smallest budget and at half of the model."""
    began = time.perf_counter()
    row = Row(specimen.library, specimen.name, version, "exact")
    try:
        _fill(row, specimen)
    except Unstreamable as refusal:
        row.status, row.reason = "refused", _one_line(f"{refusal.message} ({refusal.hint})")
    except _Unfit as error:
        row.status, row.reason = "unfit", _one_line(error)
    except _Irreproducible as error:
        row.status, row.reason = "irreproducible", _one_line(error)
    except Exception as error:
        row.status = "failed"
        row.reason = _one_line(f"{type(error).__name__}: {error} at {_where(error)}")
    row.duration_s = round(time.perf_counter() - began, 2)
    return row


def _fill(row: Row, specimen: Specimen) -> None:
    original, results = _plain(specimen)

    def run(**memory: int | None) -> StreamStats:
        with stream(_twin(specimen, original), poison=True, **memory) as streamer:
            _program(streamer.model, specimen, streamer.optimizer, _Compare(results))
            stats = streamer.stats()
        for limit, peak in ((memory.get("budget"), stats.peak_bytes), (memory.get("k"), stats.peak_units)):
            assert limit is None or peak <= limit, f"a peak of {peak}, though {memory} was asked for"
        compare = _Compare(results, start="closed")
        for name, value in _weights(streamer.model):
            compare(f"closed {name}", value)
        return stats

    whole = run()
    row.units, row.model_bytes, row.whole_bytes = whole.units, whole.model_bytes, whole.peak_bytes
    row.k_smallest, few = _fewest(run, whole.units)
    row.loads = few.loads
    # Not less than `stream` itself asks for, nor than what the peak of the whole run has beside weights, gradients and
    # the two tensors of state per weight (and some alignment).
    least_bytes = max(_least(specimen, original), whole.peak_bytes - 5 * whole.model_bytes)
    enough_bytes = max(whole.peak_bytes, least_bytes)
    row.smallest_bytes, small = _smallest(run, enough_bytes, least_bytes)
    row.half_bytes = (row.smallest_bytes + enough_bytes) // 2
    run(budget=row.half_bytes)
    if max(few.loads, small.loads) <= whole.loads:
        row.status, row.reason = "resident", f"{row.k_smallest} of {row.units} units are read together"


def _plain(specimen: Specimen) -> tuple[nn.Module, list[tuple[str, torch.Tensor | None]]]:
    """The untouched model, and what the program computes with a copy of it."""
    try:
        original = _seeded(specimen.build)
        results = _Keep()
        _plain_run(_twin(specimen, original), specimen, results)
    except Exception as error:
        raise _Unfit(f"{type(error).__name__}: {error} at {_where(error)}") from error
    for name, value in results.values:
        if name.startswith("loss") and value is not None and not value.isfinite().all():
            raise _Unfit(f"{name} is not finite, so NaN in it would mean nothing")
    if specimen.train and not any(
        name.startswith("gradient") and value is not None and value.abs().sum() > 0
        for name, value in results.values
    ):
        raise _Unfit("no parameter gets a gradient")
    try:
        _plain_run(_twin(specimen, original), specimen, _Compare(results.values))
    except AssertionError as error:
        raise _Irreproducible(f"two plain runs differ: {error}") from error
    return original, results.values


def _plain_run(model: nn.Module, specimen: Specimen, sink: _Sink) -> None:
    def optimizer(kind: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
        return kind([p for p in model.parameters() if p.requires_grad], **options)

    _program(model, specimen, optimizer, sink)
    for name, value in _weights(model):
        sink(f"closed {name}", value)


# ---- the program ----------------------------------------------------------------------------------------


def _program(
    model: nn.Module,
    specimen: Specimen,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    sink: _Sink,
) -> None:
    if specimen.train:
        model.train()
        optimizer = make_optimizer(torch.optim.AdamW, lr=1e-3)
        for step in range(STEPS):
            _seed(step)
            outputs = list(_tensors(_ask(model, specimen, step)))
            for name, value in outputs:
                sink(f"output {step}{name}", value)
            loss = _loss(value for _, value in outputs)
            sink(f"loss {step}", loss)
            del outputs
            loss.backward()
            for name, parameter in model.named_parameters():
                sink(f"gradient {step} {name}", parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
            for name, parameter in model.named_parameters():
                sink(f"weight {step} {name}", parameter)
    model.eval()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            _seed(STEPS)
            for name, value in _tensors(_ask(model, specimen, STEPS)):
                sink(f"{mode.__name__}{name}", value)


def _ask(model: nn.Module, specimen: Specimen, seed: int) -> Any:
    args, kwargs = specimen.inputs(model, seed)
    return model(*args, **kwargs)


def _loss(outputs: Iterator[torch.Tensor]) -> torch.Tensor:
    """Distance to a fixed pattern. (A mean of squares would have no gradient behind a normalisation.)"""
    total = torch.zeros(())
    for value in outputs:
        if not value.requires_grad:
            continue
        real = torch.view_as_real(value) if value.is_complex() else value
        pattern = torch.arange(real.numel(), dtype=torch.float32).sin_().view(real.shape)
        total = total + (real.float() - pattern).square().mean()
    return total


def _tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a nest of outputs, with its place."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _tensors(one, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for at, one in enumerate(value):
            yield from _tensors(one, f"{path}[{at}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name), f"{path}.{field.name}")


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    _seed(0)
    return build()


def _twin(specimen: Specimen, original: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(original)
    except RuntimeError:  # it holds tensors that are no leaves
        return _seeded(specimen.build)


# ---- comparing ------------------------------------------------------------------------------------------

_Sink = Callable[[str, torch.Tensor | None], None]


class _Keep:
    def __init__(self) -> None:
        self.values: list[tuple[str, torch.Tensor | None]] = []

    def __call__(self, name: str, value: torch.Tensor | None) -> None:
        self.values.append((name, None if value is None else value.detach().clone()))


class _Compare:
    """Expects what was kept, in the same order; every bit counts, NaN and the sign of zero too."""

    def __init__(self, expected: list[tuple[str, torch.Tensor | None]], start: str = "") -> None:
        self._expected = (one for one in expected if one[0].startswith(start))

    def __call__(self, name: str, value: torch.Tensor | None) -> None:
        expected_name, expected = next(self._expected, ("nothing", None))
        assert name == expected_name, f"{name} where {expected_name} was expected"
        assert (value is None) == (expected is None), f"{name}: one of the two is None"
        if value is not None and expected is not None:
            value = value.detach()
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype), (
                f"{name}: another shape or type"
            )
            assert _same_bits(value, expected), f"{name} differs"


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout is not torch.strided:
        return torch.equal(one.to_dense(), other.to_dense())
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if one.is_quantized:
        one, other = one.int_repr(), other.int_repr()
    bits = _BITS[one.element_size()]
    return torch.equal(one.view(bits), other.view(bits))


# ---- how little will do ---------------------------------------------------------------------------------


def _fewest(run: Callable[..., StreamStats], units: int) -> tuple[int, StreamStats]:
    """The fewest units with which it runs, and that run."""
    for k in range(1, units):
        try:
            return k, run(k=k)
        except BudgetTooSmall:
            pass  # one operator reads more units together
    return units, run(k=max(1, units))


def _least(specimen: Specimen, original: nn.Module) -> int:
    """Bytes below which `stream` says at once that it cannot run."""
    try:
        stream(_twin(specimen, original), 1, poison=True).close()
    except BudgetTooSmall as error:
        return error.needed_bytes
    return 1


def _smallest(run: Callable[..., StreamStats], enough: int, least_bytes: int) -> tuple[int, StreamStats]:
    """The smallest budget with which it runs, about, and that run."""
    too_small, near = least_bytes - 1, max(1024.0, (enough - least_bytes) * _SEARCH_SHARE)
    best: StreamStats | None = None
    while enough - too_small > near:
        budget = (too_small + enough) // 2
        try:
            best = run(budget=budget)
            enough = budget
        except BudgetTooSmall as error:
            too_small = min(max(budget, error.needed_bytes - 1), enough)
        except DeviceOutOfMemory:
            too_small = budget
    return enough, best or run(budget=enough)


class _Unfit(Exception):
    pass


class _Irreproducible(Exception):
    pass


def _one_line(error: object) -> str:
    line = " ".join(str(error).split())
    return line if len(line) < 400 else line[:400] + "…"


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames[:-4:-1])

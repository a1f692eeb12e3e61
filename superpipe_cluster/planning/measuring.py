"""Measures a device: its link, memory and arithmetic, single operators, and what running any operator costs beside.

Owns the stopwatch. Every measurement is bounded in time and memory, works on random data and takes the median.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any, TypedDict

import torch
from torch import nn

from superpipe_cluster.planning.machine_profile import MachineProfile, dtype_name, name_of
from superpipe_cluster.planning.plan import Probe
from superpipe_cluster.planning.record import record
from superpipe_cluster.planning.trace import Trace
from superpipe_cluster.planning.work import Signature, TensorShape
from superpipe_cluster.streaming.devices.cuda_device import CudaDevice
from superpipe_cluster.streaming.devices.device import Copy, Device
from superpipe_cluster.streaming.devices.virtual_device import CpuDevice, VirtualDevice
from superpipe_cluster.streaming.opening import stream
from superpipe_cluster.streaming.slab import Slab

_TINY_BYTES = 1 << 12
#: In RAM, of the size of a small model's unit: larger pieces come fresh from the system each time, page by page.
_COPY_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
_MEMORY_BYTES = 64 << 20
_CACHES_BYTES = 32 << 20
_MATRIX = {"cpu": 256, "cuda": 4096}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REPETITIONS = 7
#: Time for one signature and for all of a program, and the most memory for the tensors of one.
_ONE_S, _ALL_S, _MOST_BYTES = 0.06, 20.0, 1 << 30
#: Large operators are what the roofline knows best, and timing them takes longest.
_LONGEST_S = 0.3
_FEWEST, _MOST = 3, 25
#: A machine that others share is faster in one second than in the next: every operator is timed in several rounds.
_ROUNDS = 3
_PACED_BYTES, _PACE_BYTES_PER_S = 1 << 20, 1e9
_TIGHT = 2  # units on the device


def machine_profile(device: torch.device, folder: Path | None = None) -> MachineProfile:
    """The kept profile of `device`, or one measured now and kept; that takes a few seconds."""
    kept = MachineProfile.load(name_of(device), folder)
    if kept is None:
        kept = measure_machine(device)
        kept.save(folder)
    return kept


def host_profile(trace: Trace, folder: Path | None = None) -> MachineProfile | None:
    """The processor's profile, if `trace` updates on the host."""
    return machine_profile(torch.device("cpu"), folder) if trace.host_work else None


def measure_machine(device: torch.device) -> MachineProfile:
    """Measure `device`; takes a few seconds."""
    clock = _clock(device)
    here, there = (torch.ones(_MEMORY_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    within_s = _seconds(lambda: there.copy_(here), clock)
    flops: dict[str, float] = {}
    for dtype in _DTYPES:
        edge = _MATRIX[device.type]
        matrix = torch.ones(edge, edge, dtype=dtype, device=device)
        flops[dtype_name(dtype)] = 2 * edge**3 / _seconds(lambda matrix=matrix: matrix @ matrix, clock)
    profile = MachineProfile(
        device=name_of(device),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        memory_bytes_per_s=2 * _MEMORY_BYTES / within_s,
        flops_per_s=flops,
        context_bytes=_context_bytes(device),
        **_link_of(device),
    )
    profile.operator_s, profile.access_s = _beside_s(profile, device)
    return profile


class _Link(TypedDict):
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float
    copy_latency_s: float
    copy_start_s: float
    free_s_per_byte: float


def _link_of(device: torch.device) -> _Link:
    """The link as the runtime uses it: its own devices, fresh device memory for every load."""
    opened: Device = (
        CudaDevice(device, None) if device.type == "cuda" else CpuDevice(VirtualDevice(), budget_bytes=None)
    )
    rows: dict[int, list[tuple[float, float, float, float]]] = {}
    large = _COPY_BYTES[device.type]
    for nbytes in (_TINY_BYTES, large):
        flat = torch.empty(nbytes, dtype=torch.uint8, device=device)
        flat.untyped_storage().resize_(0)
        host = opened.host_buffer(nbytes)
        host.fill_(1)
        opened.register(host)
        for _ in range(_REPETITIONS):
            moments = [time.perf_counter()]
            opened.allocate(flat, nbytes)
            load = opened.load(flat, host)
            moments.append(time.perf_counter())
            load.finish()
            moments.append(time.perf_counter())
            opened.store(host, flat).finish()
            moments.append(time.perf_counter())
            opened.free(flat)
            moments.append(time.perf_counter())
            rows.setdefault(nbytes, []).append(
                (
                    moments[1] - moments[0],
                    moments[2] - moments[1],
                    moments[3] - moments[2],
                    moments[4] - moments[3],
                )
            )
        opened.unregister(host)
    opened.close()
    start_s, latency_s, _, _ = map(median, zip(*rows[_TINY_BYTES], strict=True))
    _, load_s, store_s, free_s = map(median, zip(*rows[large], strict=True))
    if device.type == "cpu":
        latency_s = _paced_latency_s()
    return _Link(
        h2d_bytes_per_s=large / load_s,
        d2h_bytes_per_s=large / store_s,
        copy_latency_s=latency_s,
        copy_start_s=start_s,
        free_s_per_byte=free_s / large,
    )


def _paced_latency_s() -> float:
    """What a virtual link of declared speed takes beyond that: a turn of its thread, and a sleep that ends late."""
    opened = CpuDevice(VirtualDevice(link_bytes_per_s=_PACE_BYTES_PER_S), budget_bytes=None)
    flat, host = (torch.ones(_PACED_BYTES, dtype=torch.uint8) for _ in range(2))
    beyond: list[float] = []
    for _ in range(_REPETITIONS):
        began = time.perf_counter()
        opened.load(flat, host).finish()
        beyond.append(time.perf_counter() - began - _PACED_BYTES / _PACE_BYTES_PER_S)
    opened.close()
    return max(0.0, median(beyond))


def _context_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    # Of what is taken on the device, the part that is not this process's tensors: exact if the device is ours alone.
    return max(0, total - free - torch.cuda.memory_reserved(device))


def _seconds(run: Callable[[], object], clock: Callable[[], float], repetitions: int = _REPETITIONS) -> float:
    run()
    taken: list[float] = []
    for _ in range(repetitions):
        began = clock()
        run()
        taken.append(clock() - began)
    # The lower quartile: what others on this machine add is not the device's.
    return quantiles(taken, n=4)[0]


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type != "cuda":
        return (
            time.thread_time
        )  # of this thread, which computes in every operator: others' turns do not count

    def when_idle() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return when_idle


def time_operators(
    trace: Trace,
    profile: MachineProfile,
    device: torch.device,
    *,
    limit_s: float = _ALL_S,
    cold: bool = True,
) -> int:
    """Time the operators of `trace` that `profile` does not know on `device`, the ones that matter most first.

    Args:
        trace: whose operators.
        profile: gets their seconds; not saved. One that is assumed stays as it is.
        device: to run them on.
        limit_s: after this, what is left stays with the roofline.
        cold: whether others have used the caches in between, as in a large program. Of what products read, the weights
            come from far away then; other operators read what has just been made as often as not.

    Returns:
        How many were timed.
    """
    if profile.assumed:
        return 0  # what this machine does has no place among figures of another
    began = time.perf_counter()
    work = trace.work + (trace.host_work if device.type == "cpu" else Counter())
    weight = {number: count * profile.alone_s(trace.signatures.all[number]) for number, count in work.items()}
    heaviest_first = sorted(weight, key=weight.__getitem__, reverse=True)
    unknown = [number for number in heaviest_first if _can_be_timed(trace.signatures.all[number], profile)]
    taken: dict[int, dict[bool, list[float]]] = {}
    for _ in range(_ROUNDS):
        for number in unknown:
            if time.perf_counter() - began > limit_s:
                break
            flops = trace.signatures.all[number].flops
            caches = [False] if not cold else [True] if flops else [False, True]
            try:
                with torch.no_grad():
                    run = trace.signatures.call(number, lambda shape: _tensor(shape, device))
                    rounds = taken.setdefault(number, {between: [] for between in caches})
                    for between in caches:
                        rounds[between] += _times(run, device, cold=between)
            except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
                taken.pop(number, None)  # its values matter, and random ones will not do
    for number, rounds in taken.items():
        profile.operators[trace.signatures.all[number].key] = fmean(map(median, rounds.values()))
    return len(taken)


def _can_be_timed(signature: Signature, profile: MachineProfile) -> bool:
    if signature.key in profile.operators:
        return False
    return signature.nbytes <= _MOST_BYTES and profile.alone_s(signature) <= _LONGEST_S


def _times(run: Callable[[], Any], device: torch.device, *, cold: bool) -> list[float]:
    clock = _clock(device)
    others = torch.empty(_CACHES_BYTES if cold else 0, dtype=torch.uint8, device=device)
    run()
    taken: list[float] = []
    start_s = clock()
    while len(taken) < _FEWEST or (len(taken) < _MOST and clock() - start_s < _ONE_S / _ROUNDS):
        others.fill_(0)
        began = clock()
        run()
        taken.append(clock() - began)
    return taken


def _tensor(shape: TensorShape, device: torch.device) -> torch.Tensor:
    made = torch.empty_strided(shape.size, shape.stride, dtype=shape.dtype, device=device)
    if not shape.dtype.is_floating_point:
        return made.zero_()  # as an index it is valid, whatever it points into
    own = made.as_strided((_extent(shape),), (1,))
    own.uniform_(0.5, 1.0) if shape.dtype.itemsize >= 2 else own.zero_()
    return made


def _extent(shape: TensorShape) -> int:
    if 0 in shape.size:
        return 0
    return 1 + sum((extent - 1) * step for extent, step in zip(shape.size, shape.stride, strict=True))


class _Small(nn.Module):
    """Operators that take no time, so that what they cost is what running them costs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)) for _ in range(8)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def _beside_s(profile: MachineProfile, device: torch.device) -> tuple[float, float]:
    """What an operator of a training step costs beside its own time (Python, autograd, the guard), and an access."""

    def step_of(model: nn.Module, place: torch.device) -> None:
        model(torch.ones(4, 32, device=place)).square().mean().backward()

    def probe() -> Probe:
        model = _Small()
        return Probe(model, lambda: step_of(model, torch.device("cpu")), lambda own: torch.optim.AdamW(own))

    trace = record(probe)
    # Nothing else has used the caches here.
    warm = replace(profile, operators={})
    time_operators(trace, warm, device, cold=False)

    def streamed(k: int | None) -> tuple[float, int, int]:
        # With a budget, so that the guard keeps watching.
        place = VirtualDevice() if device.type == "cpu" else device
        with stream(model := _Small(), "1GiB", place, k=k) as streamer:
            optimizer = streamer.optimizer(torch.optim.AdamW)
            asked = copies = 0
            engine = streamer._engine
            require, load, store = engine.require, engine.home.load, engine.home.store

            def counted(slabs: Sequence[Slab]) -> None:
                nonlocal asked
                asked += 1
                require(slabs)

            def copied(copy: Callable[[Slab], Copy], slab: Slab) -> Copy:
                nonlocal copies
                copies += 1
                return copy(slab)

            engine.require = counted
            engine.home.load, engine.home.store = partial(copied, load), partial(copied, store)

            def step() -> None:
                nonlocal asked, copies
                asked = copies = 0
                step_of(model, streamer.device)
                optimizer.step()
                optimizer.zero_grad()

            for _ in range(_REPETITIONS):
                step()
            return _seconds(step, _clock(device), _MOST), asked, copies

    whole_s, _, _ = streamed(None)
    tight_s, asked, copies = streamed(_TIGHT)
    alone_s = sum(count * warm.alone_s(trace.signatures.all[number]) for number, count in trace.work.items())
    beside_s = whole_s - alone_s if device.type == "cpu" else whole_s
    access_s = (tight_s - whole_s - copies * profile.copy_start_s) / asked
    return max(0.0, beside_s) / trace.operators, max(0.0, access_s)

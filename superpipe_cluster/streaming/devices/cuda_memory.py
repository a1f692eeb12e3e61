"""What this process may take of a GPU: the bytes of its CUDA context, and the allocator's cap over all its budgets.

Owns both numbers; it allocates nothing. One `GpuMemory` per GPU, for the caching allocator is one per GPU too: two
models streamed in one process have two budgets and one cap, the sum.

[Note: context] The context, and the code of kernels that CUDA loads when they are first used, are outside the
allocator. The context is measured where that is possible without taking a neighbour's memory for one's own; the kernels
are allowed for, since they come later.

[Note: expandable segments] The cap counts what the allocator reserved, not what it gave out. With segments of fixed
size, an activation that sits in the middle of one keeps the whole from serving the next unit; the allocator then gives
segments back to the driver and waits for the GPU each time. Segments that grow have one hole less per size, so they are
asked for where nothing is reserved yet and nobody has configured the allocator.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import cuda

#: What plans take off a budget for the CUDA context of a machine that has not been measured (0.3 to 0.7 GiB is usual).
CONTEXT_BYTES = 768 << 20
#: Code of kernels that comes after the context has been measured: cuBLAS, cuDNN, torch's own.
_KERNELS_BYTES = 192 << 20
#: Less than this is no context: the measurement missed it.
_LEAST_CONTEXT_BYTES = 64 << 20
_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True)
class Context:
    """Bytes of a GPU that the allocator does not see.

    Attributes:
        nbytes: for the context and for kernels that are still to be loaded.
        source: how that is known, or why it had to be assumed.
    """

    nbytes: int
    source: str


class Budgeted(Protocol):
    """Who takes part in the cap."""

    @property
    def budget_bytes(self) -> int | None:
        """Device bytes of everything, None for no limit."""
        ...


class GpuMemory:
    """One GPU's memory, as this process may use it.

    Attributes:
        context: what the allocator does not see.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._budgeted: list[Budgeted] = []
        self.context = _open_context(index)
        self._total = max(cuda.get_device_properties(index).total_memory, cuda.mem_get_info(index)[1])

    def join(self, one: Budgeted) -> None:
        """Count the budget of `one`; the cap is in force when this returns."""
        self._budgeted.append(one)
        if one.budget_bytes is not None and self.reserved_bytes() == 0:
            _ask_for_expandable_segments()
        self.set_cap()

    def leave(self, one: Budgeted) -> None:
        """Count the budget of `one` no longer."""
        if one in self._budgeted:
            self._budgeted.remove(one)
            self.set_cap()

    def set_cap(self) -> None:
        """Cap the allocator at the sum of the budgets, less the context; at nothing where one has no budget."""
        cap, limited = -self.context.nbytes, bool(self._budgeted)
        for one in self._budgeted:
            if one.budget_bytes is None:
                limited = False
            else:
                cap += one.budget_bytes
        fraction = min(1.0, max(0, cap) / self._total) if limited else 1.0
        cuda.set_per_process_memory_fraction(fraction, self._index)

    def allocated_bytes(self) -> int:
        """Bytes of live tensors, of the whole process."""
        return self._statistic("allocated_bytes", "current")

    def reserved_bytes(self) -> int:
        """Bytes that the allocator has taken from the driver."""
        return self._statistic("reserved_bytes", "current")

    def peak_allocated_bytes(self) -> int:
        """Most bytes of live tensors."""
        return self._statistic("allocated_bytes", "peak")

    def _statistic(self, what: str, which: str) -> int:
        # `memory_allocated` and its like build and sort a flat list of all statistics: 0.1 ms, many times per step.
        statistics: dict[str, Any] = cuda.memory_stats_as_nested_dict(self._index)
        return statistics[what]["all"][which] if statistics else 0


_GPUS: dict[int, GpuMemory] = {}


def gpu_memory(index: int) -> GpuMemory:
    """The memory of GPU `index`; its context exists from now on."""
    if index not in _GPUS:
        _GPUS[index] = GpuMemory(index)
    return _GPUS[index]


def _ask_for_expandable_segments() -> None:
    if any(name in os.environ for name in _ALLOCATOR_SETTINGS) or cuda.get_allocator_backend() != "native":
        return
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if change is None:
        change = cuda.memory._set_allocator_settings  # its name before torch 2.9
    change("expandable_segments:True")


# ---- the context ----------------------------------------------------------------------------------


def _open_context(index: int) -> Context:
    """Make the context of GPU `index` if there is none yet, and say what it takes."""
    existed = cuda.is_initialized()
    before = {} if existed else _used_by_uuid()
    free, total = cuda.mem_get_info(index)  # makes the context
    after = {} if existed else _used_by_uuid()
    grew = _growth(before, after, str(cuda.get_device_properties(index).uuid))
    if grew is not None and grew >= _LEAST_CONTEXT_BYTES:
        return Context(grew + _KERNELS_BYTES, "measured: the driver's count before and after it was made")
    reserved = cuda.memory_stats_as_nested_dict(index)
    own = reserved["reserved_bytes"]["all"]["current"] if reserved else 0
    outside = total - free - own
    if _LEAST_CONTEXT_BYTES <= outside <= CONTEXT_BYTES - _KERNELS_BYTES:
        return Context(
            outside + _KERNELS_BYTES, "measured: all that is used outside this process's allocator"
        )
    reason = "CUDA was in use before streaming began" if existed else "the driver's library does not count it"
    return Context(CONTEXT_BYTES, f"assumed: {reason}, and others use the GPU too")


def _growth(before: dict[str, int], after: dict[str, int], uuid: str) -> int | None:
    """Bytes by which the GPU with this identity became fuller; None if it was not counted."""
    for name, used in after.items():
        if name.endswith(uuid) and name in before:
            return used - before[name]
    return None


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _used_by_uuid() -> dict[str, int]:
    """Bytes in use on each GPU by its identity, from NVML: the only way to ask that makes no context. Empty without."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    if nvml.nvmlInit_v2() != 0:
        return {}
    used: dict[str, int] = {}
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for number in range(count.value):
            handle, uuid, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), _Memory()
            if (
                nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)) == 0
                and nvml.nvmlDeviceGetUUID(handle, uuid, 96) == 0
                and nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
            ):
                used[uuid.value.decode()] = memory.used
    finally:
        nvml.nvmlShutdown()
    return used

"""The GPUs, as the NVIDIA driver's management library tells.

Owns every call of NVML. A machine without driver or library has no GPUs, and that is no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: Usable bytes per second and lane, by PCIe generation: the line rate less encoding and about a tenth of
#: protocol. A first figure until the link has been measured.
_LANE_BYTES_PER_S = {1: 225e6, 2: 450e6, 3: 885e6, 4: 1.77e9, 5: 3.5e9, 6: 6.8e9}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `usable_bytes` is its memory less what the driver keeps; the link speed is its PCIe slot's."""

    uuid: str
    index: int
    name: str
    usable_bytes: int
    link_bytes_per_s: int


@contextmanager
def _session() -> Iterator[Any | None]:
    """NVML, initialised; None where it cannot be."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, or the two do not match: all mean "no GPU here"
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def gpus() -> list[Gpu]:
    """The GPUs of this machine, in PCI bus order."""
    with _session() as nvml:
        if nvml is None:
            return []
        found: list[Gpu] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append(
                Gpu(
                    uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
                    index=index,
                    name=_text(nvml.nvmlDeviceGetName(handle)),
                    usable_bytes=_usable_bytes(nvml, handle),
                    link_bytes_per_s=_link_bytes_per_s(nvml, handle),
                )
            )
        return found


def used_bytes(uuid: str) -> int | None:
    """Bytes in use on a GPU by anybody; None when it cannot be read."""
    with _session() as nvml:
        if nvml is None:
            return None
        try:
            return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used)
        except nvml.NVMLError:
            return None


@dataclass(frozen=True, slots=True)
class Memory:
    """Who holds what of a GPU: bytes for all (`usable_bytes`), in use by anybody, and by each process that is named."""

    usable_bytes: int
    used_bytes: int
    by_process: Mapping[int, int]


def memory(uuid: str) -> Memory | None:
    """The memory of a GPU as it is used now; None when it cannot be read."""
    with _session() as nvml:
        if nvml is None:
            return None
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            entries = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            usable_bytes = _usable_bytes(nvml, handle)
            used_bytes = usable_bytes - int(nvml.nvmlDeviceGetMemoryInfo(handle).free)
        except nvml.NVMLError:
            return None
        by_process = {int(entry.pid): int(entry.usedGpuMemory or 0) for entry in entries}
        return Memory(usable_bytes, max(0, used_bytes), by_process)


def processes_on(uuid: str) -> frozenset[int]:
    """Pids that hold memory of a GPU.

    Empty when it cannot be read. Inside a container the driver may tell pids of the host's numbering, or
    none: then a pid of ours is never among them and the process table alone decides whether it has gone.
    """
    with _session() as nvml:
        if nvml is None:
            return frozenset()
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            return frozenset(int(entry.pid) for entry in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        except nvml.NVMLError:
            return frozenset()


def _usable_bytes(nvml: Any, handle: Any) -> int:
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        return int(info.total - info.reserved)
    except (nvml.NVMLError, AttributeError, TypeError):  # drivers before 510 know only the first version
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)


def _link_bytes_per_s(nvml: Any, handle: Any) -> int:
    try:
        generation = int(nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle))
        width = int(nvml.nvmlDeviceGetMaxPcieLinkWidth(handle))
    except nvml.NVMLError:  # virtual GPUs have no slot
        generation, width = 3, 16
    return int(_LANE_BYTES_PER_S.get(generation, _LANE_BYTES_PER_S[6]) * max(width, 1))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

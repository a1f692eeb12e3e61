"""The memory of the host, as much of it as this process may use.

Owns reading /proc and the cgroup limits. A container's limit is what counts there: the kernel kills at the
limit, and /proc/meminfo still tells of the whole machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: cgroup v1 writes "no limit" as the largest multiple of a page below 2^63.
_V1_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of RAM that may ever be used, and that are free or can be freed now."""

    total_bytes: int
    available_bytes: int


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> HostMemory:
    """The tightest of the machine's own memory and every cgroup limit above this process (v1 and v2).

    Args:
        proc: where procfs is.
        cgroup: where the cgroup file systems are mounted.
    """
    meminfo = _table(proc / "meminfo")
    total = meminfo.get("MemTotal", 0)
    available = meminfo.get("MemAvailable", meminfo.get("MemFree", 0))
    for limit, used in _limits(proc, cgroup):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return HostMemory(total_bytes=total, available_bytes=available)


def _limits(proc: Path, cgroup: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of every group this process is in, from the inside out."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, files = cgroup, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroup / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # The path is as the host sees it; inside a container the own group is often mounted as the root
        # itself, so what is not there is skipped and the root is always looked at.
        group = PurePosixPath(path)
        for inside in (group, *group.parents):
            yield from _limit(root / str(inside).lstrip("/"), *files)


def _limit(directory: Path, limit_file: str, usage_file: str, droppable: str) -> Iterator[tuple[int, int]]:
    try:
        limit = (directory / limit_file).read_text().strip()
        usage = int((directory / usage_file).read_text())
    except (OSError, ValueError):
        return
    if limit == "max" or int(limit) >= _V1_UNLIMITED_BYTES:
        return
    page_cache = _table(directory / "memory.stat", scale=1).get(droppable, 0)
    yield int(limit), usage - min(usage, page_cache)


def _table(path: Path, scale: int = 1024) -> dict[str, int]:
    """A file of `name: 123 kB` or `name 123` lines, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.replace(":", " ").split() for line in lines)
    return {pair[0]: int(pair[1]) * scale for pair in pairs if len(pair) > 1 and pair[1].isdigit()}

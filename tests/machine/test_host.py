from __future__ import annotations

from pathlib import Path

import pytest

from superpipe_cluster.machine import host_memory

GIB = 2**30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    root = tmp_path / "proc"
    (root / "self").mkdir(parents=True)
    (root / "meminfo").write_text(f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {48 * GIB // 1024} kB\n")
    (root / "self" / "cgroup").write_text("0::/\n")
    return root


def v2_group(path: Path, limit: str, used: int, cache: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_without_limits_the_machine_counts(proc: Path, tmp_path: Path) -> None:
    memory = host_memory(proc, tmp_path / "nothing")
    assert (memory.total_bytes, memory.available_bytes) == (64 * GIB, 48 * GIB)


def test_the_tightest_cgroup_on_the_way_up_counts_and_page_cache_is_free(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    (proc / "self" / "cgroup").write_text("0::/lab/job\n")
    v2_group(cgroup / "lab", str(16 * GIB), used=6 * GIB, cache=2 * GIB)
    v2_group(cgroup / "lab" / "job", "max", used=1 * GIB, cache=0)
    memory = host_memory(proc, cgroup)
    assert (memory.total_bytes, memory.available_bytes) == (16 * GIB, 12 * GIB)


def test_a_container_sees_its_own_group_as_the_root(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    (proc / "self" / "cgroup").write_text("0::/host/side/path/of/it\n")
    v2_group(cgroup, str(8 * GIB), used=GIB, cache=0)
    assert host_memory(proc, cgroup).total_bytes == 8 * GIB


def test_cgroup_v1_and_its_huge_number_for_no_limit(proc: Path, tmp_path: Path) -> None:
    cgroup = tmp_path / "cgroup"
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/box\n1:name=systemd:/\n")
    for path, limit in ((cgroup / "memory", 2**63 - 4096), (cgroup / "memory" / "box", 4 * GIB)):
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.limit_in_bytes").write_text(str(limit))
        (path / "memory.usage_in_bytes").write_text(str(3 * GIB))
        (path / "memory.stat").write_text(f"total_inactive_file {GIB}\n")
    memory = host_memory(proc, cgroup)
    assert (memory.total_bytes, memory.available_bytes) == (4 * GIB, 2 * GIB)


def test_this_machine_has_memory() -> None:
    memory = host_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes

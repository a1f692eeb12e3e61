"""A processor of round figures, for tests that plan and do not mind how fast this machine is."""

from __future__ import annotations

import torch

from superpipe_cluster.head.home import Home
from superpipe_cluster.planning.machine_profile import MachineProfile


def profile(*, assumed: bool = False) -> MachineProfile:
    return MachineProfile(
        device="cpu", torch=torch.__version__, threads=1, measured_at="", h2d_bytes_per_s=1e10, d2h_bytes_per_s=1e10,
        memory_bytes_per_s=1e10, flops_per_s={"float32": 1e10}, operator_s=1e-5, assumed=assumed,
    )  # fmt: skip


def give_to(home: Home) -> None:
    """Let a cluster take this machine for such a one: it measures nothing then."""
    profile(assumed=True).save(home.root / "profiles")

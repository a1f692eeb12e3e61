"""A processor of round figures, for tests that plan and do not mind how fast this machine is."""

from __future__ import annotations

import torch

from superpipe_cluster.head.home import Home
from superpipe_cluster.planning.machine_profile import MachineProfile


def profile(*, assumed: bool = False, speed: float = 1.0) -> MachineProfile:
    return MachineProfile(
        device="cpu", torch=torch.__version__, threads=1, measured_at="", h2d_bytes_per_s=1e10, d2h_bytes_per_s=1e10,
        memory_bytes_per_s=speed * 1e10, flops_per_s={"float32": speed * 1e10}, operator_s=1e-5 / speed,
        assumed=assumed,
    )  # fmt: skip


def give_to(home: Home, speed: float = 1.0) -> None:
    """Let a cluster take this machine for such a one: it measures nothing then.

    One that computes so many times as fast waits for its link, and has use for every byte.
    """
    profile(assumed=True, speed=speed).save(home.root / "profiles")

"""How fast a device is: measured once, kept in the home directory, read ever after.

Owns the figures, their file, and what they say of an operator. The measurements are in `measuring`.

A virtual device computes with this machine's CPU; its link is declared, so only the speed of RAM limits it further. On
a GPU everything is measured on the GPU. The CPU's figures are per torch version and number of threads: both change
them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from superpipe_cluster.planning.corrections import profiles_folder
from superpipe_cluster.planning.work import Signature
from superpipe_cluster.streaming.devices.clock_device import LinkSpeed
from superpipe_cluster.streaming.devices.cuda_device import CONTEXT_BYTES


@dataclass
class MachineProfile:
    """What was measured of one device.

    Attributes:
        device: its name: of the GPU, or `cpu`.
        torch: version of torch.
        threads: that torch computes with on the CPU.
        measured_at: date and time, UTC.
        h2d_bytes_per_s: host to device, from memory as the runtime uses it.
        d2h_bytes_per_s: device to host.
        memory_bytes_per_s: device memory, read and written.
        flops_per_s: of a large matrix product, by dtype.
        operator_s: what each operator costs beside its own time: Python, autograd, the read guard.
        access_s: what it costs the program to ask for a unit that is not ready: the decision what to move.
        copy_latency_s: from the start of a copy to its arrival, if it had no bytes.
        copy_start_s: what it costs the program to start one.
        free_s_per_byte: what it costs the program to give device memory back.
        context_bytes: what a process takes of the device before its first tensor.
        operators: signature -> seconds, of those that were timed.
        assumed: whether nothing was measured at all.
    """

    device: str
    torch: str
    threads: int
    measured_at: str
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float
    memory_bytes_per_s: float
    flops_per_s: dict[str, float]
    operator_s: float = 0.0
    access_s: float = 0.0
    copy_latency_s: float = 0.0
    copy_start_s: float = 0.0
    free_s_per_byte: float = 0.0
    context_bytes: int = 0
    operators: dict[str, float] = field(default_factory=dict)
    assumed: bool = False

    def link(self, declared_bytes_per_s: float | None = None) -> LinkSpeed:
        """The link, no faster than `declared_bytes_per_s`."""
        declared = float("inf") if declared_bytes_per_s is None else declared_bytes_per_s
        return LinkSpeed(
            min(self.h2d_bytes_per_s, declared),
            min(self.d2h_bytes_per_s, declared),
            self.copy_latency_s,
            self.copy_start_s,
            self.free_s_per_byte,
        )

    def alone_s(self, signature: Signature) -> float:
        """Seconds of an operator by itself: as timed, else by the roofline."""
        timed = self.operators.get(signature.key)
        if timed is not None:
            return timed
        flops_per_s = self.flops_per_s.get(dtype_name(signature.dtype), self.flops_per_s["float32"])
        return max(signature.flops / flops_per_s, signature.nbytes / self.memory_bytes_per_s)

    def running_s(self, signature: Signature) -> float:
        """Seconds of an operator in a program, with all that goes with running it."""
        alone_s = self.alone_s(signature)
        # The CPU does both itself, one after the other; a GPU computes while the host prepares the next.
        return alone_s + self.operator_s if self.device == CPU else max(alone_s, self.operator_s)

    # ---- its file -------------------------------------------------------------------------------------

    def save(self, folder: Path | None = None) -> None:
        """Write it to its file in `folder` (default: `profiles` in the home directory), whole or not at all."""
        path = _path(folder, self.device, self.threads)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        fresh.replace(path)

    @classmethod
    def load(cls, device: str, folder: Path | None = None) -> MachineProfile | None:
        """The profile of the device of this name that was kept, if there is one for this torch and these threads."""
        try:
            path = _path(folder, device, torch.get_num_threads())
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            kept = cls(**stored)
        except (OSError, ValueError, TypeError):  # none yet, or another version's
            return None
        # A GPU's profile is also read where the GPU is hidden (and torch perhaps another build).
        return kept if kept.device != CPU or kept.torch == torch.__version__ else None


#: What a profile calls the processor that virtual devices compute with.
CPU = "cpu"


def name_of(device: torch.device) -> str:
    """What a profile calls `device`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else CPU


def assumed_gpu(name: str) -> MachineProfile:
    """A GPU that nobody has measured yet: of middling speed, on 16 lanes of PCIe 4."""
    return MachineProfile(
        device=name,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        measured_at="",
        h2d_bytes_per_s=22e9,
        d2h_bytes_per_s=22e9,
        memory_bytes_per_s=1.2e12,
        flops_per_s={"float32": 25e12, "bfloat16": 150e12, "float16": 150e12},
        operator_s=25e-6,
        copy_latency_s=15e-6,
        copy_start_s=20e-6,
        context_bytes=CONTEXT_BYTES,
        assumed=True,
    )


def dtype_name(dtype: torch.dtype | None) -> str:
    """`bfloat16`, as in profiles."""
    return str(dtype).removeprefix("torch.")


def _path(folder: Path | None, device: str, threads: int) -> Path:
    name = re.sub("[^a-z0-9]+", "-", device.lower())
    return (folder or profiles_folder()) / (f"{name}-{threads}.json" if device == CPU else f"{name}.json")

"""The devices that jobs are placed on: real GPUs, or declared ones served from RAM.

Owns the description of a device and finding the devices of this machine. Keeps no ledger: what of a device is
given away follows from the job records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from superpipe_cluster.errors import BadInput
from superpipe_cluster.machine import nvml
from superpipe_cluster.machine.host import host_memory
from superpipe_cluster.spec.units import parse_bytes, spell_bytes

#: Link speed of a virtual device that none was declared for: what a PCIe 3.0 x8 slot gives, slow enough that
#: streaming is visible, fast enough that a test does not wait for it.
DEFAULT_VIRTUAL_LINK_BYTES_PER_S = 8_000_000_000
#: The virtual device of a machine without a GPU takes this part of its RAM: the host copies of the models
#: that are streamed to it need the rest.
DEFAULT_VIRTUAL_SHARE = 4

_GRAMMAR_HINT = (
    "write a virtual device as cpu:3GiB@2GB/s (capacity, link speed), a GPU as cuda:0 or by its UUID, a part of a GPU "
    "as cuda:0=12GiB"
)


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or a virtual device.

    Attributes:
        id: name in records and ledgers; the UUID of a GPU (stable over reboots and reorderings), `cpu:N`
            otherwise.
        kind: `cuda` or `virtual`.
        name: for people.
        capacity_bytes: what all jobs on it together may hold.
        link_bytes_per_s: host <-> device, each way.
        index: position among the devices of its kind.
    """

    id: str
    kind: Literal["virtual", "cuda"]
    name: str
    capacity_bytes: int
    link_bytes_per_s: int
    index: int

    def to_json(self) -> dict[str, Any]:
        """The device as plain JSON values; `Device(**that)` gives it back."""
        return asdict(self)


def parse_device(text: str, index: int = 0) -> Device:
    """Read `cpu:3GiB@2GB/s` (capacity, link speed) or `cpu:3GiB`.

    Args:
        text: what the user wrote.
        index: position among the virtual devices, the N of its id `cpu:N`.

    Raises:
        BadInput: not of this form, or a capacity or speed of zero.
    """
    kind, _, rest = text.strip().partition(":")
    capacity, at, speed = rest.partition("@")
    if kind != "cpu" or not capacity or (at and not speed.endswith("/s")):
        raise BadInput(f"not a device: {text!r}", hint=_GRAMMAR_HINT)
    try:
        capacity_bytes = parse_bytes(capacity)
        link = parse_bytes(speed.removesuffix("/s")) if at else DEFAULT_VIRTUAL_LINK_BYTES_PER_S
    except BadInput as error:
        raise BadInput(f"not a device: {text!r}: {error.message}", hint=_GRAMMAR_HINT) from error
    if capacity_bytes <= 0 or link <= 0:
        raise BadInput(f"a device needs a capacity and a link speed above zero: {text!r}", hint=_GRAMMAR_HINT)
    return _virtual(capacity_bytes, link, index)


def discover(explicit: Sequence[str] = ()) -> list[Device]:
    """The devices of this machine.

    Args:
        explicit: what the user asked for, each `cpu:CAPACITY@SPEED`, `cuda:INDEX` or a GPU's UUID, either with
            `=CAPACITY` for a part of it; empty for all GPUs, or, where there is none, one virtual device of a
            quarter of the RAM.

    Raises:
        BadInput: something explicit cannot be read, or names a GPU that is not there.
    """
    if not explicit:
        gpus = _gpus()
        share_bytes = host_memory().total_bytes // DEFAULT_VIRTUAL_SHARE
        return gpus or [_virtual(share_bytes, DEFAULT_VIRTUAL_LINK_BYTES_PER_S, 0)]
    found: list[Device] = []
    for text in explicit:
        if text.startswith("cpu"):
            device = parse_device(text, index=sum(other.kind == "virtual" for other in found))
        else:
            device = _gpu_named(text)
        if any(other.id == device.id for other in found):
            raise BadInput(f"device named twice: {text!r}")
        found.append(device)
    return found


def _part_of(gpu: Device, part: str) -> Device:
    """The GPU with only so much of its memory for the cluster: the rest is somebody else's."""
    try:
        capacity_bytes = parse_bytes(part)
    except BadInput as error:
        raise BadInput(f"not a part of {gpu.name}: {part!r}: {error.message}", hint=_GRAMMAR_HINT) from error
    if not 0 < capacity_bytes <= gpu.capacity_bytes:
        raise BadInput(
            f"{part} is no part of {gpu.name}, which has {spell_bytes(gpu.capacity_bytes)}",
            hint=_GRAMMAR_HINT,
        )
    return replace(gpu, capacity_bytes=capacity_bytes)


def _virtual(capacity_bytes: int, link_bytes_per_s: int, index: int) -> Device:
    return Device(
        id=f"cpu:{index}",
        kind="virtual",
        name="virtual device in RAM",
        capacity_bytes=capacity_bytes,
        link_bytes_per_s=link_bytes_per_s,
        index=index,
    )


def _gpus() -> list[Device]:
    return [
        Device(
            id=gpu.uuid,
            kind="cuda",
            name=gpu.name,
            capacity_bytes=gpu.usable_bytes,
            link_bytes_per_s=gpu.link_bytes_per_s,
            index=gpu.index,
        )
        for gpu in nvml.gpus()
    ]


def _gpu_named(text: str) -> Device:
    named, equals, part = text.partition("=")
    gpus = _gpus()
    for gpu in gpus:
        if named in (gpu.id, f"cuda:{gpu.index}"):
            return _part_of(gpu, part) if equals else gpu
    known = ", ".join(f"cuda:{gpu.index}" for gpu in gpus) or "none"
    raise BadInput(f"no such device: {text!r} (GPUs of this machine: {known})", hint=_GRAMMAR_HINT)

"""What a model's step does to a device, written down once: a program of slabs, bytes and work.

Owns the recording's form. A trace knows nothing of a budget, a link or seconds: `record` makes it from one run without
memory, `replay` runs it on a clock under any budget.

[Note: events] The events are the calls that the guard, the autograd hooks and the streamed optimizer make on the
engine, in their order. A replay makes the same calls on another engine, so what the runtime does (and will do one day)
needs no second description here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from superpipe_cluster.planning.work import Signatures
from superpipe_cluster.streaming.slab import Part


@dataclass(slots=True)
class Compute:
    """An operator, and those after it that read no slab.

    Attributes:
        reads: slabs that the operator reads or writes.
        writes: slabs that it changes.
        work: signature -> how often.
        highest_bytes: most bytes of other tensors, beyond those there were before, at any moment of it.
        net_bytes: bytes of other tensors that are there after it and were not before.
        rises: the levels on the way to `highest_bytes`, each higher than all before: where room is made for one, what
            came before it has been in use already. Empty for one rise.
    """

    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    work: Counter[int] = field(default_factory=Counter)
    highest_bytes: int = 0
    net_bytes: int = 0
    rises: list[int] = field(default_factory=list)

    def charge(self, nbytes: int) -> None:
        """Count bytes of a new tensor, or of one that died."""
        self.net_bytes += nbytes
        if self.net_bytes > self.highest_bytes:
            self.highest_bytes = self.net_bytes
            self.rises.append(self.net_bytes)


@dataclass(frozen=True, slots=True)
class Require:
    """The runtime itself wants slabs on the device."""

    slabs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wrote:
    """The runtime itself changed a slab."""

    slab: int


@dataclass(frozen=True, slots=True)
class NewSlab:
    """A slab appears, with the next number."""

    unit: int
    part: Part
    nbytes: int
    with_host: bool


@dataclass(frozen=True, slots=True)
class Meaning:
    """The program keeps tensors of a gradient slab from now on, or has let the last one go."""

    slab: int
    kept: bool


@dataclass(frozen=True, slots=True)
class HostUse:
    """The CPU reads the host copy of a slab, or changes it."""

    slab: int
    writes: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """The outermost forward starts."""


@dataclass(frozen=True, slots=True)
class Store:
    """What has changed of slabs starts on its way to the host."""

    slabs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """Slabs leave the device, for the host to overwrite them."""

    slabs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HostStep:
    """A thread on the host updates a unit; it waits for the copies of the slabs by itself."""

    weights: int
    gradients: tuple[int, ...]
    work: Counter[int]


@dataclass(frozen=True, slots=True)
class HostDone:
    """The program waits for all updates on the host."""


@dataclass(frozen=True, slots=True)
class Saved:
    """Autograd saves a storage of activations, with the next number, and it starts on its way to the host."""

    activation: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The program holds the device bytes of an activation no longer (they were counted out just before)."""

    activation: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Backward is about to read an activation that the program does not hold (it is counted in just after)."""

    activation: int


@dataclass(frozen=True, slots=True)
class FetchBefore:
    """Backward has read an activation: those saved before it will be read next."""

    activation: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """No node of the graph wants an activation any more."""

    activation: int


Event: TypeAlias = (
    Compute | Require | Wrote | NewSlab | Meaning | HostUse | Begin
    | Store | Leave | HostStep | HostDone
    | Saved | Gone | Fetch | FetchBefore | Forgotten
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter without its values."""

    name: str
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    trainable: bool


@dataclass(frozen=True)
class TracedUnit:
    """A unit of the model."""

    name: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Pass:
    """Events, and how often they come in a row."""

    events: list[Event]
    times: int = 1


@dataclass(frozen=True)
class Trace:
    """The steps of one program.

    Attributes:
        units: of the model, with their parameters.
        resident_bytes: what always stays on the device.
        first: the first step, in which slabs and optimizer state appear.
        steady: every step after it.
        signatures: what the work is made of.
        trains: whether a step ends with an optimizer's.
        host_state_bytes: host memory of optimizer state that is in no slab.
        counted_as: see `Probe.steps`.
    """

    units: tuple[TracedUnit, ...]
    resident_bytes: int
    first: tuple[Pass, ...]
    steady: tuple[Pass, ...]
    signatures: Signatures
    trains: bool
    host_state_bytes: int = 0
    counted_as: float = 1.0

    @property
    def work(self) -> Counter[int]:
        """What a steady step computes: signature -> how often."""
        total: Counter[int] = Counter()
        for one in self.steady:
            for event in one.events:
                if isinstance(event, Compute):
                    for signature, count in event.work.items():
                        total[signature] += count * one.times
        return total

    @property
    def host_work(self) -> Counter[int]:
        """What the host computes in a steady step: signature -> how often."""
        total: Counter[int] = Counter()
        for one in self.steady:
            for event in one.events:
                if isinstance(event, HostStep):
                    for signature, count in event.work.items():
                        total[signature] += count * one.times
        return total

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of a steady step."""
        return sum(self.signatures.all[number].flops * count for number, count in self.work.items())

    @property
    def operators(self) -> int:
        """Operators of a steady step."""
        return self.work.total()

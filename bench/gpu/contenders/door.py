"""The door that every contender is entered by: open a model, run steps, close."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import nn
from workloads import Scale, Workload


class NotHere(Exception):
    """This contender cannot do this; the text is the reason that the result gives."""


@dataclass(frozen=True)
class Task:
    """One model on one device, and what a step is."""

    workload: Workload
    scale: Scale
    device: torch.device
    on_cpu: bool

    def model(self) -> nn.Module:
        return self.workload.model(self.scale, on_cpu=self.on_cpu)

    def inputs(self, device: torch.device | None = None) -> tuple[Any, ...]:
        return self.workload.inputs(self.scale, device or self.device, on_cpu=self.on_cpu)

    def target(self, device: torch.device | None = None) -> torch.Tensor:
        assert self.workload.target is not None
        return self.workload.target(self.scale).to(device or self.device)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of every contender that has no own."""
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=1e-4)


class Contender:
    """One contender with one setting. Subclasses do in `__init__` whatever comes before the first step.

    Attributes:
        package: what has to be importable.
        infers: whether it runs inference.
        trains: whether it trains.
        why_not: the reason where one of the two is false.
        exact: whether its outputs should be the standard's bit for bit.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    infers: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    why_not: ClassVar[str] = ""
    exact: ClassVar[bool] = True

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None

    def __init__(self, task: Task, setting: dict[str, Any]) -> None:
        self.task = task

    @classmethod
    def settings(cls, workload: Workload, scale: Scale) -> list[dict[str, Any]]:
        """The settings to try."""
        return [{}]

    @classmethod
    def check(cls, workload: Workload) -> None:
        """Raise `NotHere` if `workload` cannot be run at all, before a model is made."""
        if cls.package is not None and find_spec(cls.package) is None:
            raise NotHere(f"{cls.package} is not installed")
        if not (cls.trains if workload.train else cls.infers):
            raise NotHere(cls.why_not)

    def infer(self) -> torch.Tensor:
        """One inference step; its output."""
        with torch.no_grad():
            out = self.model(*self.inputs)
        return out if torch.is_tensor(out) else out[0]

    def train(self) -> torch.Tensor:
        """One training step; its loss."""
        assert self.optimizer is not None
        loss = self.task.workload.loss(self.model(*self.inputs), self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.task.inputs()

    @property
    def target(self) -> torch.Tensor:
        return self.task.target()

    def figures(self) -> dict[str, Any]:
        """What it says of itself: bytes moved, units."""
        return {}

    def close(self) -> None:
        """Let go of the model."""

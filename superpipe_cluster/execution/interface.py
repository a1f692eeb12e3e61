"""What the head asks of whatever runs the workers: the `Executor` protocol, and the words both sides use.

Owns no processes. [Note: starts are at least once] A worker has the name of its job and epoch, and of one
name there is at most one; asking for the same one again changes nothing. So a head may ask again for what it could not
start. What an earlier head may have started begins again under a new epoch: a report of that worker may be on its way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

from superpipe_cluster.machine.devices import Device


class Worker(NamedTuple):
    """One attempt's worker."""

    job_id: str
    epoch: int

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return f"job-{self.job_id}-{self.epoch}"

    @classmethod
    def named(cls, name: str) -> Worker | None:
        """The worker of this name; None when it is not a worker's."""
        found = re.fullmatch(r"job-(.+)-(\d+)", name)
        return cls(found[1], int(found[2])) if found else None


class Report(TypedDict):
    """What a worker tells the head, about twice a second."""

    #: `lifecycle.record.Progress` fields that changed since the last report that arrived; the budget in force and
    #: whether the worker stands still are in every one, once they have been acknowledged.
    progress: dict[str, Any]
    #: `reason`, `message` and `exit_code` once the child has ended; told until the head has heard it.
    end: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Orders:
    """What the head answers.

    Attributes:
        stop: why the worker is to stop; None while it is not.
        force: kill the child without grace.
        stale: the worker's epoch is not the job's any more; it must end and write nothing.
        budget_bytes: all device bytes that it may hold from its next step boundary on; None: as before.
        budget_revision: number of that budget; the worker acknowledges it in its next report, once it is in force.
        pause: stand still at the next step boundary, for as long as this is said.
    """

    stop: str | None = None
    force: bool = False
    stale: bool = False
    budget_bytes: int | None = None
    budget_revision: int = 0
    pause: bool = False


class Executor(Protocol):
    """Starts, counts and ends workers. Any method may raise when the cluster below does not answer."""

    def start(self, worker: Worker, folder: Path) -> None:
        """Create the worker of the attempt that `folder` holds. See [Note: starts are at least once]."""
        ...

    def alive(self) -> frozenset[Worker]:
        """The workers that exist, those still being created included."""
        ...

    def kill(self, worker: Worker) -> None:
        """End the worker and its child at once. Fine for one that has gone."""
        ...

    def hurry(self, worker: Worker) -> None:
        """Have the worker report now, and so hear its orders, instead of within half a second.

        May be lost, and may come to nobody: the next report comes anyway.
        """
        ...

    def clear(self, folder: Path, device: Device | None) -> bool:
        """End what is left of the newest attempt in `folder`, whose worker is not alive.

        True when nothing is left and its device bytes are free; to be asked again until then.
        """
        ...

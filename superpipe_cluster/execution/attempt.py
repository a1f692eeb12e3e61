"""What the head tells a worker about one attempt, as written to the job's `spec.json`.

Owns the fields and their JSON. Holds nothing secret: the file lies in the job's folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from superpipe_cluster.execution.layout import JobFolder, write_atomically
from superpipe_cluster.machine.devices import Device


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at running a job.

    Attributes:
        id: the job's id.
        attempt: starts made, this one included.
        epoch: fencing number; who holds an older one may write nothing.
        job: the job file, as `spec.dump` gives it.
        device: where it runs.
        budget_bytes: all device bytes it may hold.
        program: the file with `main(job)`.
        output: folder for the results.
        cpus: cores it booked.
        link_clock: where the jobs on one virtual device agree on the use of its link; None for a link of its own.
        array_index: its number in its array, None for a job that is in none.
        resolved: values of the job file that only the cluster could know, `model_source` so far.
    """

    id: str
    attempt: int
    epoch: int
    job: dict[str, Any]
    device: Device
    budget_bytes: int
    program: str
    output: str
    cpus: int = 1
    link_clock: str | None = None
    array_index: int | None = None
    resolved: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """Extra environment variables that the job file asks for."""
        return dict(self.job.get("env") or {})

    def write(self, folder: JobFolder) -> None:
        """Make this the folder's newest attempt: older ones are fenced off first of all."""
        write_atomically(folder.epoch, str(self.epoch))
        write_atomically(folder.attempt, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Attempt:
        """The attempt that a `spec.json` describes."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "device": Device(**values["device"])})

"""What a simulated job computes, and the folder it writes to.

Owns the program's bits: a digest folded over its steps, which a checkpoint holds and the result is. Two runs of a job
end with the same digest if and only if each step was done once, in order, on top of the one before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from superpipe_cluster.errors import StaleWrite
from superpipe_cluster.execution.checkpoints import Checkpoints
from superpipe_cluster.execution.layout import JobFolder, read_epoch

if TYPE_CHECKING:
    from simulation.workers import Child

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Program:
    """One job's program.

    Attributes:
        key: makes its bits its own.
        steps: until it is done.
        save_every: steps between checkpoints.
        floor_bytes: the smallest budget it can run in.
        curve: (budget bytes, seconds of a step, link bytes of a step), smallest budget first.
        boots_s: seconds from its start to its first message.
        raises_at: it fails of itself when this step is done; None: never.
        streams: whether its budget can be changed while it runs.
        heeds: whether it looks at `should_stop`; one that does not is killed when its grace is over.
    """

    key: int
    steps: int
    save_every: int
    floor_bytes: int
    curve: tuple[tuple[int, float, int], ...]
    boots_s: float = 1.0
    raises_at: int | None = None
    streams: bool = True
    heeds: bool = True

    def fold(self, digest: int, step: int) -> int:
        """The digest after one more step."""
        return (digest * 6364136223846793005 + self.key * 1442695040888963407 + step) & _MASK

    def result(self) -> int:
        """The digest of an undisturbed run."""
        digest = 0
        for step in range(1, self.steps + 1):
            digest = self.fold(digest, step)
        return digest

    def step_s(self, budget_bytes: int) -> float:
        """Seconds of a step in so many bytes: a straight line between two points of the curve."""
        low = self.curve[0]
        for high in self.curve:
            if high[0] >= budget_bytes:
                if high[0] == low[0]:
                    return high[1]
                share = (budget_bytes - low[0]) / (high[0] - low[0])
                return low[1] + share * (high[1] - low[1])
            low = high
        return self.curve[-1][1]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds."""

    step: int
    digest: int


@dataclass(slots=True)
class Folder:
    """A job's folder: a real one, with real, fenced checkpoints; who computes in it is simulated.

    Attributes:
        job_id: whose it is.
        files: its paths.
        program: what runs in it.
        broken: called with a sentence when a promise is broken.
        is_fenced: False for a planted bug.
        result: what the program has left in `output/`.
        holder: the child that has the lock.
        begun: the highest epoch that has begun to write.
    """

    job_id: str
    files: JobFolder
    program: Program
    broken: Callable[[str], None]
    is_fenced: bool = True
    result: int | None = None
    holder: Child | None = None
    begun: int = 0

    def begin(self, epoch: int) -> Checkpoint:
        """A child of `epoch` has the lock, and reads where to go on."""
        self.begun = max(self.begun, epoch)
        latest = Checkpoints(self.files, self.job_id, epoch).latest()
        if latest is None:
            return Checkpoint(0, 0)
        step, digest = (latest / "state").read_text().split()
        return Checkpoint(int(step), int(digest))

    def commit(self, epoch: int, checkpoint: Checkpoint) -> bool:
        """Make this the newest checkpoint; False when a newer epoch has begun and nothing was written."""

        def write(new: Path) -> None:
            (new / "state").write_text(f"{checkpoint.step} {checkpoint.digest}")

        fence = epoch if self.is_fenced else (read_epoch(self.files) or epoch)
        try:
            Checkpoints(self.files, self.job_id, fence).commit(checkpoint.step, write)
        except StaleWrite:
            return False
        if epoch < self.begun:
            self.broken(
                f"job {self.job_id}: epoch {epoch} wrote a checkpoint after epoch {self.begun} had begun"
            )
        return True

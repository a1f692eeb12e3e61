"""A job's folder: which file is what, and who may write it.

Owns the names. The head writes `spec.json`, `epoch` and `code/` before each attempt; the actor writes `actor`
and `pid` and appends to `log.txt`; all else belongs to the child that holds `lock`.

    spec.json     the attempt, see `attempt.Attempt`       log.txt   output of all attempts, append-only
    epoch         fencing number of the newest attempt     lock      flock, held by the living child
    code/         the user's own program, as submitted     pid       the newest child's process group
    checkpoints/  CURRENT, step-00000040-e1/, ...         output/   results, unless `output:` says elsewhere
    actor         the newest attempt's actor           line      socket of a job that is lent
    door          unix socket at which a served model answers
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from superpipe_cluster.machine import processes


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The paths in one job's folder."""

    root: Path

    @property
    def attempt(self) -> Path:
        """The description of the newest attempt."""
        return self.root / "spec.json"

    @property
    def epoch(self) -> Path:
        """The fencing number of the newest attempt."""
        return self.root / "epoch"

    @property
    def log(self) -> Path:
        """Everything the program printed."""
        return self.root / "log.txt"

    @property
    def lock(self) -> Path:
        """Locked by the child that may write."""
        return self.root / "lock"

    @property
    def pid(self) -> Path:
        """Pid and start time of the newest child, which is also the number of its process group."""
        return self.root / "pid"

    @property
    def actor(self) -> Path:
        """Pid and start time of the newest attempt's actor, the child's parent."""
        return self.root / "actor"

    @property
    def line(self) -> Path:
        """The socket at which processes of the program find the job, see `lending`."""
        return self.root / "line"

    @property
    def code(self) -> Path:
        """The folder of the user's own program."""
        return self.root / "code"

    @property
    def checkpoints(self) -> Path:
        """The folder of the committed checkpoints."""
        return self.root / "checkpoints"

    @property
    def current_checkpoint(self) -> Path:
        """The file that says which of the checkpoints counts, see `checkpoints.Current`."""
        return self.checkpoints / "CURRENT"

    @property
    def door(self) -> Path:
        """The unix socket at which a served model answers, while it does."""
        return self.root / "door"

    @property
    def output(self) -> Path:
        """The folder of the results when the job file names no other."""
        return self.root / "output"


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file so that a reader, or a crash, sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def note_birth(path: Path, pid: int) -> None:
    """Write down which process `pid` is, so that it is known again when the number belongs to another."""
    born = processes.birth(pid)
    write_atomically(path, f"{pid} {born.started if born else 0}")


def read_birth(path: Path) -> processes.Birth | None:
    """What `note_birth` wrote; None before the first."""
    try:
        pid, started = path.read_text().split()
        return processes.Birth(int(pid), int(started))
    except (OSError, ValueError):
        return None


def read_epoch(folder: JobFolder) -> int | None:
    """The newest attempt's epoch; None before the first."""
    try:
        return int(folder.epoch.read_text())
    except (OSError, ValueError):
        return None

"""The committed checkpoints of a job: folders, and the one file that says which of them counts.

Owns `checkpoints/` in the job's folder. [Note: one pointer] A checkpoint is written into a folder of its own and
becomes the job's by one atomic change: `CURRENT` is replaced by a file that names it. Readers follow `CURRENT` and
nothing else, so a folder that is half written, or was written by an attempt whose time is over, is never read,
whatever its name says. `CURRENT` is replaced only by the process that holds the folder's lock (see `child`), and only
while its epoch is the newest; two attempts can never both write.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from superpipe_cluster.errors import StaleWrite
from superpipe_cluster.execution.layout import JobFolder, read_epoch, sync, write_atomically

_NAME = re.compile(r"step-\d{8,}-e\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Current:
    """What `CURRENT` says.

    Attributes:
        name: folder of the newest committed checkpoint.
        epoch: fencing number of the attempt that committed it.
        before: folder of the one before, kept in case the newest cannot be read; None for the first.
    """

    name: str
    epoch: int
    before: str | None = None


class Checkpoints:
    """The checkpoints of one job, as the attempt of one epoch may use them.

    Args:
        folder: the job's folder.
        job_id: for messages.
        epoch: fencing number of the attempt.
    """

    def __init__(self, folder: JobFolder, job_id: str, epoch: int) -> None:
        self._folder = folder
        self._job_id = job_id
        self._epoch = epoch

    def latest(self) -> Path | None:
        """The newest committed checkpoint of any attempt; None when there is none."""
        current = self._current()
        return None if current is None else self._folder.checkpoints / current.name

    def commit(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` fill an empty folder, and make that the newest checkpoint: all of it, or nothing of it.

        Raises:
            StaleWrite: a newer attempt of this job has started; this one must not write any more.
        """
        new = self._new_folder(step)
        try:
            write(new)
            _sync_tree(new)
            before = self._current()
            self._refuse_if_stale(before)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)  # a disk that is full needs the room most of all
            raise
        pointer = Current(new.name, self._epoch, None if before is None else before.name)
        write_atomically(self._folder.current_checkpoint, json.dumps(asdict(pointer)))
        sync(self._folder.checkpoints)
        self.tidy()
        return new

    def tidy(self) -> None:
        """Remove what no reader will follow: older checkpoints, and those that were never committed."""
        if not self._folder.checkpoints.is_dir():
            return
        current = self._current()
        kept = set() if current is None else {current.name, current.before}
        for path in self._folder.checkpoints.iterdir():
            if path.name.startswith(f".{self._folder.current_checkpoint.name}."):
                path.unlink(missing_ok=True)  # a pointer that did not come to be one
            if _NAME.fullmatch(path.name) and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _new_folder(self, step: int) -> Path:
        # The same step may be saved again, and the folder that counts now is not to be touched.
        name = f"step-{step:08d}-e{self._epoch}"
        self._folder.checkpoints.mkdir(parents=True, exist_ok=True)
        taken = {path.name for path in self._folder.checkpoints.iterdir()}
        number = 1
        while (chosen := name if number == 1 else f"{name}.{number}") in taken:
            number += 1
        new = self._folder.checkpoints / chosen
        new.mkdir()
        return new

    def _current(self) -> Current | None:
        try:
            return Current(**json.loads(self._folder.current_checkpoint.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def _refuse_if_stale(self, current: Current | None) -> None:
        newest = max(read_epoch(self._folder) or 0, 0 if current is None else current.epoch)
        if newest != self._epoch:
            raise StaleWrite(
                f"job {self._job_id} is at epoch {newest} and this attempt at {self._epoch}: it may not write",
                hint="nothing to do: the newer attempt goes on from the last checkpoint",
            )


def _sync_tree(folder: Path) -> None:
    """Have the disk hold every file in the folder, and the folder itself."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)

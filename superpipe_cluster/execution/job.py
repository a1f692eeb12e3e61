"""What a worker program sees: the `job` that its `main(job)` is given.

Owns the program's side of streaming, progress, stopping and saving. The program needs nothing else of this
package. torch is imported when `stream` is called and not before, so that a program without it starts in a
moment.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpipe_cluster.errors import StaleWrite
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.control import ChildLine
from superpipe_cluster.execution.layout import JobFolder, read_epoch
from superpipe_cluster.execution.pace import Pace
from superpipe_cluster.machine.devices import Device

if TYPE_CHECKING:
    import torch

    from superpipe_cluster.spec import JobSpec
    from superpipe_cluster.streaming import Streamer

#: Committed checkpoints that are kept: the newest, and the one before it in case the newest cannot be read.
KEPT_CHECKPOINTS = 2
#: Seconds between two progress messages; what is reported in between waits for the next.
_PROGRESS_EVERY_S = 0.2

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")
#: Statistics of a streamer that are sent on, under the same names. Over several models they add up.
_STREAM_STATS = (
    "k",
    "k_prime",
    "units",
    "loads",
    "link_bytes",
    "stall_s",
    "peak_bytes",
    "peak_units",
    "held_bytes",
    "model_bytes",
)


class Job:
    """One attempt, from the inside.

    Attributes:
        id: the job's id.
        name: the job's name.
        spec: the job file; a model that is another job's output is already that folder.
        attempt: 1 for the first start.
        device: where the job runs.
        budget_bytes: all device bytes it may hold.
        output: folder for the results; also the current folder.
        checkpoint_dir: folder of the committed checkpoints.
        params: the job file's `params`.
    """

    def __init__(self, attempt: Attempt, spec: JobSpec, folder: JobFolder, line: ChildLine) -> None:
        self.id = attempt.id
        self.name = spec.name
        self.spec = spec
        self.attempt = attempt.attempt
        self.device: Device = attempt.device
        self.budget_bytes = attempt.budget_bytes
        self.output = Path(attempt.output)
        self.checkpoint_dir = folder.checkpoints
        self.params: dict[str, Any] = dict(spec.params)
        self._epoch = attempt.epoch
        self._link_clock = attempt.link_clock
        self._folder = folder
        self._line = line
        self._streamers: list[Streamer] = []
        self._pending: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._sent_s = -_PROGRESS_EVERY_S
        self._pace = Pace()
        self._saw_stop = False

    # ---- streaming -------------------------------------------------------------------------------------

    def stream(self, model: torch.nn.Module, **options: Any) -> Streamer:
        """Stream `model` to the job's device within the job's budget.

        Args:
            model: any module, its weights in host memory, or on `meta` with `weights` among the options.
            options: of `superpipe_cluster.stream`, over those of the job file (`budget` for a part of the
                budget).

        Raises:
            BudgetTooSmall: the model cannot be streamed in so few bytes; the message names how many it needs.
        """
        from superpipe_cluster.streaming import VirtualDevice, stream

        device = (
            VirtualDevice(
                self.device.capacity_bytes,
                self.device.link_bytes_per_s,
                self._link_clock,
            )
            if self.device.kind == "virtual"
            else "cuda:0"  # the only one that CUDA_VISIBLE_DEVICES leaves
        )
        asked = self.spec.streaming
        defaults: dict[str, Any] = {
            "budget": self.budget_bytes,
            "device": device,
            "k": asked.k,
            "k_prime": asked.k_prime,
            "policy": asked.policy,
            "activations": asked.activations,
            "host": self.spec.resources.host,
            "host_folder": self._folder.root,
        }
        streamer = stream(model, **{**defaults, **options})
        self._streamers.append(streamer)
        return streamer

    # ---- telling ---------------------------------------------------------------------------------------

    def progress(self, *, step: int | None = None, steps: int | None = None, **metrics: float) -> None:
        """Tell how far the job is. Cheap: call it at every step; a few messages a second are really sent.

        Args:
            step: steps done.
            steps: steps in all.
            metrics: numbers to show and keep, `loss=2.31`; a metric keeps its value until it is given again.
        """
        if step is not None:
            self._pace.at(step, time.monotonic())
            if self._pace.step_s is not None:
                self._pending["step_s"] = self._pace.step_s
        told = {"step": step, "steps": steps}
        self._pending.update({name: int(value) for name, value in told.items() if value is not None})
        if metrics:
            self._metrics.update({name: float(value) for name, value in metrics.items()})
            self._pending["metrics"] = dict(self._metrics)
        if time.monotonic() - self._sent_s >= _PROGRESS_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send what `progress` still holds back."""
        self._sent_s = time.monotonic()
        message = {**self._stream_stats(), **self._pending}
        self._pending = {}
        if message:
            self._line.send({"type": "progress", **message})

    def log(self, text: str) -> None:
        """Write a line to the job's log (`print` does just as well)."""
        print(text, flush=True)  # noqa: T201

    def _stream_stats(self) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for stats in [streamer.stats() for streamer in self._streamers]:
            for name in _STREAM_STATS:
                value = getattr(stats, name, None)
                if value is not None:
                    sums[name] = sums.get(name, 0) + value
        return sums

    # ---- stopping --------------------------------------------------------------------------------------

    @property
    def should_stop(self) -> bool:
        """Whether to save and return from `main` soon: at the next step boundary, within the grace period."""
        asked = self._line.stop_asked is not None
        self._saw_stop = self._saw_stop or asked
        return asked

    @property
    def stopped_for(self) -> str | None:
        """The reason of a stop that the program has taken notice of; None when it ran to its own end."""
        return self._line.stop_asked if self._saw_stop else None

    # ---- checkpoints -----------------------------------------------------------------------------------

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Commit a checkpoint: all of it is on disk under its final name, or nothing of it is.

        Args:
            step: steps done; names the checkpoint. The same step again replaces it.
            write: fills the empty folder it is given.

        Returns:
            The committed folder.

        Raises:
            StaleWrite: a newer attempt of this job has started; this one must not write any more.
        """
        final = self.checkpoint_dir / f"step-{step:08d}"
        partial = self.checkpoint_dir / f".partial-{step:08d}-{self._epoch}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        _sync(partial)
        self._refuse_if_stale()
        if final.exists():
            # A folder cannot be replaced in one step. Between the two renames the checkpoint before this one
            # counts.
            superseded = self.checkpoint_dir / f".superseded-{step:08d}-{self._epoch}"
            final.rename(superseded)
            partial.rename(final)
            shutil.rmtree(superseded)
        else:
            partial.rename(final)
        _sync_folder(self.checkpoint_dir)
        for old in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old, ignore_errors=True)
        self._pending["checkpoint_step"] = step
        self.flush()
        return final

    def latest_checkpoint(self) -> Path | None:
        """The newest committed checkpoint of any attempt, its step in its name; None when there is none."""
        return next(reversed(self._checkpoints()), None)

    def _checkpoints(self) -> list[Path]:
        if not self.checkpoint_dir.is_dir():
            return []
        named = ((_CHECKPOINT_NAME.fullmatch(path.name), path) for path in self.checkpoint_dir.iterdir())
        return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]

    def _refuse_if_stale(self) -> None:
        newest = read_epoch(self._folder)
        if newest != self._epoch:
            raise StaleWrite(
                f"job {self.id} is at epoch {newest} and this attempt at {self._epoch}: it may not write",
                hint="nothing to do: the newer attempt goes on from the last checkpoint",
            )


def _sync(folder: Path) -> None:
    """Have the disk hold every file in the folder, and the folder itself."""
    for path in folder.rglob("*"):
        _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What a worker program sees: the `job` that its `main(job)` is given.

Owns the program's side of streaming, progress, stopping and saving. The program needs nothing else of this
package. torch is imported when `stream` is called and not before, so that a program without it starts in a
moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpipe_cluster.errors import BadInput
from superpipe_cluster.execution import current
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.boundary import Boundary
from superpipe_cluster.execution.checkpoints import Checkpoints
from superpipe_cluster.execution.control import ChildLine
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.lending import Loan, lend
from superpipe_cluster.execution.pace import Pace
from superpipe_cluster.machine.devices import Device
from superpipe_cluster.sizes import bytes_of

if TYPE_CHECKING:
    import torch

    from superpipe_cluster.spec import JobSpec
    from superpipe_cluster.streaming import Streamer

#: Seconds between two progress messages; what is reported in between waits for the next.
_PROGRESS_EVERY_S = 0.2

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

    [Note: step boundaries] `progress(step=...)` and `should_stop` are the moments at which the cluster may change the
    job's budget, and let it stand still for a while. A program that asks neither is left alone, and stopped instead
    when its bytes are needed.

    Attributes:
        id: the job's id.
        name: the job's name.
        spec: the job file; a model that is another job's output is already that folder.
        attempt: 1 for the first start.
        device: where the job runs.
        output: folder for the results; also the current folder.
        checkpoint_dir: folder of the checkpoints.
        door: where a program that answers requests makes its unix socket; the head's door asks there.
        code: folder of the program and the files that were submitted with the job.
        array_index: its number in its array; None for a job that is in none.
        params: the job file's `params`, and `array_index` where there is one.
    """

    def __init__(self, attempt: Attempt, spec: JobSpec, folder: JobFolder, line: ChildLine) -> None:
        self.id = attempt.id
        self.name = spec.name
        self.spec = spec
        self.attempt = attempt.attempt
        self.device: Device = attempt.device
        self.output = Path(attempt.output)
        self.checkpoint_dir = folder.checkpoints
        self.door = folder.door
        self.code = folder.code
        self.array_index = attempt.array_index
        self.params: dict[str, Any] = dict(spec.params)
        if attempt.array_index is not None:
            self.params["array_index"] = attempt.array_index
        self._link_clock = attempt.link_clock
        self._epoch = attempt.epoch
        self._folder = folder
        self._line = line
        self._streamers: list[Streamer] = []
        self._wants_bytes: int | None = None
        self._boundary = Boundary(line, attempt.budget_bytes, self._tell)
        self._checkpoints = Checkpoints(folder, attempt.id, attempt.epoch)
        self._pending: dict[str, Any] = {}
        self._metrics: dict[str, float] = {}
        self._sent_s = -_PROGRESS_EVERY_S
        self._pace = Pace()
        self._saw_stop = False

    @classmethod
    def of(cls, attempt: Attempt, folder: JobFolder, line: ChildLine) -> Job:
        """The job of an attempt as it was written down.

        Raises:
            BadInput: what is written is no job file.
        """
        from superpipe_cluster import spec

        job_file = spec.parse(attempt.job)
        source = attempt.resolved.get("model_source")
        if source is not None and job_file.model is not None:
            job_file = job_file.model_copy(
                update={"model": job_file.model.model_copy(update={"source": source})}
            )
        return cls(attempt, job_file, folder, line)

    # ---- streaming -------------------------------------------------------------------------------------

    @property
    def budget_bytes(self) -> int:
        """All device bytes it may hold now. Changes at step boundaries only."""
        return self._boundary.budget_bytes

    def stream(self, model: torch.nn.Module, *, budget: int | str | None = None, **options: Any) -> Streamer:
        """Stream `model` to the job's device within the job's budget.

        Args:
            model: any module, its weights in host memory, or on `meta` with `weights` among the options.
            budget: this model's part of the job's budget, in bytes or as a size; None for all of it. When the job's
                budget changes, its parts change in proportion.
            options: of `superpipe_cluster.stream`, over those of the job file.

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
            "device": device,
            "k": asked.k,
            "k_prime": asked.k_prime,
            "policy": asked.policy,
            "activations": asked.activations,
            "host": self.spec.host,
            "host_folder": self._folder.root,
        }
        chosen = {**defaults, **options}
        share_bytes = self.budget_bytes if budget is None else bytes_of(budget)
        streamer = stream(model, budget=share_bytes, **chosen)
        self._streamers.append(streamer)
        self._boundary.add(streamer, share_bytes, chosen["k"])
        return streamer

    def wants(self, budget: int | str | None) -> None:
        """Tell how much of the budget the program has use for now; None, as at the beginning: all that it can have.

        What it has beyond that is taken back at a step boundary, never below what the job is guaranteed, and is then
        free for others. Bytes that are of use again come back as they are free, soon after that is told. Cheap: call it
        as often as you like. Jobs with `elastic: {shrink: false}` or `{grow: false}` keep what they have.

        Args:
            budget: bytes, or a size; 0 for no more than is guaranteed.

        Raises:
            BadInput: no size.
        """
        wants_bytes = None if budget is None else bytes_of(budget)
        if wants_bytes is not None and wants_bytes < 0:
            raise BadInput(f"{wants_bytes} bytes cannot be wanted", hint="0 means no more than is guaranteed")
        if wants_bytes != self._wants_bytes:
            self._wants_bytes = wants_bytes
            self._tell({"wants_bytes": wants_bytes})

    # ---- telling ---------------------------------------------------------------------------------------

    def progress(self, *, step: int | None = None, steps: int | None = None, **metrics: float) -> None:
        """Tell how far the job is. Cheap: call it at every step; a few messages a second are really sent.

        With `step`, this is a step boundary, see [Note: step boundaries].

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
        if step is not None:
            self._at_boundary()

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

    def _tell(self, news: dict[str, Any]) -> None:
        self._pending.update(news)
        self.flush()

    def _stream_stats(self) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for stats in [streamer.stats() for streamer in self._streamers]:
            for name in _STREAM_STATS:
                value = getattr(stats, name, None)
                if value is not None:
                    sums[name] = sums.get(name, 0) + value
        floor_bytes = self._boundary.floor_bytes()
        return sums if floor_bytes is None else {**sums, "floor_bytes": floor_bytes}

    def tell_failure(self, reason: str, message: str) -> None:
        """Tell whoever has lent this job why the process is about to end; the `EndReason` and a sentence."""
        self._line.send({"type": "failed", "reason": reason, "message": message})

    # ---- lending ---------------------------------------------------------------------------------------

    @contextmanager
    def lend(self) -> Iterator[tuple[Loan, dict[str, str]]]:
        """Let a process that this program starts be the job: it streams, reports and saves in this program's place.

        Gives, for the length of a `with` block, what that process tells, and the environment variables by which
        `superpipe_cluster.current_job()` finds the job there. See [Note: one at a time] in `lending`.
        """
        variables = {
            current.JOB_FOLDER: str(self._folder.root),
            current.EPOCH: str(self._epoch),
            "SPCLUSTER_JOB_ID": self.id,
            "SPCLUSTER_JOB_NAME": self.name,
            "SPCLUSTER_ATTEMPT": str(self.attempt),
            "SPCLUSTER_OUTPUT": str(self.output),
            "SPCLUSTER_CODE": str(self.code),
            "SPCLUSTER_BUDGET_BYTES": str(self.budget_bytes),
            "SPCLUSTER_DEVICE": "cpu" if self.device.kind == "virtual" else "cuda:0",
        }
        with lend(self._line, self._folder, self.budget_bytes) as loan:
            yield loan, variables

    # ---- stopping --------------------------------------------------------------------------------------

    @property
    def should_stop(self) -> bool:
        """Whether to save and return from `main` soon, within the grace period.

        To be asked between two steps, see [Note: step boundaries].
        """
        self._at_boundary()
        asked = self._line.wishes.stop is not None
        if asked and not self._saw_stop:
            self._line.send({"type": "stopping"})
        self._saw_stop = self._saw_stop or asked
        return asked

    @property
    def stopped_for(self) -> str | None:
        """The reason of a stop that the program has taken notice of; None when it ran to its own end."""
        return self._line.wishes.stop if self._saw_stop else None

    def _at_boundary(self) -> None:
        if self._boundary.reach():
            self._pace = Pace()

    # ---- checkpoints -----------------------------------------------------------------------------------

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Commit a checkpoint: all of it is on disk and is the job's newest, or nothing of it is.

        Args:
            step: steps done. The same step again replaces it.
            write: fills the empty folder it is given.

        Returns:
            The committed folder.

        Raises:
            StaleWrite: a newer attempt of this job has started; this one must not write any more.
        """
        committed = self._checkpoints.commit(step, write)
        self._tell({"checkpoint_step": step})
        return committed

    def latest_checkpoint(self) -> Path | None:
        """The newest committed checkpoint of any attempt; None when there is none."""
        return self._checkpoints.latest()

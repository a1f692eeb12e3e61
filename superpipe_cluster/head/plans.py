"""Plans that were made before: equal jobs are planned once.

Owns what makes two jobs equal to the planner, and for how long a plan is good. How one is made is `planning`'s.

[Note: equal jobs] A plan follows from the program's text and from what the job file says about the work; from the
content of the files that the program reads for it, which is told by their sizes and times; and from measured speeds,
which change so slowly that a plan is good for an hour. What runs have taught about a program since then is a factor,
and applied anew each time. Two tasks of an array are equal unless the program asks for the task's number.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from superpipe_cluster import spec
from superpipe_cluster.planning import Plan, PlannedDevice
from superpipe_cluster.planning.corrections import correction_of
from superpipe_cluster.spec import JobSpec

#: What a job file says beside the work.
_BESIDE = frozenset(
    {"name", "output", "priority", "after", "array", "schedule", "elastic", "time_limit", "max_attempts"}
)
_GOOD_FOR_S = 3600.0
_MOST = 256


class Planner(Protocol):
    """How a job's model is planned; `planning.plan_job` in the cluster."""

    def __call__(
        self, job: JobSpec, program: Path, *, cuda: bool, device: PlannedDevice | None
    ) -> Plan | None:
        """The plan, or None if the program has no `probe`; errors are the user's."""
        ...


@dataclass(slots=True)
class _Made:
    """A plan that was made, or is being made, and since when."""

    plan: Future[Plan | None]
    at_s: float


class Plans:
    """A `Planner` that remembers. Safe to use from several threads: equal jobs wait for one plan.

    Args:
        planner: makes the plans.
        clock: monotonic seconds.
        at_once: how many plans are made at the same time; each wants a core and some hundred MiB.
    """

    def __init__(
        self,
        planner: Planner,
        clock: Callable[[], float] = time.monotonic,
        at_once: int = max(1, (os.cpu_count() or 1) // 2),
    ) -> None:
        self._planner = planner
        self._desks = threading.BoundedSemaphore(at_once)
        self._clock = clock
        self._mutex = threading.Lock()
        self._made: OrderedDict[str, _Made] = OrderedDict()

    def __call__(
        self, job: JobSpec, program: Path, *, cuda: bool, device: PlannedDevice | None
    ) -> Plan | None:
        """See `Planner`."""
        key = _key(job, program, cuda, device)
        now_s = self._clock()
        with self._mutex:
            known = self._made.get(key)
            is_new = known is None or now_s - known.at_s > _GOOD_FOR_S
            if known is None or is_new:
                known = self._made[key] = _Made(Future(), now_s)
                while len(self._made) > _MOST:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
        if is_new:
            try:
                with self._desks:
                    known.plan.set_result(self._planner(job, program, cuda=cuda, device=device))
            except BaseException as error:
                with self._mutex:
                    if self._made.get(key) is known:
                        del self._made[key]
                known.plan.set_exception(error)
                raise
        plan = known.plan.result()
        return None if plan is None else _as_learned(plan)


def _key(job: JobSpec, program: Path, cuda: bool, device: PlannedDevice | None) -> str:
    text = program.read_bytes()
    work = {name: value for name, value in spec.dump(job).items() if name not in _BESIDE}
    if b"array_index" not in text:
        work["params"] = {name: value for name, value in job.params.items() if name != "array_index"}
    said = [work, cuda, None if device is None else asdict(device), [stamp(path) for path in _read_by(job)]]
    return hashlib.sha256(text + b"\0" + json.dumps(said, sort_keys=True).encode()).hexdigest()


def _read_by(job: JobSpec) -> list[Path]:
    """The files whose content a plan may follow from: of the model, its tokenizer and the prompts."""
    model, generate = job.model, getattr(job, "generate", None)
    named = [model.source, model.tokenizer] if model is not None else []
    if generate is not None and isinstance(generate.prompts, str):
        named.append(generate.prompts)
    return [path for text in named if text is not None and (path := Path(text)).is_absolute()]


def stamp(path: Path) -> list[Any]:
    """What changes when the file does, or one of the folder's files."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return [(str(file), status.st_size, status.st_mtime_ns) for file in files if (status := file.stat())]
    except OSError:
        return [str(path)]


def _as_learned(plan: Plan) -> Plan:
    """The plan with its seconds corrected by what runs of its program have taught up to now."""
    forecast = plan.forecast
    if forecast is None or not forecast.fingerprint:
        return plan
    factor = correction_of(forecast.fingerprint) / forecast.corrected
    if factor == 1.0:
        return plan
    return replace(
        plan,
        forecast=replace(
            forecast,
            rows=tuple(replace(row, step_s=row.step_s * factor) for row in forecast.rows),
            whole_step_s=forecast.whole_step_s * factor,
            corrected=forecast.corrected * factor,
        ),
    )

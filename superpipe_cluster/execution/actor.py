"""The worker actor: a Ray actor around one supervised child.

Owns the wiring and nothing else: the child is `supervisor`'s, the reports are `reporting`'s. The actor never
ends by itself: the head, which alone knows that it has heard all, kills it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import ray

from superpipe_cluster.execution.interface import Orders, Report, Worker
from superpipe_cluster.execution.layout import JobFolder, note_birth
from superpipe_cluster.execution.reporting import report_to_the_end
from superpipe_cluster.execution.supervisor import Supervisor

#: Ray namespace of everything of ours.
NAMESPACE = "spcluster"
#: Name of the head's actor.
HEAD_NAME = "head"
#: Seconds after which a report counts as not delivered; the head answers in milliseconds.
_TELL_TIMEOUT_S = 10.0


class WorkerActor:
    """One attempt's worker. Its threads are plain: they go on whatever becomes of the caller that made it."""

    def __init__(self, name: str, folder: str) -> None:
        worker = Worker.named(name)
        assert worker is not None
        self._worker = worker
        note_birth(JobFolder(Path(folder)).actor, os.getpid())
        self._supervisor = Supervisor(Path(folder))
        self._supervisor.start()
        threading.Thread(target=self._report, name="reports", daemon=True).start()

    def pid(self) -> int:
        """The actor's own process."""
        return os.getpid()

    def hurry(self) -> None:
        """Report now: the head has orders."""
        self._supervisor.hurry()

    def _report(self) -> None:
        report_to_the_end(self._supervisor, self._tell)

    def _tell(self, report: Report) -> Orders:
        # Looked up anew each time: `down --head-only` and `up` make another actor of this name.
        head = ray.get_actor(HEAD_NAME, namespace=NAMESPACE)
        answer = head.report.remote(self._worker.job_id, self._worker.epoch, report)
        orders: Any = ray.get(answer, timeout=_TELL_TIMEOUT_S)
        return orders

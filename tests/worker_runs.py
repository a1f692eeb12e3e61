"""A job run as the actor runs it, without Ray: its folder, its attempts, and being killed; or in this process."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from superpipe_cluster import bundled, spec
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.control import ChildLine, LineReader, encode, receive
from superpipe_cluster.execution.job import Job
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import End, Grace, Supervisor
from superpipe_cluster.machine import parse_device
from superpipe_cluster.serving.connection import short_name
from waiting import wait_until

T = TypeVar("T")


class _StoppedJob(Job):
    """A job that is told to stop, as a supervisor tells it, and hears of it at the end of step `stop_at`."""

    stop_at: int | None
    others_end: socket.socket

    def progress(self, *, step: int | None = None, **told: Any) -> None:
        super().progress(step=step, **told)
        if step is not None and step == self.stop_at:
            before = self._line.wishes
            self.others_end.sendall(encode({"type": "stop", "why": "preempted"}))
            self._line.wait_for_others(before)


class Run:
    """One job's folder and its attempts, without Ray."""

    def __init__(self, root: Path, job: dict[str, Any], budget_bytes: int) -> None:
        root.mkdir(parents=True)
        self.folder = JobFolder(root)
        self.output = self.folder.output
        parsed = spec.parse(job)
        self.attempt = Attempt(
            id="1", attempt=0, epoch=0, job=spec.dump(parsed), device=parse_device("cpu:1GiB@4GB/s"),
            budget_bytes=budget_bytes, program=str(bundled.worker_path(parsed.worker)), output=str(self.output),
        )  # fmt: skip
        self.progress: dict[str, Any] = {}

    def _begin(self) -> None:
        self.attempt = replace(self.attempt, attempt=self.attempt.attempt + 1, epoch=self.attempt.epoch + 1)
        self.attempt.write(self.folder)

    def here(self, stop_at: int | None = None) -> None:
        """Run the program in this process, where its libraries are loaded; a child would load them anew.

        Args:
            stop_at: the step behind which it is stopped, with a checkpoint; None for a run to its end.
        """
        self._begin()
        self.output.mkdir(exist_ok=True)
        ours, theirs = socket.socketpair()
        with ours, theirs, self.folder.log.open("a") as log:
            job = _StoppedJob.of(self.attempt, self.folder, ChildLine(theirs))
            job.stop_at, job.others_end = stop_at, ours
            with (
                contextlib.chdir(self.output),
                contextlib.redirect_stdout(log),
                warnings.catch_warnings(action="ignore"),  # what libraries say of each other is for the log
            ):
                runpy.run_path(self.attempt.program)["main"](job)
                job.flush()
            theirs.shutdown(socket.SHUT_WR)
            reader = LineReader()
            while (messages := receive(ours, reader)) is not None:
                for message in messages:
                    self.progress.update(message)
            assert job.stopped_for == (None if stop_at is None else "preempted"), self.log()

    def asked(self, ask: Callable[[httpx.Client], T]) -> T:
        """What `ask` gets to hear from a program that answers requests, and then ends by itself; in this process."""

        def heard() -> T:
            wait_until(self.folder.door.exists, "the program listens", 100)
            with (
                short_name(self.folder.door) as name,
                httpx.Client(
                    transport=httpx.HTTPTransport(uds=name), base_url="http://job", timeout=100
                ) as client,
            ):
                return ask(client)

        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(heard)
            self.here()
            return answer.result()

    def start(self, grace: Grace | None = None) -> Supervisor:
        self._begin()
        supervisor = Supervisor(self.folder.root, grace or Grace())
        supervisor.start()
        return supervisor

    def finish(self, supervisor: Supervisor) -> End:
        end = supervisor.wait(100)
        self.progress.update(supervisor.take_progress())
        while supervisor.has_progress:  # the first report of metrics is one of its own
            self.progress.update(supervisor.take_progress())
        assert end is not None, self.log()
        return end

    def kill_at(self, supervisor: Supervisor, step: int) -> None:
        """`kill -9` the child once it has done `step` steps."""

        def is_there() -> bool:
            self.progress.update(supervisor.take_progress())
            return self.progress.get("step", 0) >= step or supervisor.wait(0) is not None

        wait_until(is_there, f"step {step} is done", 100)
        assert supervisor.wait(0) is None, self.log()
        os.kill(int(self.folder.pid.read_text().split()[0]), signal.SIGKILL)
        assert self.finish(supervisor).reason == "worker_lost", self.log()

    def succeed(self) -> None:
        end = self.finish(self.start())
        assert end.reason == "ok", self.log()

    def log(self) -> str:
        return self.folder.log.read_text()

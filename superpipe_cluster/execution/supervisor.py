"""One child process: started, listened to, stopped, and its end told.

Owns the child's environment, its process group and the grace periods. Knows neither Ray nor the head: the
actor asks it for news. [Note: who dies with whom] The child asks the kernel to be killed when the *thread*
that started it ends, so one thread starts it, stays with it to its end, and ends last. When the actor is
killed, the child goes with it; the child's own children are found by its process group, by whoever confirms
that an attempt is gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.control import CONTROL_FD, PARENT_PID, LineReader, encode, receive
from superpipe_cluster.execution.layout import JobFolder, note_birth
from superpipe_cluster.lifecycle.states import EndReason
from superpipe_cluster.machine import processes

_POLL_S = 0.1
#: Of a progress message, what holds until the child says otherwise. It is told in every report, and at once when it
#: changes.
_IN_FORCE = ("budget_bytes", "budget_revision", "budget_refused", "wants_bytes", "paused")
#: Variables of the cluster's own processes that a job has no use for; the tokens among them are not the job's
#: to see.
_NOT_FOR_JOBS = ("RAY_", "SPCLUSTER_TOKEN", "SPCLUSTER_URL", "REDIS", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Grace:
    """How long a child that is asked to stop is waited for.

    Attributes:
        stop_s: from the message (it may save a checkpoint) to SIGTERM.
        term_s: from SIGTERM to SIGKILL.
        sleep_s: for how long it may be stopped (SIGSTOP) before it is killed.
    """

    stop_s: float = 10.0
    term_s: float = 5.0
    sleep_s: float = 60.0


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended: an `EndReason`, a sentence, the exit code (None: killed by a signal)."""

    reason: str
    message: str | None
    exit_code: int | None


def child_environment(attempt: Attempt, base: Mapping[str, str]) -> dict[str, str]:
    """The machine's environment, the job's own over it, and over both what keeps it on its device."""
    env = {name: value for name, value in base.items() if not name.startswith(_NOT_FOR_JOBS)}
    env["OMP_NUM_THREADS"] = str(attempt.cpus)
    env.update(attempt.env)
    if attempt.array_index is not None:
        env["SPCLUSTER_ARRAY_INDEX"] = str(attempt.array_index)
    env["PYTHONUNBUFFERED"] = "1"  # a log that is followed shows each line when it is printed
    env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    env["CUDA_VISIBLE_DEVICES"] = attempt.device.id if attempt.device.kind == "cuda" else ""
    return env


class Supervisor:
    """Runs one attempt's child process.

    Args:
        root: the job's folder, with its `spec.json` written.
        grace: patience on stopping.
    """

    def __init__(self, root: Path, grace: Grace = Grace()) -> None:
        self._folder = JobFolder(root)
        self._attempt = Attempt.read(self._folder.attempt)
        self._grace = grace
        self._mutex = threading.Lock()
        self._progress: dict[str, Any] = {}
        # The first metrics are a message of their own, so that merging does not swallow the first loss.
        self._first: dict[str, Any] | None = None
        self._first_taken: dict[str, Any] | None = None
        self._in_force: dict[str, Any] = {}
        self._told_end: dict[str, Any] | None = None
        self._stop: str | None = None
        self._kill_now = False
        self._slept = False
        #: The child's end of the line is the other one. What was said before it is open is said then.
        self._line: socket.socket | None = None
        self._said: dict[str, dict[str, Any]] = {"pause": {"type": "pause", "on": False}}
        self._news = threading.Event()
        self._ended = threading.Event()
        self._end: End | None = None
        self._thread = threading.Thread(target=self._run, name=f"child-of-{self._attempt.id}", daemon=True)

    def start(self) -> None:
        """Start the child."""
        self._thread.start()

    # ---- what it says ----------------------------------------------------------------------------------

    @property
    def has_progress(self) -> bool:
        """Whether the child has reported what is not taken yet."""
        with self._mutex:
            return bool(self._first or self._progress)

    def take_progress(self) -> dict[str, Any]:
        """What the child reported since the last call, the newest value of every field.

        The budget in force, the bytes that are of use and whether it stands still are in every answer, once they have
        been said: whoever missed it, or has forgotten it, hears it with the next report.
        """
        with self._mutex:
            if self._first is not None:
                self._first_taken, self._first = self._first, None
                return self._first_taken
            taken, self._progress = self._progress, {}
            return {**taken, **self._in_force}

    def give_back(self, progress: dict[str, Any]) -> None:
        """Return what was taken and could not be delivered; what has come since stands over it."""
        with self._mutex:
            if progress is self._first_taken:
                self._first = progress
            else:
                self._progress = {**progress, **self._progress}

    def wait(self, timeout_s: float | None = None) -> End | None:
        """How the child ended, waiting at most `timeout_s`; None while it runs."""
        self._ended.wait(timeout_s)
        return self._end

    def wait_for_news(self, timeout_s: float) -> End | None:
        """As `wait`, but returns as well when the child has said what is in force, or after `hurry`."""
        if not self._ended.is_set():
            self._news.wait(timeout_s)
            self._news.clear()
        return self._end

    def hurry(self) -> None:
        """End the `wait_for_news` that is going on, or the next one."""
        self._news.set()

    # ---- what it is told -------------------------------------------------------------------------------

    def stop(self, why: str, *, force: bool = False) -> None:
        """Ask the child to end for reason `why`; the first reason stands. With `force`, kill it at once."""
        with self._mutex:
            self._stop = self._stop or why
            self._kill_now = self._kill_now or force

    def ask_budget(self, budget_bytes: int, revision: int) -> None:
        """Ask the child to hold `budget_bytes`, of number `revision`, from its next step boundary on."""
        self._say({"type": "budget", "bytes": budget_bytes, "revision": revision})

    def ask_pause(self, on: bool) -> None:
        """Ask the child to stand still at its next step boundary, or to go on."""
        self._say({"type": "pause", "on": on})

    def _say(self, message: dict[str, Any]) -> None:
        """Tell the child, unless it was the last thing of its type that the child was told."""
        with self._mutex:
            if self._said.get(message["type"]) == message:
                return
            self._said[message["type"]] = message
            if self._line is not None:
                _send(self._line, message)

    # ---- the thread that stays with the child ----------------------------------------------------------

    def _run(self) -> None:
        try:
            self._end = self._start_and_follow()
        except Exception as error:  # whatever goes wrong, the head must hear of an end
            self._end = End(EndReason.WORKER_LOST, f"the child process could not be started: {error}", None)
        self._ended.set()
        self._news.set()

    def _start_and_follow(self) -> End:
        ours, theirs = socket.socketpair()
        with ours, theirs, self._folder.log.open("ab") as log:
            child = self._spawn(theirs, log.fileno())
            theirs.close()
            try:
                self._open(ours)
                self._follow(child, ours)
            finally:
                self._open(None)
                # Grandchildren (data loaders) hold device memory too. The child is not reaped before this, so
                # that the number of its group cannot pass to others.
                _signal_group(child.pid, signal.SIGKILL)
                child.wait()
            return self._judge(child.returncode)

    def _open(self, line: socket.socket | None) -> None:
        with self._mutex:
            self._line = line
            if line is not None:
                for message in self._said.values():
                    _send(line, message)

    def _spawn(self, control: socket.socket, log_fd: int) -> subprocess.Popen[bytes]:
        attempt = self._attempt
        Path(attempt.output).mkdir(parents=True, exist_ok=True)
        env = child_environment(attempt, os.environ)
        env[CONTROL_FD] = str(control.fileno())
        env[PARENT_PID] = str(os.getpid())
        # -P: the current folder is the job's output, and nothing in it may shadow a module.
        command = [sys.executable, "-P", "-m", "superpipe_cluster.execution.child"]
        child = subprocess.Popen(
            [*command, str(self._folder.root), str(attempt.epoch)],
            cwd=attempt.output,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=[control.fileno()],
            process_group=0,
        )
        note_birth(self._folder.pid, child.pid)
        return child

    def _follow(self, child: subprocess.Popen[bytes], line: socket.socket) -> None:
        """Read messages and enforce stops until the child has ended and all it said is read."""
        reader = LineReader()
        told_s: float | None = None
        signalled_s: float | None = None
        awake_s = time.monotonic()
        is_open = True
        while True:
            # A closed line would be readable for ever; then only the clock wakes this loop.
            ready, _, _ = select.select([line] if is_open else [], [], [], _POLL_S)
            if ready:
                messages = receive(line, reader)
                is_open = messages is not None
                self._note(messages or [])
            elif _has_ended(child):
                return
            with self._mutex:
                why, kill_now = self._stop, self._kill_now
            now_s = time.monotonic()
            if why is not None and told_s is None:
                told_s = now_s
                self._say({"type": "stop", "why": why})
            elif self._told_end is not None and told_s is None:
                told_s = now_s  # it is done; what keeps it from leaving gets the same patience
            if not processes.is_stopped(child.pid):
                awake_s = now_s
            elif now_s > awake_s + self._grace.sleep_s:
                self._slept = kill_now = True
            if kill_now:
                _signal_group(child.pid, signal.SIGKILL)
            elif told_s is not None and signalled_s is None and now_s > told_s + self._grace.stop_s:
                signalled_s = now_s
                _signal_group(child.pid, signal.SIGTERM)
            elif signalled_s is not None and now_s > signalled_s + self._grace.term_s:
                _signal_group(child.pid, signal.SIGKILL)

    def _note(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            kind = message.pop("type", None)
            if kind == "progress":
                with self._mutex:
                    in_force = {name: message.pop(name) for name in _IN_FORCE if name in message}
                    self._in_force.update(in_force)
                    self._progress.update(message)
                    if "metrics" in message and self._first is None and self._first_taken is None:
                        self._first, self._progress = self._progress, {}
                if in_force:
                    self._news.set()
            elif kind == "end":
                self._told_end = message

    def _judge(self, returncode: int) -> End:
        exit_code = returncode if returncode >= 0 else None
        if self._told_end is not None:
            # It had committed its work and said so; a crash while the interpreter closes changes nothing.
            reason = str(self._told_end.get("reason"))
            return End(reason, self._told_end.get("message"), exit_code)
        if self._stop is not None:
            how = "killed at once" if self._kill_now else "it did not stop by itself within its grace period"
            return End(self._stop, how, exit_code)
        if self._slept:
            asleep = f"stopped by a signal for {self._grace.sleep_s:.0f} s, then killed"
            return End(EndReason.WORKER_LOST, asleep, None)
        if returncode < 0:
            return End(EndReason.WORKER_LOST, f"killed by {_signal_name(-returncode)}", None)
        return End(EndReason.ERROR, f"the program left without a word, exit code {returncode}", exit_code)


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether the child has ended, leaving it to be reaped later: see `_start_and_follow`."""
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _send(line: socket.socket, message: dict[str, Any]) -> None:
    try:
        line.send(encode(message), socket.MSG_DONTWAIT)
    except OSError:
        return  # it has gone, or does not read; whoever asked for something asks again, or ends it


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"

"""The line between a worker actor and its child: JSON objects, one per line, over a socket pair.

Owns framing, and what the child has been told last. The child sends `{"type": "progress", ...}` and, last,
`{"type": "end", "reason", "message"}`; the actor sends `{"type": "stop", "why"}`, `{"type": "budget", "bytes",
"revision"}` and `{"type": "pause", "on"}`. Who borrows a job (`lending`) tells its lender besides that it is
`stopping`, and how it has `failed`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import dataclass, replace
from typing import Any

#: Name of the variable that tells the child its end of the line.
CONTROL_FD = "SPCLUSTER_CONTROL_FD"
#: Name of the variable that tells the child whose death it must not outlive.
PARENT_PID = "SPCLUSTER_PARENT_PID"

_CHUNK_BYTES = 65536
#: A line longer than this is no message of ours (a program that wrote into the descriptor).
_LONGEST_BYTES = 1 << 20


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":"), default=str).encode() + b"\n"


class LineReader:
    """Cuts a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages completed by `data`; what is no JSON object is dropped."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_BYTES:
            self._rest = b""
        messages: list[dict[str, Any]] = []
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                messages.append(message)
        return messages


def receive(line: socket.socket, reader: LineReader) -> list[dict[str, Any]] | None:
    """What arrives next, waiting for it; None when the other end is closed."""
    try:
        data = line.recv(_CHUNK_BYTES)
    except OSError:
        return None
    return reader.feed(data) if data else None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the actor wants of the child now.

    Attributes:
        stop: why the child is to stop; None while it is not.
        budget_bytes: the newest budget it was asked to hold; None before the first.
        revision: number of that budget, 0 before the first.
        pause: whether it is to stand still.
    """

    stop: str | None = None
    budget_bytes: int | None = None
    revision: int = 0
    pause: bool = False

    def after(self, message: dict[str, Any]) -> Wishes:
        """These wishes once `message` has come. The first stop stands, and the budget with the highest number."""
        match message:
            case {"type": "stop", "why": why}:
                return replace(self, stop=self.stop or str(why))
            case {"type": "budget", "bytes": int(budget_bytes), "revision": int(revision)}:
                if revision > self.revision:
                    return replace(self, budget_bytes=budget_bytes, revision=revision)
            case {"type": "pause", "on": bool(pause)}:
                return replace(self, pause=pause)
            case _:
                pass
        return self


class ChildLine:
    """The child's end: sends from any thread, and listens in a thread of its own."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._mutex = threading.Lock()
        self._changed = threading.Condition()
        self._wishes = Wishes()
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    @classmethod
    def inherited(cls) -> ChildLine:
        """The line whose descriptor the actor passed on; processes of the program do not get it."""
        descriptor = int(os.environ.pop(CONTROL_FD))
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor))

    @property
    def wishes(self) -> Wishes:
        """What the actor wants now."""
        return self._wishes

    def wait_for_others(self, than: Wishes) -> Wishes:
        """What the actor wants, once that is something else than `than`."""
        with self._changed:
            self._changed.wait_for(lambda: self._wishes != than)
            return self._wishes

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. An actor that has gone is no error: the kernel ends the child with it."""
        try:
            with self._mutex:
                self._line.sendall(encode(message))
        except OSError:
            return

    def _listen(self) -> None:
        reader = LineReader()
        while (messages := receive(self._line, reader)) is not None:
            for message in messages:
                with self._changed:
                    self._wishes = self._wishes.after(message)
                    self._changed.notify_all()

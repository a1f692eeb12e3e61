"""Lending a job to a process of its program: that process streams, reports and saves in the job's name.

Owns the socket `line` in the job's folder, and both ends of it: messages pass through in both directions, as they are
in `control`. What the borrower does with the job is `current`'s.

[Note: one at a time] A program may start many processes: a shell runs one command after another, a trainer has loaders.
The first that asks has the job until it ends or closes its end; others are told that it is taken. The next one begins
with the budget that is in force then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from superpipe_cluster.execution.control import ChildLine, LineReader, Wishes, encode, receive
from superpipe_cluster.execution.layout import JobFolder

#: Seconds for which a borrower that has just ended may keep the next one waiting.
_PATIENCE_S = 2.0


@dataclass(slots=True)
class Loan:
    """What the borrowers have told beside their progress.

    Attributes:
        stopping: whether one has taken notice of a stop.
        failure: `EndReason` and sentence of an exception that ended one; None when none did.
        budget_bytes: the budget in force.
    """

    budget_bytes: int
    stopping: bool = False
    failure: tuple[str, str] | None = None
    _holder: threading.Thread | None = field(default=None, repr=False)


@contextlib.contextmanager
def lend(line: ChildLine, folder: JobFolder, budget_bytes: int) -> Iterator[Loan]:
    """Let processes that know `folder` borrow the job whose line this is, for the length of a `with` block."""
    loan = Loan(budget_bytes)
    folder.line.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door, _reachable(folder.root) as root:
        door.bind(f"{root}/{folder.line.name}")
        door.listen()
        threading.Thread(target=_serve, args=(door, line, loan), name="lending", daemon=True).start()
        try:
            yield loan
        finally:
            folder.line.unlink(missing_ok=True)


def borrow(root: Path) -> tuple[ChildLine, int] | None:
    """The line of the job in folder `root`, and the budget in force; None when another process has it.

    Raises:
        OSError: nobody lends it.
    """
    line = socket.socket(socket.AF_UNIX)
    with _reachable(root) as folder:
        line.connect(f"{folder}/{JobFolder(root).line.name}")
    # Byte by byte up to the end of the line: what follows is for the ChildLine.
    with line.makefile("rb", buffering=0) as answer:
        said = LineReader().feed(answer.readline())
    if not said:
        raise ConnectionError("the lender has gone")
    if said[0]["type"] != "welcome":
        line.close()
        return None
    return ChildLine(line), int(said[0]["budget_bytes"])


@contextlib.contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """A short name for a folder: a socket's path has 107 bytes at most."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _serve(door: socket.socket, line: ChildLine, loan: Loan) -> None:
    while True:
        try:
            borrower, _ = door.accept()
        except OSError:  # closed
            return
        if loan._holder is not None:
            loan._holder.join(_PATIENCE_S)
            if loan._holder.is_alive():
                with borrower:
                    _tell(borrower, {"type": "taken"})
                continue
        _tell(borrower, {"type": "welcome", "budget_bytes": loan.budget_bytes})
        loan._holder = threading.Thread(target=_listen, args=(borrower, line, loan), daemon=True)
        loan._holder.start()
        threading.Thread(target=_pass_on, args=(borrower, line), daemon=True).start()


def _listen(borrower: socket.socket, line: ChildLine, loan: Loan) -> None:
    """What the borrower says, until it ends."""
    reader = LineReader()
    with borrower:
        while (messages := receive(borrower, reader)) is not None:
            for message in messages:
                if message.get("type") == "progress":
                    loan.budget_bytes = message.get("budget_bytes", loan.budget_bytes)
                    line.send(message)
                elif message.get("type") == "stopping":
                    loan.stopping = True
                elif message.get("type") == "failed":
                    loan.failure = (str(message.get("reason")), str(message.get("message")))


def _pass_on(borrower: socket.socket, line: ChildLine) -> None:
    """What the actor wants, as long as it can be told."""
    told, now = Wishes(), line.wishes
    while all(_tell(borrower, message) for message in _said(told, now)):
        told, now = now, line.wait_for_others(now)


def _said(before: Wishes, now: Wishes) -> Iterator[dict[str, Any]]:
    """The messages that make `now` of `before`."""
    if now.stop != before.stop:
        yield {"type": "stop", "why": now.stop}
    if now.revision != before.revision:
        yield {"type": "budget", "bytes": now.budget_bytes, "revision": now.revision}
    if now.pause != before.pause:
        yield {"type": "pause", "on": now.pause}


def _tell(borrower: socket.socket, message: dict[str, Any]) -> bool:
    try:
        borrower.sendall(encode(message))
    except OSError:
        return False
    return True

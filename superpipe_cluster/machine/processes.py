"""Processes of this machine, found and ended by group, session or a mark in their environment.

Owns reading the process table and sending signals. Every function works on what /proc says now; a pid alone
is never trusted over time, because numbers are used again: see `Birth`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Birth:
    """A process named for good, by number and start time (clock ticks): numbers are used again."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table. Zombies are not listed: they hold nothing but their number."""

    pid: int
    parent: int
    group: int
    session: int
    started: int


def process(pid: int) -> Process | None:
    """The living process of this number."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The second field is the name in parentheses and may itself hold spaces and parentheses.
    fields = stat[stat.rindex(")") + 2 :].split()
    # A process that dies has a zombie for its first thread while others are still at it, and its files open.
    if fields[0] in "ZX" and int(fields[17]) <= 1:
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def birth(pid: int) -> Birth | None:
    """Name the living process `pid` for later."""
    found = process(pid)
    return Birth(pid, found.started) if found else None


def is_alive(who: Birth) -> bool:
    """Whether that very process still lives."""
    return birth(who.pid) == who


def is_stopped(pid: int) -> bool:
    """Whether the process stands still because of a signal (SIGSTOP), and not because it waits for something."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return False
    return stat[stat.rindex(")") + 2] == "T"


def all_processes() -> list[Process]:
    """The process table."""
    pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    return [found for pid in pids if (found := process(pid)) is not None]


def group_members(leader: Birth) -> list[int]:
    """Pids of the process group that `leader` founded, the leader itself included while it lives.

    The kernel gives no new process the number of a group that still has members, so while the leader lives or
    has left members behind, the number means this group. When the number has passed to another process, the
    group is gone.
    """
    now = process(leader.pid)
    if now is not None and now.started != leader.started:
        return []
    return [member.pid for member in all_processes() if member.group == leader.pid]


def marked(name: str, value: str) -> list[int]:
    """Pids that were started with `name=value` in their environment, as far as it may be read."""
    needle = f"{name}={value}".encode()
    found: list[int] = []
    for entry in all_processes():
        try:
            environment = (_PROC / str(entry.pid) / "environ").read_bytes()
        except OSError:
            continue
        if needle in environment.split(b"\0"):
            found.append(entry.pid)
    return found


def title(pid: int) -> str:
    """The command line of a process, empty when it has gone."""
    try:
        raw = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each; those that have gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def end(find: Callable[[], list[int]], grace_s: float) -> list[int]:
    """End all that `find` lists: SIGTERM, after `grace_s` SIGKILL; return the pids left even so.

    `find` is asked again and again, so that what those being ended start meanwhile is found too.
    """
    deadline = time.monotonic() + grace_s
    send(find(), signal.SIGTERM)
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    deadline = time.monotonic() + 5.0
    while left and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        time.sleep(_POLL_S)
        left = find()
    return left

"""Logs, waiting and cancelling, each as a process of its own; and what a terminal shows."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess

from commands import PROGRAM, ask, environment
from serving import Head, submitted


def test_logs(head: Head) -> None:
    job_id = submitted(head)
    head.service.write_log(job_id, b"one\ntwo\nthree\n")
    assert ask(head, "logs", job_id).stdout == "one\ntwo\nthree\n"
    assert ask(head, "logs", job_id, "--tail", "2").stdout == "two\nthree\n"
    assert ask(head, "logs", job_id, who="bob").returncode == 6


def test_ctrl_c_while_following_detaches_and_says_so(head: Head) -> None:
    job_id = submitted(head)
    head.service.run(job_id)
    head.service.write_log(job_id, b"hello\n")
    with subprocess.Popen(
        [*PROGRAM, "logs", "-f", job_id],
        env=environment(**head.environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"hello\n"
        following.send_signal(signal.SIGINT)
        assert following.wait(timeout=20) == 130
        assert following.stderr is not None
        said = following.stderr.read().decode()
    assert f"detached: job {job_id} goes on" in said
    assert "Traceback" not in said
    assert head.service.store.get(job_id).state == "RUNNING"


def test_following_announces_a_restart_of_the_head(head: Head) -> None:
    job_id = submitted(head)
    head.service.run(job_id)
    head.service.write_log(job_id, b"before\n")
    with subprocess.Popen(
        [*PROGRAM, "logs", "-f", job_id],
        env=environment(**head.environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stdout.readline() == "before\n"
        head.stop()
        head.service.write_log(job_id, b"meanwhile\n")
        lines = iter(following.stderr.readline, "")
        assert any("does not answer" in line and "trying again" in line for line in lines)
        head.start()
        assert following.stdout.readline() == "meanwhile\n"
        head.service.finish(job_id)
        assert following.wait(timeout=20) == 0
        assert following.stdout.read() == ""


def test_a_reader_that_has_enough_is_no_error(head: Head) -> None:
    job_id = submitted(head)
    head.service.write_log(job_id, b"line\n" * 200_000)
    with subprocess.Popen(
        [*PROGRAM, "logs", job_id],
        env=environment(**head.environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as printing:
        assert printing.stdout is not None
        assert printing.stdout.readline() == b"line\n"
        printing.stdout.close()
        assert printing.stderr is not None
        assert printing.stderr.read() == b""
        printing.wait(timeout=20)


def test_cancel_tries_all_and_reports_the_worst(head: Head) -> None:
    first, second = submitted(head, "first"), submitted(head, "second")
    foreign = submitted(head, "foreign", who="bob")
    said = ask(head, "cancel", first, "99", foreign, second)
    assert said.returncode == 6
    assert said.stdout == f"{first} first cancelled\n{second} second cancelled\n"
    assert "no job `99`" in said.stderr
    assert "belongs to bob" in said.stderr
    assert ask(head, "cancel", first).returncode == 3


def test_wait_for_several(head: Head) -> None:
    good, bad = submitted(head, "good"), submitted(head, "bad")
    head.service.run(good)
    head.service.finish(good)
    assert ask(head, "wait", good).returncode == 0
    late = ask(head, "wait", good, bad, "--timeout", "0.3")
    assert late.returncode == 124
    assert "still QUEUED" in late.stderr
    ask(head, "cancel", bad)
    both = ask(head, "wait", good, bad)
    assert both.returncode == 130
    assert both.stdout.splitlines() == ["job 1 (good) succeeded after 0.0s", "job 2 (bad) cancelled"]


# ---- on a terminal --------------------------------------------------------------------------------


def on_terminal(*arguments: str, until: str, **changes: str) -> str:
    """What a command prints on a terminal of 80 columns, up to `until` at least."""
    control, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=environment(TERM="xterm-256color", **changes),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    seen = b""
    while until.encode() not in seen:
        ready, _, _ = select.select([control], [], [], 30)
        assert ready, seen
        try:
            seen += os.read(control, 65536)
        except OSError:  # the other end is closed
            break
    process.terminate()
    process.wait(timeout=20)
    os.close(control)
    return seen.decode()


def test_colours_on_a_terminal_and_not_against_no_color(head: Head) -> None:
    head.service.run(submitted(head, "shown"))
    assert re.search(r"\x1b\[\d*;?3\d", on_terminal("queue", until="shown", **head.environment()) + "")
    plain = on_terminal("queue", until="shown", NO_COLOR="1", **head.environment())
    assert not re.search(r"\x1b\[[\d;]*3\d", plain)


def test_a_bar_on_a_terminal(head: Head) -> None:
    job_id = submitted(head, "barred")
    head.service.run(job_id)
    head.service.report(job_id, step=3, steps=10, metrics={"loss": 2.5})
    head.service.write_log(job_id, b"a line of the log\n")
    seen = on_terminal("logs", "-f", job_id, until="loss 2.5", **head.environment())
    assert "3/10" in seen
    assert "barred" in seen

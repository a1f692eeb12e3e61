"""What the cluster says of itself: usage, events, quotas, windows, and the devices right now."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess

from commands import PROGRAM, ask, environment
from serving import GIB, Head, submitted

# ---- usage, events, quotas, windows ----------------------------------------------------------------


def test_usage_by_user_and_by_job(head: Head) -> None:
    assert ask(head, "usage").stderr
    job_id = submitted(head, "mine")
    head.service.run(job_id)
    head.service.finish(job_id)
    by_user = ask(head, "usage")
    assert by_user.stdout.split()[:8] == [
        "USER",
        "JOBS",
        "GIB-H",
        "LINK",
        "WAITED",
        "RAN",
        "SLOWDOWN",
        "SHARE",
    ]
    assert "alice" in by_user.stdout
    assert re.search(rf"^ *{job_id} +mine +alice +succeeded", ask(head, "usage", "-j").stdout, re.MULTILINE)
    answer = json.loads(ask(head, "usage", "--since", "1d", "-o", "json").stdout)
    assert [used["id"] for used in answer["jobs"]] == [job_id]
    assert ask(head, "usage", "--since", "yesterday").returncode == 2


def test_events_are_told_as_they_happen(head: Head) -> None:
    first = submitted(head, "mine")
    head.service.run(first)
    said = ask(head, "events").stdout.splitlines()
    assert [line.split()[3] for line in said] == ["submitted", "placed", "started"]
    assert len(ask(head, "events", "-n", "1").stdout.splitlines()) == 1
    listed = json.loads(ask(head, "events", "-o", "json").stdout)
    assert [one["kind"] for one in listed] == ["submitted", "placed", "started"]
    with subprocess.Popen(
        [*PROGRAM, "events", "-f", "-n", "0", "-o", "json"],
        env=environment(**head.environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        assert "follow" in following.stderr.readline()
        head.service.finish(first)
        assert json.loads(following.stdout.readline())["kind"] == "exited"
        following.send_signal(signal.SIGINT)
        assert following.wait(timeout=20) == 130
        assert following.stderr.read() == ""


def test_quotas_are_set_listed_and_removed_by_admins(head: Head) -> None:
    assert "nobody has a quota" in ask(head, "quota", "list").stderr
    said = ask(
        head, "quota", "set", "alice", "--guaranteed", "1GiB", "--limit", "2GiB", "--weight", "2", who="admin"
    )
    assert said.returncode == 0, said.stderr
    assert re.search(r"alice +1\.0 GiB +2\.0 GiB +2$", said.stdout, re.MULTILINE)
    assert ask(head, "quota", "list").stdout == said.stdout
    (quota,) = json.loads(ask(head, "quota", "list", "-o", "json").stdout)
    assert (quota["user"], quota["guaranteed_bytes"], quota["limit_bytes"], quota["weight"]) == (
        "alice",
        GIB,
        2 * GIB,
        2,
    )
    assert ask(head, "quota", "set", "bob", "--limit", "2GiB").returncode == 6
    wrong = ask(head, "quota", "set", "bob", "--limit", "9", who="admin")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--limit: a size needs a unit, got 9\nhint: write 9GiB" in wrong.stderr
    assert ask(head, "quota", "remove", "alice", who="admin").returncode == 0
    assert ask(head, "quota", "remove", "alice", who="admin").returncode == 3


def test_windows_are_set_listed_and_removed_by_admins(head: Head) -> None:
    assert "no windows" in ask(head, "windows", "list").stderr
    said = ask(
        head, "windows", "set", "nights", "--days", "mon-fri", "--start", "22:00", "--end", "07:00",
        "--timezone", "Europe/Berlin", "--interactive-floor", "1GiB", who="admin",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert re.search(
        r"nights +mon-fri +22:00-07:00 +Europe/Berlin +1\.0 GiB +(open, closes|closed, opens) in ",
        said.stdout,
    )
    (window,) = json.loads(ask(head, "windows", "list", "-o", "json").stdout)
    assert (window["name"], window["interactive_floor_bytes"]) == ("nights", GIB)
    wrong = ask(
        head, "windows", "set", "x", "--start", "25:00", "--end", "1:00", "--timezone", "UTC", who="admin"
    )
    assert wrong.returncode == 2
    assert ask(head, "windows", "remove", "nights").returncode == 6
    assert ask(head, "windows", "remove", "nights", who="admin").returncode == 0
    assert ask(head, "windows", "remove", "nights", who="admin").returncode == 3


# ---- top -------------------------------------------------------------------------------------------


def test_top_draws_the_device_and_lists_its_jobs(head: Head) -> None:
    job_id = submitted(head, "big", who="bob")
    head.service.run(job_id, 2 * GIB)
    head.service.report(job_id, step=3, steps=10, k=5, units=14, held_bytes=GIB, step_s=1.25)
    submitted(head, "waits")
    said = ask(head, "top")
    assert said.returncode == 0, said.stderr
    assert "\x1b" not in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 80
    bar = next(line for line in said.stdout.splitlines() if line.startswith(job_id) and "█" in line)
    assert (len(bar), bar.count("▒"), bar.count("·")) == (80, 26, 27)
    assert re.search(r"big +bob +1\.0 GiB +2\.0 GiB +5/14 +3/10 +1\.25 s", said.stdout)
    assert "1 on a device, 1 waiting" in said.stdout
    answer = json.loads(ask(head, "top", "-o", "json").stdout)
    assert answer["devices"][0]["jobs"][0]["id"] == job_id


def test_top_on_a_terminal_goes_on_until_it_is_interrupted(head: Head) -> None:
    head.service.run(submitted(head, "seen"))
    control, terminal = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, "top"],
        env=environment(TERM="xterm-256color", **head.environment()),
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
    ) as watching:
        os.close(terminal)
        seen = b""
        while seen.count(b"seen") < 2:
            seen += os.read(control, 65536)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=20) == 0
        assert watching.stderr is not None
        assert b"Traceback" not in watching.stderr.read()
    os.close(control)

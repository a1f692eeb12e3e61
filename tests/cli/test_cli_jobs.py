"""The verbs about jobs, each as a process of its own against a real API."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import PROGRAM, environment, spcluster
from serving import GIB, Head, job, serving
from superpipe_cluster.client import Client
from superpipe_cluster.spec import parse
from waiting import wait_until

LISTED = {
    "id", "name", "user", "kind", "state", "reason", "device", "budget_bytes", "k", "units", "loads",
    "peak_bytes", "step", "steps", "submitted_at", "started_at", "ended_at", "attempt",
}  # fmt: skip

JOB_FILE = """\
kind: train
model: {config: {model_type: llama, hidden_size: 64}}
data: {files: ["python-stdlib:"]}
train: {steps: 10}
"""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    folder = tmp_path / "logs"
    folder.mkdir()
    with serving(folder) as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(JOB_FILE, encoding="utf-8")
    return path


def ask(head: Head, *arguments: str, who: str = "alice", **changes: str) -> subprocess.CompletedProcess[str]:
    return spcluster(*arguments, **head.environment(who), **changes)


def submitted(head: Head, name: str = "small", who: str = "alice", **fields: object) -> str:
    with Client(head.url, head.tokens[who]) as client:
        return client.submit(parse(job(name, **fields))).id


def eventually(head: Head, act: Callable[[str], Any]) -> threading.Thread:
    """Once a job is there, run it and then do something about it, beside the command under test."""

    def follow() -> None:
        (record,) = wait_until(lambda: head.service.store.list_jobs(active_only=True), "a job is submitted")
        head.service.run(record.id)
        act(record.id)

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


# ---- submit ---------------------------------------------------------------------------------------


def test_submit_says_what_to_expect_and_what_to_type_next(head: Head, file: Path) -> None:
    said = ask(head, "submit", str(file), "--set", "train.steps=7", "-n", "mine")
    assert said.returncode == 0
    assert "job 1 (mine) is queued" in said.stdout
    assert "5..13/14" in said.stdout
    assert "1.0 GiB..2.0 GiB" in said.stdout
    assert said.stdout.rstrip().endswith("spcluster logs -f 1")
    assert head.service.store.get("1").spec["train"]["steps"] == 7
    assert ask(head, "submit", str(file), "-q").stdout == "2\n"
    assert json.loads(ask(head, "submit", str(file), "-o", "json").stdout)["id"] == "3"


def test_a_dry_run_needs_no_cluster(file: Path) -> None:
    said = spcluster("submit", str(file), "--dry-run")
    assert said.returncode == 0
    assert "no mistakes" in said.stdout
    assert (
        json.loads(spcluster("submit", str(file), "--dry-run", "-o", "json").stdout)["train"]["steps"] == 10
    )


def test_five_mistakes_are_five_located_errors(head: Head, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "kind: train\n"
        "model: {sorce: somewhere}\n"
        "data: {files: []}\n"
        "train: {steps: 0, lr: fast}\n"
        "resources: {gpu_memory: 12}\n",
        encoding="utf-8",
    )
    said = ask(head, "submit", str(path))
    assert said.returncode == 2
    assert said.stdout == ""
    located = re.findall(rf"^{re.escape(str(path))}:\d+:\d+: \S+: .+$", said.stderr, re.MULTILINE)
    assert len(located) >= 5
    assert "did you mean `source`?" in said.stderr
    assert head.service.store.list_jobs() == []


def test_missing_files_and_programs_are_found_before_anything_is_sent(head: Head, file: Path) -> None:
    for change in ("data.files=[gone.txt]", "worker=./gone.py"):
        said = ask(head, "submit", str(file), "--set", change)
        assert said.returncode == 2
        assert "gone." in said.stderr
    assert ask(head, "submit", "jobs:no-such-job").returncode == 3
    assert ask(head, "submit", str(file.parent)).returncode == 2
    assert head.service.store.list_jobs() == []


def test_redis_gone_during_submit(head: Head, file: Path) -> None:
    head.service.away = True
    said = ask(head, "submit", str(file))
    assert (said.returncode, said.stdout) == (5, "")
    assert said.stderr == "error: Redis does not answer\nhint: `spcluster doctor` says what is wrong\n"
    assert head.service.store.list_jobs() == []


@pytest.mark.parametrize(
    ("reason", "message", "own_code", "code"),
    [("ok", None, 0, 0), ("error", "boom", 3, 3), ("error", "boom", None, 1), ("oom", "too big", -9, 1)],
)
def test_wait_exits_as_the_job_did(
    head: Head, file: Path, reason: str, message: str | None, own_code: int | None, code: int
) -> None:
    thread = eventually(head, lambda job_id: head.service.finish(job_id, reason, message, own_code))
    said = ask(head, "submit", str(file), "--wait", "-q")
    thread.join()
    assert said.returncode == code
    assert ("succeeded" if code == 0 else f"failed after 0.0s: {reason}: {message}") in said.stderr


def test_follow_prints_the_log_as_it_is(head: Head, file: Path) -> None:
    log = "step 1\rstep 2\n\x1b[31mrot\x1b[0m größe [b]no markup[/b]\nno line end"

    def work(job_id: str) -> None:
        head.service.write_log(job_id, log.encode())
        head.service.finish(job_id, "error", "boom", 7)

    thread = eventually(head, work)
    said = subprocess.run(
        [*PROGRAM, "submit", str(file), "-f", "-q"],
        env=environment(**head.environment()),
        capture_output=True,
        timeout=60,
    )
    thread.join()
    assert said.returncode == 7
    assert said.stdout == b"1\n" + log.encode()
    assert b"failed" in said.stderr


# ---- queue, show, gpus ----------------------------------------------------------------------------


def test_the_queue_as_json_is_a_list_of_flat_objects(head: Head) -> None:
    assert json.loads(ask(head, "queue", "-a", "-o", "json").stdout) == []
    mine, other = submitted(head), submitted(head, "other", who="bob")
    head.service.run(mine)
    head.service.report(mine, step=3, steps=10, k=5, units=14, loads=9, metrics={"loss": 2.5})
    head.service.run(other)
    head.service.finish(other)
    listed = json.loads(ask(head, "queue", "-a", "-o", "json").stdout)
    assert [each["id"] for each in listed] == [mine, other]
    for each in listed:
        assert set(each) >= LISTED
        assert not any(isinstance(value, dict) for value in each.values())
    assert (listed[0]["loss"], listed[0]["k"], listed[0]["loads"]) == (2.5, 5, 9)
    assert [each["id"] for each in json.loads(ask(head, "queue", "-o", "json").stdout)] == [mine]
    assert [
        each["user"] for each in json.loads(ask(head, "queue", "-a", "-u", "bob", "-o", "json").stdout)
    ] == ["bob"]


def test_tables_fit_80_columns(head: Head) -> None:
    names = ("x" * 63, "y" * 63)
    with Client(head.url, head.tokens["admin"]) as admin:
        head.tokens["z" * 63] = admin.add_user("z" * 63).token
    for number, name in enumerate(names * 3):
        job_id = submitted(head, name, who="z" * 63)
        head.service.run(job_id, 2**40 + number)
        head.service.report(
            job_id, step=123_456_789, steps=987_654_321, k=1234, units=5678, loads=10**9, held_bytes=2**40,
            link_bytes=10**15, stall_s=1e6, peak_bytes=2**40, metrics={f"m_{i}": 1e-9 for i in range(40)},
        )  # fmt: skip
    head.service.finish("3", "bad_input", "m" * 300, 1)
    for arguments in (
        ("queue",),
        ("queue", "-a"),
        ("gpus",),
        ("show", "1"),
        ("show", "3"),
        ("user", "list"),
        ("doctor",),
    ):
        said = ask(head, *arguments, who="admin")
        assert said.returncode == 0, said.stderr
        assert "\x1b" not in said.stdout
        lines = said.stdout.splitlines()
        assert lines
        assert max(map(len, lines)) <= 80, arguments
        assert all(line == line.rstrip() for line in lines)
    rows = ask(head, "queue", "-a").stdout.splitlines()[1:]
    assert len(rows) == 6
    assert all("…" in row for row in rows)
    wide = ask(head, "queue", COLUMNS="200").stdout
    assert "x" * 30 in wide


def test_show_tells_the_story_to_its_owner_only(head: Head) -> None:
    job_id = submitted(head, "mine")
    head.service.run(job_id)
    said = ask(head, "show", "mine")
    assert said.returncode == 0
    for word in ("mine", "alice", "running", "submitted", "placed", "started", "cpu:0"):
        assert word in said.stdout
    assert json.loads(ask(head, "show", job_id, "-o", "json").stdout)["spec"]["train"]["steps"] == 10
    other = ask(head, "show", job_id, who="bob")
    assert (other.returncode, other.stdout) == (6, "")
    assert "belongs to alice" in other.stderr
    assert ask(head, "show", "77").returncode == 3
    assert ask(head, "show", "../1").returncode == 2


def test_an_empty_queue_prints_no_data(head: Head) -> None:
    said = ask(head, "queue")
    assert (said.returncode, said.stdout) == (0, "")
    assert said.stderr


def test_gpus_show_the_ledger(head: Head) -> None:
    head.service.run(submitted(head, "big"), GIB)
    said = ask(head, "gpus")
    assert "cpu:0" in said.stdout
    assert "big" in said.stdout
    (device,) = json.loads(ask(head, "gpus", "-o", "json").stdout)
    assert (device["used_bytes"], device["jobs"][0]["name"]) == (GIB, "big")


def test_watch_goes_on_until_it_is_interrupted(head: Head) -> None:
    submitted(head, "seen")
    with subprocess.Popen(
        [*PROGRAM, "queue", "-w"],
        env=environment(**head.environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as watch:
        assert watch.stdout is not None
        seen = b""
        while seen.count(b"seen") < 2:
            seen += os.read(watch.stdout.fileno(), 4096)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(timeout=20) == 0
        assert watch.stderr is not None
        assert b"Traceback" not in watch.stderr.read()


# ---- logs, cancel, wait ---------------------------------------------------------------------------


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

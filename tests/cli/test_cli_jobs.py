"""The verbs about jobs, each as a process of its own against a real API."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import PROGRAM, Said, ask, environment, process, spcluster
from serving import GIB, Head, submitted
from superpipe_cluster.client import Client
from waiting import wait_until

LISTED = {
    "id", "name", "user", "kind", "state", "reason", "device", "budget_bytes", "k", "units", "loads",
    "peak_bytes", "step", "steps", "submitted_at", "started_at", "ended_at", "attempt",
}  # fmt: skip


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
    # Once as a process, from its entry point to its exit code.
    assert process("submit", str(file), "-q", **head.environment()) == Said(0, "4\n", "")


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
        ("top",),
        ("usage",),
        ("usage", "-j"),
        ("events",),
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

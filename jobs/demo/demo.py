"""The demo: two users' models, together larger than the device, train on it at the same time.

Run it with `make demo`. It does what a person would do, through the same commands, in a home folder of its own; at the
end the cluster is down and no process is left.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpipe_cluster.machine import nvml

HERE = Path(__file__).parent
ENDED = {"SUCCEEDED", "FAILED", "CANCELLED"}
PATIENCE_S = 280.0
COLUMNS = ("JOB", "BUDGET", "K/N", "LOADS", "PEAK", "MODEL", "FIRST", "LAST", "BOTH")


def main() -> int:
    """Run it; the exit code is 0 when everything that it claims was so."""
    with tempfile.TemporaryDirectory(prefix="spcluster-demo-") as home:
        admin = Person("admin", {**os.environ, "SPCLUSTER_HOME": home, "COLUMNS": "80"})
        try:
            scale = ON_GPU if nvml.gpus() else IN_RAM
            admin.does("up", "--device", scale.device, "--port", str(free_port()))
            return show(admin, scale)
        finally:
            admin.does("down")


def show(admin: Person, scale: Scale) -> int:
    """Two users submit; the queue is watched until all jobs have ended; what happened is tabled and checked."""
    astro, bio = (admin.adds(name) for name in ("astro", "bio"))
    astro.does("submit", str(HERE / "astro.yaml"), *scale.astro)
    bio.does("submit", str(HERE / "bio.yaml"), *scale.bio)
    astro.does("submit", str(HERE / "answer.yaml"), *scale.answer)
    print()
    watch(admin)

    jobs = {job["name"]: job for job in admin.asks("queue", "-a")}
    capacity = admin.asks("gpus")[0]["capacity_bytes"]
    training = [jobs["astro-llama"], jobs["bio-gpt2"]]
    both_s = max(
        0.0, min(job["ended_at"] or 0 for job in training) - max(job["started_at"] or 0 for job in training)
    )
    print("\n" + table([row(job, both_s if job in training else None) for job in jobs.values()]))
    models = sum(job["model_bytes"] for job in training)
    print(
        f"\nThe two models are {mib(models)} together and the device is {mib(capacity)}: more than it can hold,"
        f"\nand they trained on it side by side for {both_s:.0f} s."
    )
    answers = Path(jobs["astro-answer"]["output"]) / "completions.jsonl"
    if answers.exists():
        print("\nThe trained model goes on (it had a minute of training):")
        for line in answers.read_text(encoding="utf-8").splitlines():
            said = json.loads(line)
            print(f"  {said['prompt'] + said['completion']!r}"[:78])

    shortest = min(job["ended_at"] - job["started_at"] for job in training)
    claims = {
        "every job succeeded": all(job["state"] == "SUCCEEDED" for job in jobs.values()),
        "both losses fell": all(job["loss"] < job["first_loss"] for job in training),
        "the models together exceed the device": models > capacity,
        "each peak was within its budget": all(
            0 < job["peak_bytes"] <= job["budget_bytes"] for job in jobs.values()
        ),
        "units came and went, never more than k": all(
            job["loads"] > job["units"] and job["peak_units"] <= job["k"] for job in jobs.values()
        ),
        "both trained together for most of the time": both_s > 0.5 * shortest,
    }
    print()
    for claim, holds in claims.items():
        print(f"  {'yes' if holds else 'NO '}  {claim}")
    print()
    return 0 if all(claims.values()) else 1


@dataclass(frozen=True)
class Scale:
    """A device, and the options of `submit` that make the models as large as the demo needs them there."""

    device: str
    astro: tuple[str, ...] = ()
    bio: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()


def options(*settings: str) -> tuple[str, ...]:
    """`--set` for each setting."""
    return tuple(word for setting in settings for word in ("--set", setting))


#: A machine without a GPU: the job files as they are.
IN_RAM = Scale("cpu:72MiB@1GB/s")
#: A part of the first GPU, and 2.3 GiB of weights in each model.
ON_GPU = Scale(
    "cuda:0=4GiB",
    astro=options(
        "model.config.hidden_size=2048", "model.config.intermediate_size=5504", "model.config.num_attention_heads=16",
        "model.config.num_hidden_layers=12", "train.checkpoint_every=40", "resources.gpu_memory=2GiB",
    ),
    bio=options(
        "model.config.n_embd=2048", "model.config.n_head=16", "model.config.n_layer=12", "train.checkpoint_every=40",
        "resources.gpu_memory=2GiB",
    ),
    answer=options("resources.gpu_memory=2GiB"),
)  # fmt: skip


class Person:
    """Someone with a shell, whose commands are shown."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self._environment = environment

    def adds(self, user: str) -> Person:
        """Make an account; the token goes into the new person's environment."""
        print(f"\n{self.name}$ spcluster user add {user}", flush=True)
        token = json.loads(self._run("user", "add", user, "-o", "json").stdout)["token"]
        return Person(user, {**self._environment, "SPCLUSTER_TOKEN": token})

    def does(self, *arguments: str) -> None:
        """Type a command; its output is shown as it comes."""
        shown = " ".join(str(Path(a).name) if a.startswith("/") else a for a in arguments)
        print(f"\n{self.name}$ spcluster {shown}", flush=True)
        subprocess.run(command(*arguments), env=self._environment, check=True)

    def asks(self, *arguments: str) -> list[dict[str, Any]]:
        """A listing as data."""
        return json.loads(self._run(*arguments, "-o", "json").stdout)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), env=self._environment, check=True, stdout=subprocess.PIPE, text=True
        )


def command(*arguments: str) -> list[str]:
    """An `spcluster` command line."""
    return [sys.executable, "-m", "superpipe_cluster", *arguments]


def free_port() -> int:
    """A port of its own, so that the demo runs beside another cluster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def watch(admin: Person) -> None:
    """A line whenever a job has come further, until all have ended."""
    seen: dict[str, tuple[object, ...]] = {}
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        jobs = admin.asks("queue", "-a")
        for job in sorted(jobs, key=lambda job: int(job["id"])):
            now = (job["state"], (job["step"] or 0) // 20)
            if seen.get(job["id"]) != now:
                seen[job["id"]] = now
                print(f"  {job['name']:14} {job['state'].lower():10} {progress(job)}", flush=True)
        if all(job["state"] in ENDED for job in jobs):
            return
        time.sleep(1.0)
    print("  the jobs took too long")


def progress(job: dict[str, Any]) -> str:
    """How far a job is, or why it waits."""
    if job["state"] == "QUEUED":
        return f"waiting: {job['reason'] or 'just arrived'}"
    if not job["steps"]:
        return ""
    loss = f"  loss {job['loss']:.3f}" if job.get("loss") is not None else ""
    return f"step {job['step']}/{job['steps']}{loss}"


def row(job: dict[str, Any], both_s: float | None) -> tuple[str, ...]:
    """A job's line of the table."""
    return (
        job["name"],
        mib(job["budget_bytes"]),
        f"{job['k']}/{job['units']}",
        str(job["loads"]),
        mib(job["peak_bytes"]),
        mib(job["model_bytes"]),
        f"{job['first_loss']:.3f}" if job["first_loss"] is not None else "-",
        f"{job['loss']:.3f}" if job.get("loss") is not None else "-",
        f"{both_s:.0f} s" if both_s is not None else "-",
    )


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as they need to be."""
    widths = [max(len(cell) for cell in column) for column in zip(COLUMNS, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (COLUMNS, *rows)
    )


def mib(nbytes: int) -> str:
    """Bytes for people."""
    return f"{nbytes / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())

"""What the program loads, and how it talks before it does anything."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from commands import PROGRAM, environment, spcluster
from superpipe_cluster.cli.main import VERBS

HEAVY = ("torch", "ray", "redis", "pydantic", "httpx", "fastapi", "rich", "yaml")


def loaded_by(*arguments: str, **changes: str) -> set[str]:
    """The top-level modules that a command line imports."""
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "superpipe_cluster", *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = (line for line in ran.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("no-such-verb",)])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "click" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "arguments", [("queue",), ("submit", "no.yaml"), ("up", "--help"), ("doctor",), ("cancel", "1")]
)
def test_no_verb_loads_torch_or_ray(arguments: tuple[str, ...]) -> None:
    loaded = loaded_by(*arguments)
    assert "click" in loaded
    assert not loaded & {"torch", "ray"}


def test_help_is_fast() -> None:
    def fastest(*command: str) -> float:
        times = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *command], env=environment(), stdout=subprocess.DEVNULL, check=True
            )
            times.append(time.perf_counter() - began)
        return min(times)

    assert fastest("-m", "superpipe_cluster", "--help") < 4 * fastest("-c", "import click")


def test_the_table_of_verbs_is_what_there_is() -> None:
    folder = Path(importlib.import_module("superpipe_cluster.cli.verbs").__path__[0])
    assert set(VERBS) == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    for verb, line in VERBS.items():
        command = importlib.import_module(f"superpipe_cluster.cli.verbs.{verb}").command
        assert isinstance(command, click.Command)
        assert command.name == verb
        assert command.help is not None
        assert command.help.splitlines()[0] == line


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself_within_80_columns(verb: str) -> None:
    said = spcluster(verb, "--help")
    assert said.returncode == 0
    assert max(map(len, said.stdout.splitlines())) <= 80
    options = [line for line in said.stdout.splitlines() if line.startswith("  -")]
    assert options


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("quue",), "there is no command `quue`", "did you mean `spcluster queue`?"),
        (("xyzzy",), "there is no command `xyzzy`", "`spcluster --help` lists the commands"),
        (("queue", "--nope"), "no such option", "`spcluster queue --help` explains"),
        (("show",), "missing argument", "`spcluster show --help` explains"),
        (("wait", "1", "--timeout", "soon"), "is not a duration", "write"),
        (("down", "--drain", "--head-only"), "--drain waits for all", "`spcluster down --help` explains"),
        (("up", "--port", "0"), "0 is not in the range", "`spcluster up --help` explains"),
    ],
)
def test_usage_errors_exit_with_2_and_a_hint(arguments: tuple[str, ...], error: str, hint: str) -> None:
    said = spcluster(*arguments)
    assert said.returncode == 2
    assert said.stdout == ""
    assert said.stderr.startswith("error: ")
    assert error in said.stderr
    assert f"hint: {hint}" in said.stderr


def test_without_a_cluster_every_verb_says_so() -> None:
    for arguments in (("queue",), ("gpus",), ("cancel", "1"), ("logs", "1"), ("wait", "1"), ("user", "list")):
        said = spcluster(*arguments)
        assert said.returncode == 5
        assert said.stdout == ""
        assert said.stderr.startswith("error: no cluster is running")
        assert "`spcluster up`" in said.stderr


def test_strange_addresses_and_tokens(tmp_path: Path) -> None:
    assert spcluster("queue", SPCLUSTER_URL="ftp://x", SPCLUSTER_TOKEN="t").returncode == 2
    assert spcluster("queue", SPCLUSTER_URL="http://127.0.0.1:1", SPCLUSTER_TOKEN="a b").returncode == 6
    (tmp_path / "cluster.json").write_text("{nonsense", encoding="utf-8")
    said = spcluster("queue", SPCLUSTER_HOME=str(tmp_path))
    assert said.returncode == 5
    assert "cluster.json cannot be used" in said.stderr


def test_it_runs_as_a_module_only_when_run() -> None:
    ran = subprocess.run(
        [PROGRAM[0], "-c", "import superpipe_cluster.__main__"],
        env=environment(),
        capture_output=True,
        timeout=30,
    )
    assert (ran.returncode, ran.stdout) == (0, b"")

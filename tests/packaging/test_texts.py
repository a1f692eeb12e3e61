"""The READMEs against what is there: folders, links, commands and programs in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from command_lines import parse_line
from commands import ROOT, environment
from superpipe_cluster import bundled, spec
from superpipe_cluster.execution.attempt import Attempt
from superpipe_cluster.execution.layout import JobFolder
from superpipe_cluster.execution.supervisor import Supervisor
from superpipe_cluster.machine import parse_device

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [
    "README.md",
    "CHANGELOG.md",
    "jobs/README.md",
    "workers/README.md",
    "bench/README.md",
    "docs/five_lines.md",
]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# ---- the tour ------------------------------------------------------------------------------------------


def folders(parent: Path) -> set[str]:
    """The folders below `parent` that are ours: neither hidden nor made by a tool."""
    ignored = {line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split()}
    return {
        path.name
        for path in parent.iterdir()
        if path.is_dir() and path.name[0] != "." and path.name not in ignored
    }


def toured(indent: str) -> set[str]:
    return set(re.findall(rf"^{indent}- `([\w-]+)/` \S", README, re.MULTILINE))


def test_the_tour_names_the_top_level_folders_and_no_other() -> None:
    assert toured("") == {name for name in folders(ROOT) if not name.endswith(".egg-info")}


def test_the_tour_names_the_rooms_of_the_package_and_no_other() -> None:
    assert toured("  ") == folders(ROOT / "superpipe_cluster") - {"__pycache__"}


def test_every_readme_of_a_folder_is_linked() -> None:
    own = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("[!.]*/**/README.md")}
    linked = set(re.findall(r"\]\(([^)#]+)\)", README))
    assert {path for path in own if not path.startswith(("tests/", "build/"))} <= linked


@pytest.mark.parametrize("text", TEXTS)
def test_links_lead_somewhere(text: str) -> None:
    path = ROOT / text
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_workers_are_described_and_no_other() -> None:
    text = (ROOT / "workers/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^- `(\w+)\.py`", text, re.MULTILINE)) == set(bundled.workers())


# ---- commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_commands_are_ones_that_the_program_takes(text: str) -> None:
    content = (ROOT / text).read_text(encoding="utf-8")
    lines = [line for block in blocks(content, "sh") for line in block.splitlines()]
    typed = [line for line in lines if line.startswith("spcluster ")]
    # In running text, a verb with its arguments; `spcluster ...` over a line's end is no command.
    typed += [found for found in re.findall(r"`(spcluster \w[^`\n]*)`", content) if not found.endswith("...")]
    for line in typed:
        parse_line(line)
    if text == "README.md":
        verbs = {parse_line(line).command.name for line in typed}
        assert {"up", "down", "submit", "queue", "logs"} <= verbs


@pytest.mark.parametrize("text", TEXTS)
def test_make_targets_are_there(text: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / text).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= targets
    assert text != "README.md" or {"demo", "test", "help"} <= set(named)


# ---- programs ------------------------------------------------------------------------------------------


def test_the_readmes_program_runs(tmp_path: Path) -> None:
    (program,) = (block for block in blocks(README, "python") if "import stream" in block)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    stats = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)\b(?!\.)", ran.stdout)}
    assert stats["loads"] > stats["units"]
    assert stats["peak_bytes"] <= 6 * 2**20 < stats["model_bytes"]


def test_the_workers_readmes_program_runs(tmp_path: Path) -> None:
    text = (ROOT / "workers/README.md").read_text(encoding="utf-8")
    (job_file,), (program,) = blocks(text, "yaml"), blocks(text, "python")
    (tmp_path / "mine.yaml").write_text(job_file)
    (tmp_path / "mine.py").write_text(program)
    job = spec.load(tmp_path / "mine.yaml")
    budget = job.resources.gpu_memory
    assert isinstance(budget, spec.ByteRange)
    folder = JobFolder(tmp_path / "job")
    folder.root.mkdir()
    Attempt(
        id="1",
        attempt=1,
        epoch=1,
        job=spec.dump(job),
        device=parse_device("cpu:1GiB@4GB/s"),
        budget_bytes=budget.min_bytes,
        program=str(tmp_path / "mine.py"),
        output=str(folder.output),
    ).write(folder)

    supervisor = Supervisor(folder.root)
    supervisor.start()
    end = supervisor.wait(100)

    assert end is not None
    assert end.reason == "ok", folder.log.read_text()
    progress = {**supervisor.take_progress(), **supervisor.take_progress()}  # the first report stays apart
    assert progress["step"] == yaml.safe_load(job_file)["params"]["steps"]
    assert progress["loads"] > progress["units"]
    assert progress["peak_bytes"] <= budget.min_bytes < progress["model_bytes"]
    assert (folder.output / "model.pt").exists()

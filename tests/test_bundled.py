"""Finding bundled programs and job files, in a checkout and in an installed wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from superpipe_cluster import bundled
from superpipe_cluster.errors import NotFound


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two workers and three job files."""
    files = {
        "workers/__init__.py": "raise ModuleNotFoundError",
        "workers/train_lm.py": "",
        "workers/generate.py": "",
        "workers/_shared.py": "",
        "jobs/train.yaml": "# Trains a small model.\n# Needs nothing.\nkind: train\n",
        "jobs/small/tiny.yaml": "\n#   Smallest one. \nkind: train\n",
        "jobs/bare.yaml": "kind: train\n# too late\n",
        "jobs/README.md": "",
        "secret.yaml": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(bundled, "_PACKAGE", tmp_path / "superpipe_cluster")
    return tmp_path


def test_the_checkout_is_found() -> None:
    assert (bundled.root() / "workers" / "__init__.py").is_file()


def test_jobs_are_scanned_with_their_first_comment(tree: Path) -> None:
    assert [(job.name, job.description) for job in bundled.jobs()] == [
        ("bare", ""),
        ("small/tiny", "Smallest one."),
        ("train", "Trains a small model."),
    ]
    assert bundled.job_path("small/tiny") == tree / "jobs" / "small" / "tiny.yaml"


def test_workers_are_found_by_name(tree: Path) -> None:
    assert bundled.workers() == ["generate", "train_lm"]
    assert bundled.worker_path("train_lm") == tree / "workers" / "train_lm.py"


@pytest.mark.parametrize("name", ["../secret", "", "/etc/passwd", "train.yaml", "small"])
def test_only_scanned_names_are_jobs(tree: Path, name: str) -> None:
    with pytest.raises(NotFound):
        bundled.job_path(name)


@pytest.mark.parametrize("name", ["__init__", "_shared", "../secret", ""])
def test_only_programs_are_workers(tree: Path, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        bundled.worker_path(name)
    assert caught.value.hint


def test_unknown_names_get_a_suggestion(tree: Path) -> None:
    with pytest.raises(NotFound, match="no bundled job named 'trian'") as no_job:
        bundled.job_path("trian")
    assert no_job.value.hint == "did you mean `train`?"
    with pytest.raises(NotFound, match="no worker named 'train-lm'") as no_worker:
        bundled.worker_path("train-lm")
    assert no_worker.value.hint == "did you mean `train_lm`?"
    with pytest.raises(NotFound) as nothing_alike:
        bundled.job_path("zzz")
    assert "spcluster examples" in (nothing_alike.value.hint or "")


def test_an_installed_copy_comes_before_somebody_elses_folders(tree: Path) -> None:
    installed = tree / "superpipe_cluster" / "_bundled"
    for folder in ("workers", "jobs"):
        (installed / folder).mkdir(parents=True)
    assert bundled.root() == installed


def test_an_installation_without_its_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_PACKAGE", tmp_path / "superpipe_cluster")
    with pytest.raises(NotFound, match="are missing"):
        bundled.jobs()


def test_looking_for_files_loads_nothing_heavy() -> None:
    program = (
        "import sys, superpipe_cluster.bundled\n"
        "print(*{'pydantic', 'yaml', 'torch', 'ray', 'redis', 'click'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == ""

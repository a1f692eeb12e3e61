"""Finds the programs of `workers/` and the job files of `jobs/`, in a checkout or in an installed wheel.

Owns where these folders are and what is in them, always by looking: nothing is listed by hand, so nothing can
drift. Does not read job files beyond their first comment line (`spec` does) and does not run programs
(`execution` does). Imports nothing heavy: the CLI uses it before it knows that there is a cluster.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from superpipe_cluster.errors import NotFound

_PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class BundledJob:
    """A ready-to-submit job file.

    Attributes:
        name: what people type, `train` or, for a file in a subfolder, `small/train`.
        path: the YAML file.
        description: its first comment line without the `#`; empty when it has none.
    """

    name: str
    path: Path
    description: str


def root() -> Path:
    """The folder that holds `workers/` and `jobs/`.

    The wheel's own copy is looked for first: beside an installed package lies site-packages, where a folder
    named `workers` would be somebody else's.

    Raises:
        NotFound: neither an installed copy nor a checkout is there.
    """
    for candidate in (_PACKAGE / "_bundled", _PACKAGE.parent):
        if (candidate / "workers").is_dir() and (candidate / "jobs").is_dir():
            return candidate
    raise NotFound(
        f"the bundled workers/ and jobs/ are missing beside {_PACKAGE}",
        hint="the installation is incomplete: install the superpipe_cluster wheel again",
    )


def workers() -> list[str]:
    """Names of the bundled programs, sorted."""
    return sorted(path.stem for path in (root() / "workers").glob("*.py") if not path.stem.startswith("_"))


def worker_path(name: str) -> Path:
    """The program file of a bundled worker.

    Raises:
        NotFound: there is no worker of this name.
    """
    path = root() / "workers" / f"{name}.py"
    if name.startswith("_") or Path(name).name != name or not path.is_file():
        raise _unknown(
            "worker", name, workers(), otherwise="your own program is named by its path: worker: ./mine.py"
        )
    return path


def jobs() -> list[BundledJob]:
    """Every bundled job file, subfolders included, sorted by name."""
    folder = root() / "jobs"
    return [
        BundledJob(path.relative_to(folder).with_suffix("").as_posix(), path, _first_comment(path))
        for path in sorted(folder.rglob("*.yaml"))
    ]


def job_path(name: str) -> Path:
    """The file of a bundled job.

    Raises:
        NotFound: there is no job file of this name.
    """
    # Looked up among the scanned names and never joined to a path: `../secret` is just an unknown name.
    paths = {job.name: job.path for job in jobs()}
    if name not in paths:
        raise _unknown("bundled job", name, list(paths), otherwise="`spcluster examples` lists them")
    return paths[name]


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("#"):
                return line.lstrip("#").strip()
            if line.strip():
                break
    return ""


def _unknown(what: str, name: str, names: list[str], *, otherwise: str) -> NotFound:
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean `{close[0]}`?" if close else otherwise
    return NotFound(f"there is no {what} named {name!r}", hint=hint)

"""The Python that a script runs with: the cluster's own, a virtual environment, or one made for a list of packages.

Owns making environments and keeping them. [Note: packages of a job] Ray could install packages for an actor, but only
with its `default` extra, before anybody sees what pip says, and around the worker itself. Here the command alone gets
another Python: an environment that sees the cluster's packages below its own, so that torch is not installed anew. It
is made once per list of packages, in the cluster's home, with pip's words in the job's log; whoever else wants the same
list meanwhile waits for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from superpipe_cluster.errors import BadInput


def environment(venv: str | None, packages: Sequence[str]) -> dict[str, str]:
    """The variables that make a command use the Python that a job asks for, as activating it would.

    Args:
        venv: the folder of an environment that is there.
        packages: what to install, as for pip, on top of the cluster's own.

    Raises:
        BadInput: the environment has no Python, or the packages cannot be installed.
    """
    if venv is None and not packages:
        # Whatever else is called python on this machine, here it is the cluster's.
        return {"PATH": _in_front(Path(sys.executable).parent)}
    root = Path(venv) if venv is not None else _made(tuple(packages))
    if not os.access(root / "bin" / "python", os.X_OK):
        raise BadInput(
            f"venv: {root} has no bin/python", hint="name the folder that `python -m venv FOLDER` made"
        )
    return {"PATH": _in_front(root / "bin"), "VIRTUAL_ENV": str(root)}


def _in_front(folder: Path) -> str:
    return f"{folder}:{os.environ.get('PATH', os.defpath)}"


def _made(packages: tuple[str, ...]) -> Path:
    """The environment with these packages, made now if nobody has."""
    key = hashlib.sha256(json.dumps([sys.version, sys.executable, sorted(packages)]).encode()).hexdigest()
    home = Path(os.environ.get("SPCLUSTER_HOME") or Path.home() / ".spcluster") / "environments"
    root = home / key[:16]
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "ready").exists():
            shutil.rmtree(root, ignore_errors=True)  # of somebody who was killed over it
            _make(root, packages)
            (root / "ready").write_text("\n".join(packages) + "\n")
    return root


def _make(root: Path, packages: tuple[str, ...]) -> None:
    # The cluster's pip can be seen from there, if it has one; another would take seconds to be unpacked.
    with_pip = [] if find_spec("pip") is None else ["--without-pip"]
    _run(
        [sys.executable, "-m", "venv", *with_pip, str(root)],
        "venv cannot be made",
        "install Python's venv module",
    )
    ours = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site,) = (root / "lib").glob("python*/site-packages")
    # Not bare paths: packages that are installed as links are found by files of this kind in those folders.
    (site / "cluster.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(ours))
    )
    python = str(root / "bin" / "python")
    _run(
        [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--", *packages],
        f"cannot install {', '.join(packages)}",
        "the log shows what pip said; check the names, and that the machine reaches a package index",
    )


def _run(command: list[str], complaint: str, hint: str) -> None:
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise BadInput(f"pip: {complaint}", hint=hint)

"""The wheel: what is in it, and that `spcluster` works from it where there is no checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from commands import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[PurePosixPath]:
    return [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]


def test_it_has_one_top_level_name(names: list[PurePosixPath]) -> None:
    tops = {name.parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"superpipe_cluster"}
    assert len(tops) == 2


def test_it_has_everything_that_the_package_folder_has(names: list[PurePosixPath]) -> None:
    files = [path for path in (ROOT / "superpipe_cluster").rglob("*") if path.is_file()]
    on_disk = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    packed = {name.as_posix() for name in names}
    assert on_disk <= packed
    assert {"superpipe_cluster/py.typed", "superpipe_cluster/store/lua/transition.lua"} <= packed


@pytest.mark.parametrize(("folder", "pattern"), [("workers", "*.py"), ("jobs", "**/*.yaml")])
def test_it_brings_workers_and_jobs(names: list[PurePosixPath], folder: str, pattern: str) -> None:
    on_disk = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob(pattern)}
    assert on_disk
    assert {f"superpipe_cluster/_bundled/{name}" for name in on_disk} <= {name.as_posix() for name in names}


def test_it_brings_its_licence_and_no_litter(names: list[PurePosixPath]) -> None:
    assert any(name.match("*.dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name.parts or name.suffix == ".pyc"]


# ---- installed -----------------------------------------------------------------------------------------


class Installed:
    """A virtual environment with the wheel in it, and a folder that is no checkout to run it in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder = folder / "somewhere"
        self.folder.mkdir()
        environment = folder / "venv"
        venv.create(environment, with_pip=False, symlinks=True)
        self._bin = environment / "bin"
        install = ("install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel)
        pip = (sys.executable, "-m", "pip", "--python", self._bin / "python")
        subprocess.run([*pip, *install], check=True, timeout=100)
        # The dependencies are those of the tests' own environment. Named in a .pth file, that folder's own .pth
        # files (an editable install of the checkout is one) are not followed.
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        packages = sysconfig.get_path(
            "purelib", vars={"base": str(environment), "platbase": str(environment)}
        )
        Path(packages, "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.folder,
            env={**environment, "SPCLUSTER_HOME": str(self.folder / "home"), "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def says(self, program: str, *arguments: str) -> str:
        ran = self.run(program, *arguments)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_package_is_the_installed_one(installed: Installed) -> None:
    where = installed.says("python", "-c", "import superpipe_cluster; print(superpipe_cluster.__file__)")
    assert Path(where.strip()).is_relative_to(installed.folder.parent / "venv")


def test_help_lists_the_verbs(installed: Installed) -> None:
    said = installed.says("spcluster", "--help")
    assert all(f"  {verb} " in said for verb in ("up", "submit", "queue", "logs"))
    assert installed.says("python", "-m", "superpipe_cluster", "--help") == said


def test_examples_are_those_of_the_wheel(installed: Installed) -> None:
    examples = json.loads(installed.says("spcluster", "examples", "-o", "json"))
    on_disk = {
        path.relative_to(ROOT / "jobs").with_suffix("").as_posix() for path in (ROOT / "jobs").rglob("*.yaml")
    }
    assert {example["name"] for example in examples} == on_disk
    assert all("_bundled" in example["path"] for example in examples)


def test_an_example_can_be_copied_and_checked(installed: Installed) -> None:
    installed.says("spcluster", "cp", "train_tiny", "mine.yaml")
    assert (installed.folder / "mine.yaml").read_bytes() == (ROOT / "jobs/train_tiny.yaml").read_bytes()
    assert "has no mistakes" in installed.says("spcluster", "submit", "mine.yaml", "--dry-run")


def test_the_schema_is_printed(installed: Installed) -> None:
    assert "$defs" in json.loads(installed.says("spcluster", "schema"))


def test_every_worker_is_found(installed: Installed) -> None:
    program = (
        "from superpipe_cluster import bundled\n"
        "for name in bundled.workers():\n"
        "    path = bundled.worker_path(name)\n"
        "    compile(path.read_text(), path, 'exec')\n"
        "    print(name, '_bundled' in path.parts)"
    )
    on_disk = sorted(path.stem for path in (ROOT / "workers").glob("[a-z]*.py"))
    assert installed.says("python", "-c", program).splitlines() == [f"{name} True" for name in on_disk]


@pytest.mark.parametrize("name", ["workers", "jobs", "tests", "bench"])
def test_no_name_but_its_own_can_be_imported(installed: Installed, name: str) -> None:
    ran = installed.run("python", "-c", f"import {name}")
    assert ran.returncode != 0
    assert f"No module named '{name}'" in ran.stderr


def test_importing_it_loads_nothing_large(installed: Installed) -> None:
    program = "import sys, superpipe_cluster; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = set(installed.says("python", "-c", program).split())
    assert "superpipe_cluster" in loaded
    assert not loaded & {"torch", "ray", "pydantic", "numpy", "redis", "click", "httpx", "yaml"}


def test_the_public_names_are_there(installed: Installed) -> None:
    program = "import superpipe_cluster as s; print([getattr(s, name) is not None for name in s.__all__])"
    assert "False" not in installed.says("python", "-c", program)

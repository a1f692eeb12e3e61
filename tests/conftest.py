"""What holds for every test: everything that was imported to collect them is out of the garbage collector's sight."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Tests collect garbage by hand; that takes half a second each time among all objects of torch, else nothing."""
    gc.collect()
    gc.freeze()

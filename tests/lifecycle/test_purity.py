"""The core is loaded and used without Redis, Ray, torch or click."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import superpipe_cluster


def test_the_core_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from superpipe_cluster.lifecycle import step, table, record, events, states\n"
        "from superpipe_cluster.scheduling import decide, order, snapshot\n"
        "from superpipe_cluster.store import memory_store, interface, writes\n"
        "print(*sorted({'redis', 'ray', 'torch', 'click'} & set(sys.modules)))\n"
    )
    root = str(Path(superpipe_cluster.__file__).parents[1])
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root, timeout=60
    )
    assert said.stdout.strip() == ""

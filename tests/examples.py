"""How many examples a costly property is shown: a few in `make test`, many times as many in `make test-long`."""

from __future__ import annotations

import os

_TIMES = int(os.environ.get("SPCLUSTER_TEST_EXAMPLES", "1"))


def examples(ordinary: int) -> int:
    """`ordinary`, or SPCLUSTER_TEST_EXAMPLES times as many."""
    return ordinary * _TIMES

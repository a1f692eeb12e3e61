"""The simulation finds what it is for: every planted bug, within the seeds of PLANTED.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simulation.planted import BUGS, WITHIN_SEEDS, run_with

TABLE = Path(__file__).with_name("PLANTED.md")
_ROW = re.compile(r"^\| ([\w-]+) \| .* \| (\d+) \| \d+ \| .* \|$", re.MULTILINE)


def _caught() -> dict[str, int]:
    return {name: int(seed) for name, seed in _ROW.findall(TABLE.read_text(encoding="utf-8"))}


def test_the_table_names_a_seed_for_every_bug() -> None:
    assert set(_caught()) == set(BUGS)
    assert all(seed < WITHIN_SEEDS for seed in _caught().values())


@pytest.mark.parametrize("bug", sorted(BUGS))
def test_the_seed_of_the_table_still_finds_its_bug(bug: str) -> None:
    near = _caught()[bug]
    # Other code, other traces: the seed of the table, or one of those after it.
    found = any(run_with(bug, seed).broken for seed in range(near, near + 30))
    assert found, f"{bug} is not found any more; `python -m simulation --planted tests/simulation/PLANTED.md`"

"""The real head over a simulated cluster: a few hundred seeds keep every promise. `make simulate` runs thousands."""

from __future__ import annotations

import pytest

from simulation.climate import CLIMATES
from simulation.run import Outcome, run

SEEDS, EVENTS = 200, 300
#: Seeds of one test, so that a failure names few.
EACH = 20


@pytest.mark.parametrize("first", range(0, SEEDS, EACH))
def test_no_invariant_breaks(first: int) -> None:
    broken = [outcome for seed in range(first, first + EACH) if (outcome := run(seed, EVENTS)).broken]
    assert not broken, "\n".join(map(_with_command, broken))


@pytest.mark.parametrize("seed", range(len(CLIMATES)))
def test_the_same_seed_has_the_same_trace(seed: int) -> None:
    once, again = run(seed, EVENTS), run(seed, EVENTS)
    assert once == again


def test_other_seeds_have_other_traces() -> None:
    assert len({run(seed, 100).digest for seed in range(12)}) == 12


def _with_command(outcome: Outcome) -> str:
    command = f"PYTHONPATH=tests python -m simulation --seed {outcome.seed} --events {EVENTS} --trace"
    return f"{outcome.broken}\n    {command}"

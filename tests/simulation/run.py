"""One seed from beginning to end: `run(seed)`."""

from __future__ import annotations

import logging
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from simulation.witness import Broken
from simulation.world import Plant, World

#: Where files cost nothing, and there is nothing to keep.
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a simulation went.

    Attributes:
        seed: its seed.
        digest: of its whole trace.
        events: that happened.
        jobs: how many came to which state.
        broken: the invariant that does not hold; None when all do.
    """

    seed: int
    digest: str
    events: int
    jobs: dict[str, int]
    broken: str | None


def run(
    seed: int, events: int = 1000, listen: Callable[[str], None] | None = None, plant: Plant | None = None
) -> Outcome:
    """Simulate one seed: so many events with faults, then a quiet end in which everything that can run must."""
    # What the head has to say is in the trace.
    logging.getLogger("superpipe_cluster").setLevel(logging.CRITICAL)
    base = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
    broken: str | None = None
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=base) as root:
        world = World(seed, Path(root), listen, plant)
        try:
            world.run(events)
        except Broken as error:
            broken = str(error)
        except Exception as error:
            # Of the code under test: what a call may fail with was caught where it was made.
            at = traceback.extract_tb(error.__traceback__)[-1]
            broken = f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno}, {at.name})"
        if broken is not None:
            world.note(f"BROKEN: {broken}")
    states = Counter(str(book.record.state) for book in world.witness.books.values())
    return Outcome(seed, world.digest, world.loop.done, dict(states), broken)

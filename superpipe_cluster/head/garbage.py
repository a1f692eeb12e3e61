"""How often the head's process looks for garbage.

Owns the interpreter's collector. Records are freed when nobody refers to them any more; the collector is there for
what refers to itself, of which there is hardly any. But it finds that out by walking through all records, which takes
longer than ten milliseconds for ten thousand of them, in the middle of a decision or of an answer.
"""

from __future__ import annotations

import gc

#: New containers until the youngest are looked through, which takes as long as there are of them: these are a few
#: milliseconds. And how many of these looks there are until the older ones have their turn (Python's own: 700 and 10).
_NEW = 5_000
_ROUNDS = 50


def leave_alone_what_stays() -> None:
    """Never look again through what is there now, and seldom through what comes. To be called when all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW, _ROUNDS, _ROUNDS)

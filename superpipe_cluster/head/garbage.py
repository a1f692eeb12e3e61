"""How often the head's process looks for garbage.

Owns the interpreter's collector. Records are freed when nobody refers to them any more; the collector is there for
what refers to itself, of which there is hardly any. But it finds that out by walking through all records, which takes
longer than ten milliseconds for ten thousand of them, in the middle of a decision or of an answer.
"""

from __future__ import annotations

import gc

#: New containers until the youngest are looked through (Python's own figure is 700): about one decision about ten
#: thousand jobs; and how many of these looks there are until the older ones have their turn.
_NEW = 50_000
_ROUNDS = 20


def leave_alone_what_stays() -> None:
    """Never look again through what is there now, and seldom through what comes. To be called when all is loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW, _ROUNDS, _ROUNDS)

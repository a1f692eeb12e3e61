"""One thing that jobs are promised parts of: a device's bytes, its link, the RAM for host copies.

Owns the sums of one such thing while decisions are made.

[Note: free, coming, claimed] `free` was promised to nobody. `coming` is still promised to somebody who has been asked
to give it back, and becomes free when they have. `claimed` is the part of both that is set aside for jobs in the line
that are being made room for. What a job may take at once is free and not claimed; claims are met from what is
coming first.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Pool:
    """One thing that jobs are promised parts of. See [Note: free, coming, claimed]."""

    free: int
    coming: int = 0
    claimed: int = 0

    @property
    def soon(self) -> int:
        """What is there once everybody has given back what they were asked for; below 0: too much is promised."""
        return self.free + self.coming - self.claimed

    @property
    def now(self) -> int:
        """What may be given away at once."""
        return min(self.free, self.free + self.coming - self.claimed)

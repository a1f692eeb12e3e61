"""What the witness keeps of one job."""

from __future__ import annotations

from dataclasses import dataclass

from superpipe_cluster.lifecycle.record import JobRecord


@dataclass(slots=True)
class Books:
    """One job, as counted here.

    Attributes:
        record: as last written.
        replayed: what its events alone lead to.
        submission: the record it was submitted with.
        charged_byte_s: promise times seconds.
        counted_at: up to when.
        ends: how often it has ended.
        cancels: how often somebody asked for its end.
        running_since_s: by the simulation, when its program began.
        unheard: reports that got through since an order that the answers did not carry.
    """

    record: JobRecord
    replayed: JobRecord
    submission: JobRecord
    charged_byte_s: float = 0.0
    counted_at: float | None = None
    ends: int = 0
    cancels: int = 0
    running_since_s: float = 0.0
    unheard: int = 0

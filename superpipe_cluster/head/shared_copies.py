"""Which jobs stream the same frozen weights, so that RAM for them is promised once.

Owns the name of such a copy in the ledger. That there really is one copy is the runtime's doing, which finds it by its
content (`streaming/homes/shared_home.py`); what sharing means for the queue is `scheduling.host_books`'.

[Note: the same weights] Two jobs have them in common when they name the same model, in the same format, and plan the
same frozen parts of the same units. Only bundled programs are taken at their word: one of a user's own may change what
it has read, and then has a copy to itself.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from superpipe_cluster.head.plans import stamp
from superpipe_cluster.planning import Plan
from superpipe_cluster.spec import JobSpec


def shared_copy_of(job: JobSpec, plan: Plan | None) -> tuple[str | None, int]:
    """The name of the copy that the job shares with whoever names the same, and its bytes; (None, 0) for none."""
    parts = [size for size in plan.frozen_bytes if size] if plan is not None else []
    if not parts or job.model is None or job.host != "shared" or job.own_program:
        return None, 0
    model = job.model.model_dump(exclude={"tokenizer"})
    source = Path(job.model.source or "")
    said = [model, stamp(source) if source.is_absolute() else None, parts]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32], sum(parts)

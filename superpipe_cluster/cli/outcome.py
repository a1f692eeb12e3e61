"""How a job ended, as an exit code and as a sentence.

Owns these two; whoever waited for the job uses them.
"""

from __future__ import annotations

from superpipe_cluster.api.views import JobView
from superpipe_cluster.cli.main import INTERRUPTED
from superpipe_cluster.spec.units import format_duration


def exit_code(job: JobView) -> int:
    """0 when it succeeded, 130 when it was cancelled, else the job's own code, or 1 where it has none."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "CANCELLED":
        return INTERRUPTED
    # Killed by a signal is negative here, and no process can exit with that.
    return job.exit_code if job.exit_code is not None and 0 < job.exit_code < 256 else 1


def sentence(job: JobView) -> str:
    """`job 7 (llama) failed after 12s: oom: needed 3 GiB more`."""
    text = f"job {job.id} ({job.name}) {job.state.lower()}"
    if job.started_at is not None and job.ended_at is not None:
        text += f" after {format_duration(max(0.0, job.ended_at - job.started_at))}"
    if job.state != "SUCCEEDED":
        text += "".join(
            f": {part}" for part in (job.reason, job.message) if part and part != job.state.lower()
        )
    return text

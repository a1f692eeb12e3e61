"""Which state may follow which: the one table.

Owns the possible outcomes of every (state, event) pair. Which of the outcomes it is, where there are several,
is decided by `step.py` from the record and the event, and `step` refuses to produce one that is not listed
here. The diagram in README.md is compared with this table by a test.
"""

from __future__ import annotations

from superpipe_cluster.lifecycle.events import (
    Changed,
    DependencyFailed,
    Exited,
    Held,
    Lost,
    PauseAsked,
    Paused,
    Placed,
    Released,
    ResizeAsked,
    Resized,
    ResumeAsked,
    Resumed,
    Started,
    StopAsked,
    Submitted,
    Wanted,
)
from superpipe_cluster.lifecycle.states import JobState

_ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
#: The end of a worker that was not told to stop: its own result, or another attempt.
_END = _ENDED | {JobState.QUEUED}
#: The disappearance of a worker: another attempt, or the last one is over. It cannot be a success.
_LOSS = frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLED})

#: (state, event kind) -> the states that may follow. None stands for a job that does not exist yet. A pair
#: that is not here cannot happen, and `step` raises `InvalidTransition`.
TABLE: dict[tuple[JobState | None, str], frozenset[JobState]] = {
    (None, Submitted.kind): frozenset({JobState.QUEUED, JobState.HELD}),
    #
    (JobState.HELD, Released.kind): frozenset({JobState.QUEUED}),
    (JobState.HELD, Changed.kind): frozenset({JobState.HELD}),
    (JobState.HELD, StopAsked.kind): frozenset({JobState.CANCELLED}),
    (JobState.HELD, DependencyFailed.kind): frozenset({JobState.CANCELLED}),
    #
    (JobState.QUEUED, Held.kind): frozenset({JobState.HELD}),
    (JobState.QUEUED, Placed.kind): frozenset({JobState.STARTING}),
    (JobState.QUEUED, Changed.kind): frozenset({JobState.QUEUED}),
    (JobState.QUEUED, StopAsked.kind): frozenset({JobState.CANCELLED}),
    (JobState.QUEUED, DependencyFailed.kind): frozenset({JobState.CANCELLED}),
    #
    (JobState.STARTING, Started.kind): frozenset({JobState.RUNNING}),
    (JobState.STARTING, Changed.kind): frozenset({JobState.STARTING}),
    (JobState.STARTING, StopAsked.kind): frozenset({JobState.STOPPING}),
    (JobState.STARTING, Exited.kind): _END,
    (JobState.STARTING, Lost.kind): _LOSS - {JobState.CANCELLED},
    #
    (JobState.RUNNING, ResizeAsked.kind): frozenset({JobState.RUNNING}),
    (JobState.RUNNING, Resized.kind): frozenset({JobState.RUNNING}),
    (JobState.RUNNING, Wanted.kind): frozenset({JobState.RUNNING}),
    (JobState.RUNNING, PauseAsked.kind): frozenset({JobState.RUNNING}),
    (JobState.RUNNING, ResumeAsked.kind): frozenset({JobState.RUNNING}),
    (JobState.RUNNING, Changed.kind): frozenset({JobState.RUNNING}),
    (JobState.RUNNING, Paused.kind): frozenset({JobState.PAUSED}),
    (JobState.RUNNING, StopAsked.kind): frozenset({JobState.STOPPING}),
    (JobState.RUNNING, Exited.kind): _END,
    (JobState.RUNNING, Lost.kind): _LOSS - {JobState.CANCELLED},
    #
    (JobState.PAUSED, ResizeAsked.kind): frozenset({JobState.PAUSED}),
    (JobState.PAUSED, Resized.kind): frozenset({JobState.PAUSED}),
    (JobState.PAUSED, Wanted.kind): frozenset({JobState.PAUSED}),
    (JobState.PAUSED, PauseAsked.kind): frozenset({JobState.PAUSED}),
    (JobState.PAUSED, ResumeAsked.kind): frozenset({JobState.PAUSED}),
    (JobState.PAUSED, Changed.kind): frozenset({JobState.PAUSED}),
    (JobState.PAUSED, Resumed.kind): frozenset({JobState.RUNNING}),
    (JobState.PAUSED, StopAsked.kind): frozenset({JobState.STOPPING}),
    (JobState.PAUSED, Exited.kind): _END,
    (JobState.PAUSED, Lost.kind): _LOSS - {JobState.CANCELLED},
    #
    (JobState.STOPPING, StopAsked.kind): frozenset({JobState.STOPPING}),
    (JobState.STOPPING, Resized.kind): frozenset({JobState.STOPPING}),
    (JobState.STOPPING, Changed.kind): frozenset({JobState.STOPPING}),
    (JobState.STOPPING, Exited.kind): _END,
    (JobState.STOPPING, Lost.kind): _LOSS,
}


def events_from(state: JobState | None) -> tuple[str, ...]:
    """The kinds of event that may happen in `state`, in the order of the table."""
    return tuple(kind for start, kind in TABLE if start == state)

"""The tunables of the scheduler, with their units.

Owns the numbers and what each is for; where the figures come from is told in README.md.
"""

from __future__ import annotations

from dataclasses import dataclass

_MINUTE_S = 60.0
_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S


@dataclass(frozen=True, slots=True)
class Policy:
    """All of the scheduler's numbers. Durations are seconds.

    Attributes:
        half_life_s: after this long, what somebody used counts half.
        entry_s: a job counts as if it had held its bytes for this long already, from the moment it stands in line
            (the entry penalty): what a user has just been given is charged before it shows up as usage.
        ageing_s: each time a job has waited for this long, it is lifted by one priority class in the line.
        rooms_at_once: for this many jobs, one decision asks others to make room. Those after them have their turn when
            these have been answered.
        min_runtime_s: a job is preempted for another one only after it has run for this long.
        grow_hold_s: a job keeps a budget for this long before it is asked to take more.
        grow_min_gain: a running job is asked to take more only if that shortens its steps by this share at least.
        link_crowd: jobs are put together on a device only while they would use no more than this many times what its
            link carries, each of them by itself; a job that is bound by the link alone counts as one.
        horizon_s: a job that does not say how many steps it has left is taken to go on for this long, where the
            gain or loss of bytes is weighed.
        backfill_depth: after this many jobs that could not be let past those ahead of them, no further one is tried.
        forecast_depth: this many jobs, from the front of the line, are told when they are likely to start.
    """

    half_life_s: float = 7 * _DAY_S
    entry_s: float = 10 * _MINUTE_S
    ageing_s: float = _DAY_S
    rooms_at_once: int = 16
    min_runtime_s: float = 10 * _MINUTE_S
    grow_hold_s: float = 30.0
    grow_min_gain: float = 0.03
    link_crowd: float = 1.5
    horizon_s: float = _HOUR_S
    backfill_depth: int = 500
    forecast_depth: int = 100


#: What a cluster runs under.
DEFAULT = Policy()

"""What bytes are worth to a job, in seconds, from the short form of its forecast in its record (`curve`).

Owns the arithmetic from budgets to seconds and to the link: how long a job still runs, what it loses by fewer bytes and
wins by more, how much it moves meanwhile. A job without a forecast is taken to run in proportion to its bytes and to
leave the link alone; nothing better is known of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left

from superpipe_cluster.lifecycle.record import JobRecord
from superpipe_cluster.lifecycle.states import JobState

Curve = tuple[tuple[int, float, int], ...]


def step_s(curve: Curve, budget_bytes: int) -> float:
    """Seconds of a step in `budget_bytes`."""
    return _at(curve, budget_bytes)[0]


def link_use(job: JobRecord, budget_bytes: int) -> int:
    """Bytes per second that the job moves in `budget_bytes` when it has the link to itself."""
    if not job.curve:
        return 0
    seconds, moved = _at(job.curve, budget_bytes)
    return math.ceil(moved / seconds) if seconds > 0.0 else 0


def least_within(job: JobRecord, link_bytes_per_s: int) -> int | None:
    """The fewest bytes of its range in which the job uses no more of the link; None when it does in all of them."""
    low = job.budget_min_bytes
    if link_use(job, low) <= link_bytes_per_s:
        return low
    most = job.budget_max_bytes
    for high in [*(point[0] for point in job.curve if low < point[0] < most), most]:
        if low < high and link_use(job, high) <= link_bytes_per_s:
            # Between two points bytes and seconds are straight lines, and so is what is moved too much.
            (low_s, low_moved), (high_s, high_moved) = _at(job.curve, low), _at(job.curve, high)
            over, under = low_moved - link_bytes_per_s * low_s, link_bytes_per_s * high_s - high_moved
            return min(high, low + math.ceil((high - low) * over / (over + under)))
        low = max(low, high)
    return None


def run_s(job: JobRecord) -> float:
    """How long a waiting job is likely to run with its guaranteed bytes, seconds; infinite when nobody can tell."""
    limit_s = math.inf if job.time_limit_s is None else job.time_limit_s
    if job.steps is None or not job.curve:
        return limit_s
    left = max(job.steps - (job.checkpoint_step or 0), 0)
    return min(left * step_s(job.curve, job.budget_min_bytes), limit_s)


def ends_at(job: JobRecord, now: float) -> float:
    """When a job with a worker is likely to end, unix seconds; infinite when nobody can tell."""
    if job.stop_asked is not None:
        return now
    if job.state not in (JobState.STARTING, JobState.RUNNING):
        return math.inf  # a paused one goes on when somebody says so
    began = job.started_at if job.started_at is not None else now
    limit = math.inf if job.time_limit_s is None else max(now, began + job.time_limit_s)
    return min(now + _steps_left_s(job), limit)


def left_s(job: JobRecord, horizon_s: float) -> float:
    """Seconds that the job has left as it runs now, to weigh gains and losses by; 0 while it stands still."""
    if job.state is JobState.PAUSED:
        return 0.0
    seconds = _steps_left_s(job)
    return horizon_s if math.isinf(seconds) else seconds


def falls(job: JobRecord, high: int, low: int, weight_s: float) -> list[tuple[int, float]]:
    """The way from `high` bytes down to `low`: where each part of it ends, and what each of its bytes costs.

    Args:
        job: whose.
        high: the budget it has.
        low: the smallest it may come to.
        weight_s: seconds it has left at `high`.

    Returns:
        (bytes, seconds lost per byte), largest bytes first.
    """
    if high <= low:
        return []
    if not job.curve:
        return [(low, weight_s / high)]
    now_s = step_s(job.curve, high)
    corners = [point[0] for point in reversed(job.curve) if low < point[0] < high]
    parts: list[tuple[int, float]] = []
    above, above_s = high, now_s
    for below in [*corners, low]:
        below_s = step_s(job.curve, below)
        cost = weight_s * (below_s - above_s) / now_s / (above - below) if now_s > 0.0 else 0.0
        parts.append((below, max(cost, 0.0)))
        above, above_s = below, below_s
    return parts


def rise(job: JobRecord, low: int, high: int, weight_s: float) -> tuple[int, float] | None:
    """Where up to `high` each byte more than `low` saves most: (bytes, seconds saved per byte); None if nowhere."""
    if high <= low:
        return None
    if not job.curve:
        return high, weight_s / max(low, 1)
    now_s = step_s(job.curve, low)
    best: tuple[int, float] | None = None
    for to in [*(point[0] for point in job.curve if low < point[0] < high), high]:
        saved = weight_s * (now_s - step_s(job.curve, to)) / now_s / (to - low) if now_s > 0.0 else 0.0
        if saved > 0.0 and (best is None or saved >= best[1]):
            best = to, saved
    return best


def gain(job: JobRecord, low: int, high: int) -> float:
    """The share by which a step in `high` bytes is shorter than one in `low`; without a forecast, of the bytes."""
    if not job.curve:
        return (high - low) / max(high, 1)
    now_s = step_s(job.curve, low)
    return 1.0 - step_s(job.curve, high) / now_s if now_s > 0.0 else 0.0


def _steps_left_s(job: JobRecord) -> float:
    """Seconds of the steps left, as measured, else as forecast; infinite when nobody can tell."""
    pace_s = job.step_s
    if pace_s is None and job.curve:
        pace_s = step_s(job.curve, job.budget_bytes or 0)
    if job.steps is None or pace_s is None:
        return math.inf
    done = (job.checkpoint_step or 0) if job.started_at is None else job.step
    return max(job.steps - done, 0) * pace_s


def _at(curve: Curve, budget_bytes: int) -> tuple[float, float]:
    """Seconds and link bytes of a step; between two points in proportion, beyond the ends as at the ends."""
    above = bisect_left(curve, budget_bytes, key=_budget)
    if above == 0:
        return curve[0][1:]
    if above == len(curve):
        return curve[-1][1:]
    (low, low_s, low_moved), (high, high_s, high_moved) = curve[above - 1], curve[above]
    share = (budget_bytes - low) / (high - low)
    return low_s + share * (high_s - low_s), low_moved + share * (high_moved - low_moved)


def _budget(point: tuple[int, float, int]) -> int:
    return point[0]

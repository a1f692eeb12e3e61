"""A week of a lab: who submits which jobs when, and how fast jobs run that share a GPU. For `night.py`.

Owns the distributions, each with where it comes from, and the model of one device under several jobs. Knows no
scheduler.

[Note: sources] *Checked* figures were read in an analysis of the published trace; *known* ones are quoted from
memory of the papers and were not looked up again.

- Run times: log-normal, median 5 minutes, sigma 2, cut at half a minute and a day: between Helios (SC'21: median
  206 s, mean 6,652 s; known) and Philly (ATC'19: median 13 minutes, heavy tail; known).
- Arrivals: a Poisson process whose rate follows the clock (lowest from 4 to 8 o'clock) and halves at the weekend: the
  daily pattern of Helios and PAI (known). One submission in eight is a sweep of 4 to 16 alike (assumed).
- Users: activity falls as 1/rank, so that few submit most (PAI, NSDI'22; known).
- Memory of the whole model: log-normal, median 0.45 of the device, sigma 0.7, cut at 0.05 and 1.5, so that 56 % are
  within half of it (Perlmutter telemetry, arXiv 2502.18680: 55 % of the jobs on 80 GB GPUs peak at half or less;
  checked) and 13 % do not fit whole.
- Computation: the share of the time that a job alone keeps the GPU busy, Beta with mean 0.5: Philly reports 52 %
  (known). PAI has a mean of 10.5 % and a median of 1.5 % (checked), so this is on the cautious side.
- Speed against bytes: the shape of the forecasts in `results/forecast-virtual.json`: flat while the transfers hide
  behind the computation, then a straight line down to the smallest workable budget, which is 0.2 to 0.5 of the whole
  there, and here. Moving all that can leave takes `link` times the computation of a step, log-normal, sigma 0.6: for
  Llama-2-7B on 4 x 1024 tokens (162 TFLOP, twice 13.5 GB; DESIGN, section 5) on a GPU of 140 TFLOP/s behind 25 GB/s
  it is 0.94, for a batch four times as large a quarter of that; the median is 0.6. The virtual devices of those
  forecasts were declared with links that make it 2 to 3: a row of its own.
- What users ask for: `gpu_memory: auto` (the smallest workable budget, up to the whole) and no `max_slowdown`: what a
  job file says that says nothing.
- Sharing: the GPU's seconds are divided by time-slicing, equal shares first, none more than it needs; all together
  have 0.9 of a second per second as soon as there are two (the rest is switching; assumed). The link is divided
  likewise. CARMA (arXiv 2508.19073; checked) measured a makespan shorter by 35 % for training jobs put together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

DAY_S, HOUR_S = 86_400.0, 3_600.0
WEEK_S = 7 * DAY_S
DEVICE_BYTES = 80 * 2**30
LINK_BYTES_PER_S = 25 * 10**9
#: Arrivals by hour of the day, against the busiest.
BY_HOUR = (
    0.55, 0.5, 0.45, 0.4, 0.3, 0.3, 0.3, 0.35, 0.5, 0.8, 1.0, 1.0,
    0.75, 0.85, 1.0, 1.0, 1.0, 0.95, 0.8, 0.75, 0.8, 0.8, 0.7, 0.6,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What decides the outcome.

    Attributes:
        load: seconds of work submitted in a week, alone and whole, over the seconds of the GPUs. Above 1, an exclusive
            queue grows all week: a lab that needs more than it has.
        busy: mean share of the time that a job alone keeps the GPU busy.
        shared: what a GPU gives to several jobs together, of what it gives to one.
        link: median of the time to move everything that can leave the device, over the time to compute.
        max_slowdown: what all jobs ask for; None: nobody asks.
    """

    load: float = 1.5
    busy: float = 0.5
    shared: float = 0.9
    link: float = 0.6
    max_slowdown: float | None = None


@dataclass(frozen=True, slots=True)
class LabJob:
    """One job of the trace.

    Attributes:
        number: in the order of arrival, from 1.
        user: whose.
        submitted_s: since Monday 00:00.
        alone_s: its run time alone on a device that holds all of it.
        busy: share of that time that it computes on the GPU.
        curve: (budget bytes, slowdown, seconds of the link per second of `alone_s`), smallest budget first.
    """

    number: int
    user: str
    submitted_s: float
    alone_s: float
    busy: float
    curve: tuple[tuple[int, float, float], ...]

    @property
    def floor_bytes(self) -> int:
        return self.curve[0][0]

    @property
    def whole_bytes(self) -> int:
        return self.curve[-1][0]

    def least_within(self, slowdown: float) -> int:
        """The smallest budget in which a step takes at most `slowdown` times as long as whole."""
        (least, slowest, _), (kink, _, _) = self.curve[0], self.curve[1]
        if slowest <= slowdown:
            return least
        return least + int((kink - least) * (slowest - slowdown) / (slowest - 1.0)) + 1

    def at(self, budget_bytes: int) -> tuple[float, float]:
        """Slowdown and link share in so many bytes, in between two points in between."""
        low = self.curve[0]
        for high in self.curve:
            if high[0] >= budget_bytes:
                share = (budget_bytes - low[0]) / (high[0] - low[0]) if high[0] > low[0] else 0.0
                return low[1] + share * (high[1] - low[1]), low[2] + share * (high[2] - low[2])
            low = high
        return low[1], low[2]


def week(seed: int, devices: int, assumed: Assumptions) -> list[LabJob]:
    """The jobs of one week, in the order of their arrival; as many as make up the load."""
    rng = random.Random(f"{seed} {devices}")  # the same jobs whatever is assumed of their computation
    users = [f"user{number:02}" for number in range(1, 9 + 4 * devices)]
    weights = [1.0 / rank for rank in range(1, len(users) + 1)]
    drawn: list[LabJob] = []
    work_s = 0.0
    while work_s < assumed.load * devices * WEEK_S:
        at_s = _arrival(rng)
        user = rng.choices(users, weights)[0]
        alone_s, whole = _run_s(rng), _whole(rng)
        floor, busy = rng.uniform(0.2, 0.5), rng.betavariate(2.0, 2.0)
        link = assumed.link * rng.lognormvariate(0.0, 0.6)
        for _ in range(rng.randint(4, 16) if rng.random() < 1 / 8 else 1):
            spread_s = alone_s * rng.uniform(0.8, 1.25)
            drawn.append(
                LabJob(0, user, at_s, spread_s, _with_mean(busy, assumed.busy), _curve(whole, floor, link))
            )
            work_s += spread_s
    drawn.sort(key=lambda job: job.submitted_s)
    return [
        LabJob(number, job.user, job.submitted_s, job.alone_s, job.busy, job.curve)
        for number, job in enumerate(drawn, 1)
    ]


def rates(jobs: Sequence[tuple[LabJob, int]], shared: float) -> list[float]:
    """How fast each of the jobs on one device gets on with the given bytes: 1.0 is alone and whole."""
    at = [job.at(budget_bytes) for job, budget_bytes in jobs]
    wanted = [1.0 / slowdown for slowdown, _ in at]
    gpu_s = 1.0 if len(jobs) == 1 else shared
    given = _divide(gpu_s, [rate * job.busy for rate, (job, _) in zip(wanted, jobs, strict=True)])
    wanted = [min(rate, part / job.busy) for rate, part, (job, _) in zip(wanted, given, jobs, strict=True)]
    over = _divide(1.0, [rate * link for rate, (_, link) in zip(wanted, at, strict=True)])
    return [
        min(rate, part / link) if link > 0.0 else rate
        for rate, part, (_, link) in zip(wanted, over, at, strict=True)
    ]


def _divide(whole: float, wants: Sequence[float]) -> list[float]:
    """Equal parts of `whole`, none larger than wanted; what somebody leaves goes to the others."""
    given = [0.0] * len(wants)
    left = whole
    order = sorted(range(len(wants)), key=lambda number: wants[number])
    for place, number in enumerate(order):
        given[number] = min(wants[number], left / (len(order) - place))
        left -= given[number]
    return given


def _arrival(rng: random.Random) -> float:
    while True:
        at_s = rng.uniform(0.0, WEEK_S)
        weekend = 0.5 if at_s >= 5 * DAY_S else 1.0
        if rng.random() < BY_HOUR[int(at_s % DAY_S / HOUR_S)] * weekend:
            return at_s


def _run_s(rng: random.Random) -> float:
    return min(max(rng.lognormvariate(math.log(300.0), 2.0), 30.0), DAY_S)


def _whole(rng: random.Random) -> int:
    return int(min(max(rng.lognormvariate(math.log(0.45), 0.7), 0.05), 1.5) * DEVICE_BYTES)


def _with_mean(busy: float, mean: float) -> float:
    """A share drawn with mean one half, bent to another mean; never quite nothing."""
    return max(0.01, min(1.0, busy ** (math.log(mean) / math.log(0.5))))


def _curve(whole: int, floor: float, link: float) -> tuple[tuple[int, float, float], ...]:
    """(bytes, slowdown, link seconds per second of work): at the floor, where the link begins to bind, and whole."""
    least = int(floor * whole)
    points = [(least, max(1.0, link), link), (whole, 1.0, 0.0)]
    if link > 1.0:
        points.insert(1, (int(whole - (whole - least) / link), 1.0, 1.0))
    return tuple(points)

"""What was forecast for a job that was just submitted: its window, bytes and seconds.

Owns the lines that `spcluster submit` prints. The forecast itself is the plan's.
"""

from __future__ import annotations

from collections.abc import Iterator

from superpipe_cluster.api.views import JobDetail
from superpipe_cluster.cli import render
from superpipe_cluster.cli.times import ahead
from superpipe_cluster.planning import Plan


def of(made: JobDetail, now: float) -> Iterator[tuple[str, str]]:
    """Label and text of every line."""
    try:
        plan = Plan.from_dict(made.plan) if made.plan else None
    except (KeyError, TypeError):  # a head of another version plans in other words
        plan = None
    if plan is None:
        yield "  units", "known once it runs"
    else:
        yield "  units", f"{_window(made, plan)}/{plan.units} on the device at once"
        yield (
            "  model",
            f"{render.size(plan.model_bytes)}, with all that it works with {render.size(plan.whole_bytes)}",
        )
        yield from _figures(made, plan)
    yield (
        "  budget",
        render.span(made.budget_min_bytes, made.budget_max_bytes) if made.budget_max_bytes else "",
    )
    yield "  RAM", render.size(made.host_bytes) if made.host_bytes else ""
    yield "  after", ", ".join(made.after)
    at = made.expected_start_at
    yield "  start", "" if at is None else f"likely {ahead(at, now)}"


def _figures(made: JobDetail, plan: Plan) -> Iterator[tuple[str, str]]:
    """Peak and seconds, for the wanted and the guaranteed end of the job's range of budgets."""
    rows = [] if plan.forecast is None else [plan.forecast.at(made.budget_max_bytes)]
    if plan.forecast is not None and made.budget_min_bytes < made.budget_max_bytes:
        rows.append(plan.forecast.at(made.budget_min_bytes))
    known = [row for row in rows if row is not None]
    if not known:
        yield "  peak", f"at most {render.size(min(plan.whole_bytes, made.budget_max_bytes))}"
        return
    yield "  peak", " or ".join(render.size(row.peak_bytes) for row in known)
    yield (
        "  step",
        ", ".join(
            f"{render.seconds(row.step_s)} ({render.slowdown(row.slowdown)}) in {render.size(row.budget_bytes)}"
            for row in known
        ),
    )


def _units(plan: Plan, budget_bytes: int) -> int:
    row = plan.forecast.at(budget_bytes) if plan.forecast is not None else None
    return plan.k(budget_bytes) if row is None else row.k


def _window(made: JobDetail, plan: Plan) -> str:
    """The k that follows from the budget, `5` or `3..7`, unless the job asks for one."""
    asked = made.spec.get("streaming", {}).get("k")
    least, most = (_units(plan, budget) for budget in (made.budget_min_bytes, made.budget_max_bytes))
    if asked is not None:
        least, most = min(asked, least), min(asked, most)
    return str(least) if least == most else f"{least}..{most}"

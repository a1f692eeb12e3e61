"""The picture of a forecast: seconds of a step against the budget.

Owns the drawing, and saying what to install when it cannot be drawn.
"""

from __future__ import annotations

from pathlib import Path

from superpipe_cluster.errors import BadInput
from superpipe_cluster.planning.forecast import Forecast, ForecastRow


def draw_forecast(forecast: Forecast, chosen: ForecastRow | None, title: str, path: Path) -> None:
    """Draw `forecast` into `path`, with the budget that the job would get.

    Raises:
        BadInput: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput(
            "--plot needs matplotlib, which is not installed",
            hint="pip install 'superpipe_cluster[plot]'",
        ) from None
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    gib = [row.budget_bytes / 2**30 for row in forecast.rows]
    axes.plot(gib, [row.step_s for row in forecast.rows], marker="o", label="forecast")
    axes.axhline(forecast.whole_step_s, linestyle=":", color="grey", label="whole model on the device")
    axes.axvline(
        forecast.no_slowdown_bytes / 2**30, linestyle="--", color="grey", label="no slowdown from here"
    )
    if chosen is not None:
        axes.plot(chosen.budget_bytes / 2**30, chosen.step_s, "s", markersize=10, label="this job's budget")
    axes.set(xlabel="budget (GiB)", ylabel="seconds per step", title=title)
    axes.set_ylim(bottom=0)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # no such folder; an ending that is no kind of picture
        raise BadInput(f"the plot cannot be written to {path}: {error}", hint="name a .png file") from error

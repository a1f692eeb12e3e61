"""`spcluster plan`: what a job would take, in bytes and seconds, at every budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from superpipe_cluster import bundled, spec
from superpipe_cluster.api.views import DeviceView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import job_path, open_client, output_option
from superpipe_cluster.cli.plot import draw_forecast
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.words import note
from superpipe_cluster.errors import BadInput, NeverFits, NotRunning
from superpipe_cluster.head.admission import Needs, needs_of
from superpipe_cluster.head.submission import planned
from superpipe_cluster.machine import Device, discover
from superpipe_cluster.machine.host import host_memory
from superpipe_cluster.planning import ForecastRow, Measured, Plan, measure_job, plan_job
from superpipe_cluster.planning.forecast import Forecast

#: Exit codes: it would start now, it would wait for others, it can never run.
FITS, WAITS = 0, 3

_COLUMNS = (
    Column(""),
    Column("BUDGET", justify="right"),
    Column("K", justify="right"),
    Column("K'", justify="right"),
    Column("PEAK", justify="right"),
    Column("RAM", justify="right"),
    Column("LINK/STEP", justify="right"),
    Column("STEP", justify="right"),
    Column("SLOWDOWN", justify="right"),
    Column("BOUND"),
)
_MEASURED = (
    Column("BUDGET", justify="right"),
    Column("PEAK", justify="right"),
    Column("FORECAST", justify="right"),
    Column("STEP", justify="right"),
    Column("FORECAST", justify="right"),
    Column("ERROR", justify="right"),
)


@click.command("plan")
@click.argument("job", metavar="PATH|jobs:NAME")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override a field of the file (repeatable).",
)
@click.option(
    "--device", metavar="DEVICE", help="Plan for this device (cpu:3GiB@2GB/s, cuda:0) and ask no cluster."
)
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE.png", help="Draw time against budget.")
@click.option("--measure", is_flag=True, help="Also run a few steps at some budgets, to check the forecast.")
@output_option
def command(
    job: str, overrides: tuple[str, ...], device: str | None, plot: str | None, measure: bool, as_json: bool
) -> int:
    """Say what a job takes at every budget.

    No weights are loaded and nothing is run. Exits with 0 if the job would start now, 3 if it would have to
    wait, 4 if it can never run here. Asks the cluster for its devices if there is one.

    K is how many units of the model the budget holds at once, K' how many move together. `>` marks the budget
    that the job would get.

    \b
    Example:  spcluster plan jobs:train --device cuda:0
    """
    checked = spec.load(job_path(job), overrides=list(overrides))
    checked.local_files()
    if checked.model is not None and checked.model.source_job is not None:
        raise BadInput(
            f"the model of {checked.name} is made by the job {checked.model.source_job}",
            hint="plan that job's file: the model is the same; `spcluster submit` plans both",
        )
    program = checked.own_program or bundled.worker_path(checked.worker)
    found = _devices(device)
    largest, cluster = max(found, key=lambda one: one[0].capacity_bytes)[0], found[0][1] is not None
    made = plan_job(checked, program, cuda=largest.kind == "cuda", device=planned(largest), hide_gpus=cluster)
    if made is None or made.forecast is None:
        raise BadInput(
            f"{checked.worker} does not say how to plan it",
            hint="give the worker program a probe(job), as in workers/train_lm.py",
        )
    refused: NeverFits | None = None
    needs: Needs | None = None
    try:
        needs = needs_of(checked, made, [one for one, _ in found], host_memory().total_bytes)
    except NeverFits as error:
        refused = error
    chosen = _chosen(made.forecast, needs, largest.capacity_bytes)
    trials = measure_job(checked, program, planned(largest), _some(made.forecast)) if measure else []
    if as_json:
        render.print_json(_as_json(made, chosen, refused, trials, largest))
    else:
        _print(made, made.forecast, chosen, largest)
        if trials:
            click.echo()
            render.table(_MEASURED, (tuple(_measured(made.forecast, one)) for one in trials))
    if plot is not None:
        draw_forecast(made.forecast, chosen, checked.name, Path(plot))
        note(f"drawn in {plot}")
    if refused is not None:
        raise refused
    assert needs is not None
    return FITS if any(_free(one) >= needs.budget_min_bytes for one in found) else WAITS


def _devices(asked: str | None) -> list[tuple[Device, DeviceView | None]]:
    """The devices to plan for; with what the running cluster says of them, if it was asked."""
    if asked is not None:
        return [(device, None) for device in discover([asked])]
    try:
        with open_client() as client:
            views = client.devices().devices
    except NotRunning:
        return [(device, None) for device in discover()]
    return [(_device(view, at), view) for at, view in enumerate(views)]


def _device(view: DeviceView, index: int) -> Device:
    kind = "cuda" if view.kind == "cuda" else "virtual"
    return Device(view.id, kind, view.name, view.capacity_bytes, view.link_bytes_per_s, index)


def _free(found: tuple[Device, DeviceView | None]) -> int:
    device, view = found
    return device.capacity_bytes if view is None else view.free_bytes


def _chosen(forecast: Forecast, needs: Needs | None, capacity_bytes: int) -> ForecastRow | None:
    """The row of what the job would get on an empty device."""
    return None if needs is None else forecast.at(min(needs.budget_max_bytes, capacity_bytes))


def _some(forecast: Forecast) -> list[int]:
    """Budgets to measure: from a little above the smallest to the whole."""
    rows = forecast.rows
    return sorted({rows[at].budget_bytes for at in (len(rows) // 8, len(rows) // 3, len(rows) * 2 // 3, -1)})


def _print(made: Plan, forecast: Forecast, chosen: ForecastRow | None, device: Device) -> None:
    render.table(_COLUMNS, (tuple(_row(row, marked=row == chosen)) for row in forecast.rows))
    click.echo()
    render.facts(_facts(made, forecast, device))


def _row(row: ForecastRow, *, marked: bool) -> Iterator[Text | str]:
    yield ">" if marked else ""
    yield render.size(row.budget_bytes)
    yield str(row.k)
    yield str(row.k_prime)
    yield render.size(row.peak_bytes)
    yield render.size(row.host_bytes)
    yield render.size(row.link_bytes_per_step)
    yield render.seconds(row.step_s)
    yield f"{row.slowdown:.2f}x"
    yield row.bound


def _facts(made: Plan, forecast: Forecast, device: Device) -> Iterator[tuple[str, str]]:
    yield "units", f"{forecast.units}, {render.size(made.model_bytes)} of weights"
    yield "smallest", f"{render.size(made.floor_bytes)} ({made.floor_bytes} bytes)"
    yield "no slowdown", f"from {render.size(forecast.no_slowdown_bytes)} on"
    yield "whole", f"{render.size(forecast.whole_bytes)}: {render.seconds(forecast.whole_step_s)} per step"
    yield "device", f"{device.name}, {render.size(device.capacity_bytes)}"
    yield (
        "seconds",
        f"assumed: nobody has measured this {forecast.device} yet; `spcluster plan --device cuda:0` does"
        if forecast.assumed
        else (f"corrected by {forecast.corrected:.2f}, from the last run" if forecast.corrected != 1 else ""),
    )


def _measured(forecast: Forecast, one: Measured) -> Iterator[Text | str]:
    row = forecast.at(one.budget_bytes)
    assert row is not None
    yield render.size(one.budget_bytes)
    yield render.size(one.peak_bytes)
    yield render.size(row.peak_bytes)
    yield render.seconds(one.step_s)
    yield render.seconds(row.step_s)
    yield f"{100 * (row.step_s / one.step_s - 1):+.1f} %"


def _as_json(
    made: Plan, chosen: ForecastRow | None, refused: NeverFits | None, trials: list[Measured], device: Device
) -> dict[str, Any]:
    return {
        **made.to_dict(),
        "device": device.to_json(),
        "chosen_budget_bytes": None if chosen is None else chosen.budget_bytes,
        "refused": None if refused is None else refused.message,
        "measured": [one.to_dict() for one in trials],
    }

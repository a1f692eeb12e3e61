"""`spcluster top`: the devices right now, whose bytes and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from superpipe_cluster.api.views import TopDeviceView, TopJobView, TopView
from superpipe_cluster.cli import bars, render
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.client import Client
from superpipe_cluster.spec.units import format_bytes

_COLUMNS = (
    Column("ID", justify="right"),
    Column("NAME", narrow="shorten", widest=24),
    Column("USER", narrow="shorten", widest=10),
    Column("HELD", justify="right"),
    Column("BUDGET", justify="right"),
    Column("K/N", justify="right"),
    Column("STEP", justify="right"),
    Column("S/STEP", justify="right"),
    Column("FORECAST", justify="right"),
    Column("GB/S", justify="right"),
)

_LOOK_EVERY_S = 1.0


@click.command("top")
@click.option("--once", is_flag=True, help="Print it once, as is done where stdout is no terminal.")
@output_option
def command(once: bool, as_json: bool) -> None:
    """Show the devices right now.

    Of each, a bar of its bytes by job: held, promised and not yet held, free, and those of processes that are not
    the cluster's. Below it the jobs: how many of their model's units they may hold at once, seconds of a step
    beside the forecast at this budget, and how much of the link they use. Until Ctrl-C.

    \b
    Example:  spcluster top --once
    """
    with open_client() as client:
        screen = render.console()
        if as_json:
            render.print_json(client.top().model_dump(mode="json"))
        elif once or not screen.is_terminal:
            render.echo(_screen(client.top(), screen))
        else:
            _watch(client)


def _watch(client: Client) -> None:
    screen = render.console()
    try:
        with Live(console=screen, auto_refresh=False, screen=True) as live:
            while True:
                live.update(render.live(_screen(client.top(), screen)), refresh=True)
                time.sleep(_LOOK_EVERY_S)
    except KeyboardInterrupt:
        return


def _screen(top: TopView, screen: Console) -> list[str]:
    """The lines of it, one device below the other."""
    shown: list[str] = []
    for device in top.devices:
        shown += [*_device(device, screen), ""]
    running = sum(len(device.jobs) for device in top.devices)
    ram = f"RAM {render.size(top.host.available_bytes)} of {render.size(top.host.total_bytes)} available"
    return [*shown, bars.LEGEND, f"{running} on a device, {top.queued} waiting; {ram}"]


def _device(device: TopDeviceView, screen: Console) -> Iterator[str]:
    shares = [bars.Share(job.id, _promised(job), job.held_bytes) for job in device.jobs]
    used_bytes = sum(share.promised_bytes for share in shares)
    free_bytes = max(device.capacity_bytes - device.foreign_bytes - used_bytes, 0)
    foreign = f", {render.size(device.foreign_bytes)} not ours" if device.foreign_bytes else ""
    used, each_way = _rate(device.link_used_bytes_per_s), _rate(device.link_bytes_per_s)
    link = f"link {used} GB/s both ways, of {each_way} each"
    yield f"{device.id}  {device.name}"[: screen.width]
    figures = f"{render.size(device.capacity_bytes)}, {format_bytes(free_bytes)} free{foreign}; {link}"
    yield figures[: screen.width]
    yield render.ansi(bars.bar(device.capacity_bytes, device.foreign_bytes, shares, screen.width), screen)
    if device.jobs:
        yield from render.layout(_COLUMNS, (_row(job, at) for at, job in enumerate(device.jobs)))


def _row(job: TopJobView, position: int) -> tuple[Text | str, ...]:
    arrow = ""
    if job.asked_bytes is not None and job.asked_bytes != job.budget_bytes:
        arrow = "↓" if job.asked_bytes < job.budget_bytes else "↑"
    return (
        Text(job.id, style=bars.colour(position)),
        job.name,
        job.user,
        render.size(job.held_bytes),
        f"{render.size(job.budget_bytes)}{arrow}",
        render.of(job.k, job.units),
        render.of(job.step, job.steps) if job.step or job.steps else "-",
        render.seconds(job.step_s) if job.step_s else "-",
        render.seconds(job.forecast_step_s) if job.forecast_step_s else "-",
        _rate(job.link_bytes_per_s),
    )


def _promised(job: TopJobView) -> int:
    """What counts against the device: while it is being resized, the larger of the two."""
    return max(job.budget_bytes, job.asked_bytes or 0)


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f}" if bytes_per_s else "0"

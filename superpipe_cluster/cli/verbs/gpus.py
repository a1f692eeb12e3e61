"""`spcluster gpus`: the devices and who holds them."""

from __future__ import annotations

import click

from superpipe_cluster.api.views import DeviceView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.words import note

_COLUMNS = (
    Column("DEVICE", widest=14),
    Column("NAME", narrow="shorten"),
    Column("CAPACITY", justify="right"),
    Column("USED", justify="right"),
    Column("FREE", justify="right"),
    Column("LINK", justify="right"),
    Column("JOBS", justify="right"),
)

_JOB_COLUMNS = (
    Column("DEVICE", widest=14),
    Column("JOB", justify="right"),
    Column("NAME", narrow="shorten"),
    Column("USER", widest=12),
    Column("BUDGET", justify="right"),
    Column("HOLDS", justify="right"),
)


@click.command("gpus")
@output_option
def command(as_json: bool) -> None:
    """List the devices and who holds them.

    USED is what the budgets given away add up to; it never exceeds CAPACITY.

    \b
    Example:  spcluster gpus
    """
    with open_client() as client:
        found = client.devices()
    if as_json:
        render.print_json([device.model_dump(mode="json") for device in found.devices])
        return
    render.table(_COLUMNS, (_row(device) for device in found.devices))
    if any(device.jobs for device in found.devices):
        click.echo()
        render.table(
            _JOB_COLUMNS,
            (
                (
                    device.id,
                    job.id,
                    job.name,
                    job.user,
                    render.size(job.budget_bytes),
                    render.size(job.held_bytes),
                )
                for device in found.devices
                for job in device.jobs
            ),
        )
    host = found.host
    note(f"RAM: {render.size(host.available_bytes)} of {render.size(host.total_bytes)} available")


def _row(device: DeviceView) -> tuple[str, ...]:
    return (
        device.id,
        device.name,
        render.size(device.capacity_bytes),
        render.size(device.used_bytes),
        render.size(device.free_bytes),
        f"{device.link_bytes_per_s / 1e9:.1f} GB/s",
        str(len(device.jobs)),
    )

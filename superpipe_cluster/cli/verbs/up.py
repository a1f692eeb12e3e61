"""`spcluster up`: a cluster on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click

from superpipe_cluster.cli.options import DEFAULT_PORT, output_option
from superpipe_cluster.cli.words import note


@click.command("up")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="cpu:3GiB@2GB/s for a virtual device, cuda:0 or a UUID for a GPU, cuda:0=12GiB for a part of one "
    "(repeatable). "
    "Default: all GPUs, or a virtual device of a quarter of the RAM.",
)
@click.option("--redis", metavar="URL", help="Use this Redis instead of starting one.")
@click.option("--ray", metavar="ADDRESS", help="Use this Ray instead of starting one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the API listens on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="Port of the API."
)
@output_option
def command(
    devices: tuple[str, ...], redis: str | None, ray: str | None, host: str, port: int, as_json: bool
) -> None:
    """Start a cluster on this machine.

    Starts Redis, Ray and the head, and writes the admin's token. After `spcluster down --head-only`, or when
    the head has died, brings the head back to the jobs that went on without it.
    """
    # Here, so that `up --help` stays fast.
    from superpipe_cluster.cli import render
    from superpipe_cluster.cli.render import Column
    from superpipe_cluster.client import home_directory
    from superpipe_cluster.head import cluster

    root: Path = home_directory(os.environ)
    options = cluster.UpOptions(home=root, port=port, devices=devices, redis=redis, ray=ray, host=host)
    started = cluster.up(options, say=note)
    if as_json:
        render.print_json(
            {
                "url": started.url,
                "home": str(root),
                "token_path": str(started.token_path),
                "adopted": started.adopted,
                "devices": [device.to_json() for device in started.devices],
            }
        )
        return
    click.echo(f"the cluster {'is back' if started.adopted else 'runs'} at {started.url}")
    columns = (
        Column("DEVICE", widest=14),
        Column("NAME", narrow="shorten"),
        Column("CAPACITY", justify="right"),
        Column("LINK", justify="right"),
    )
    render.table(
        columns,
        (
            (each.id, each.name, render.size(each.capacity_bytes), f"{each.link_bytes_per_s / 1e9:.1f} GB/s")
            for each in started.devices
        ),
    )
    note("try it: spcluster examples, then spcluster submit jobs:NAME -f")

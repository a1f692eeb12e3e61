"""`spcluster up`: a cluster on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from superpipe_cluster.cli.options import DEFAULT_PORT, output_option
from superpipe_cluster.cli.words import note

if TYPE_CHECKING:
    from superpipe_cluster.head.cluster import Started


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
@click.option(
    "--redis",
    metavar="URL",
    envvar="SPCLUSTER_REDIS_URL",
    show_envvar=True,
    help="Use this Redis instead of starting one. A password is better put in the variable: arguments are in "
    "every process listing.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    envvar="SPCLUSTER_RAY_ADDRESS",
    show_envvar=True,
    help="Use this Ray instead of starting one.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the API listens on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="Port of the API."
)
@click.option(
    "--foreground",
    "stay",
    is_flag=True,
    help="Stay until SIGTERM or Ctrl-C, then stop the cluster; fail when it dies. For containers and service "
    "managers.",
)
@output_option
def command(
    devices: tuple[str, ...],
    redis: str | None,
    ray: str | None,
    host: str,
    port: int,
    stay: bool,
    as_json: bool,
) -> None:
    """Start a cluster on this machine.

    Starts Redis, Ray and the head, and writes the admin's token. After `spcluster down --head-only`, or when
    the head has died, brings the head back to the jobs that went on without it.

    \b
    Example:  spcluster up --device cpu:3GiB@2GB/s
    """
    # Here, so that `up --help` stays fast.
    from superpipe_cluster.client import home_directory
    from superpipe_cluster.head import cluster, foreground

    root: Path = home_directory(os.environ)
    options = cluster.UpOptions(home=root, port=port, devices=devices, redis=redis, ray=ray, host=host)
    if not stay:
        _announce(cluster.up(options, say=note), root, as_json)
        if not as_json:
            note("try it: spcluster examples, then spcluster submit jobs:NAME -f")
        return

    def announce(started: Started) -> None:
        _announce(started, root, as_json)
        sys.stdout.flush()  # whoever reads it would otherwise wait for the end
        note("until SIGTERM or Ctrl-C; jobs that run then save first")

    foreground.run(options, announce, say=note)
    note("the cluster is stopped")


def _announce(started: Started, root: Path, as_json: bool) -> None:
    from superpipe_cluster.cli import render
    from superpipe_cluster.cli.render import Column

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

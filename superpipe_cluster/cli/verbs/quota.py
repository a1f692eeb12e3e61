"""`spcluster quota`: what each user may hold."""

from __future__ import annotations

import click

from superpipe_cluster.api.views import QuotaView
from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import checked_size, open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.words import note

_COLUMNS = (
    Column("USER", narrow="shorten"),
    Column("GUARANTEED", justify="right"),
    Column("LIMIT", justify="right"),
    Column("WEIGHT", justify="right"),
)


@click.group("quota")
def command() -> None:
    """Show and set what each user may hold.

    Guaranteed device bytes are lent to others while their owner does not need them, and taken back when a job of
    theirs waits. A limit is never exceeded. Users without a quota have no guarantee and no limit.

    \b
    Example:  spcluster quota set alice --guaranteed 8GiB --limit 20GiB
    """


@command.command("list")
@output_option
def list_(as_json: bool) -> None:
    """List the quotas.

    \b
    Example:  spcluster quota list
    """
    with open_client() as client:
        quotas = client.quotas()
    if as_json:
        render.print_json([quota.model_dump(mode="json") for quota in quotas])
    elif quotas:
        render.table(_COLUMNS, (_row(quota) for quota in quotas))
    else:
        note("nobody has a quota: everybody may use everything, with the same weight")


@command.command("set")
@click.argument("user")
@click.option(
    "--guaranteed",
    metavar="SIZE",
    callback=checked_size,
    default="0B",
    show_default=True,
    help="Device bytes that are theirs.",
)
@click.option(
    "--limit",
    metavar="SIZE",
    callback=checked_size,
    help="Device bytes they never exceed, over all their jobs. Default: none.",
)
@click.option(
    "--weight",
    type=click.FloatRange(min=0, min_open=True, max=1000),
    default=1.0,
    show_default=True,
    help="How many ordinary users they count for when it is about whose turn it is.",
)
def set_(user: str, guaranteed: str, limit: str | None, weight: float) -> None:
    """Set a user's quota, all of it. For admins.

    \b
    Example:  spcluster quota set alice --guaranteed 8GiB --limit 20GiB --weight 2
    """
    with open_client() as client:
        quota = client.set_quota(user, guaranteed=guaranteed, limit=limit, weight=weight)
    render.table(_COLUMNS, [_row(quota)])


@command.command("remove")
@click.argument("user")
def remove(user: str) -> None:
    """Take a user's quota away. For admins.

    \b
    Example:  spcluster quota remove alice
    """
    with open_client() as client:
        client.remove_quota(user)
    click.echo(f"{user} has no quota")


def _row(quota: QuotaView) -> tuple[str, ...]:
    return (
        quota.user,
        render.size(quota.guaranteed_bytes),
        "none" if quota.limit_bytes is None else render.size(quota.limit_bytes),
        f"{quota.weight:g}",
    )

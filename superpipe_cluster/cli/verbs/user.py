"""`spcluster user`: who may use the cluster."""

from __future__ import annotations

import click

from superpipe_cluster.cli import render
from superpipe_cluster.cli.options import open_client, output_option
from superpipe_cluster.cli.render import Column
from superpipe_cluster.cli.words import note


@click.group("user")
def command() -> None:
    """Add and list users.

    For admins. The first admin is whoever ran `spcluster up`.

    \b
    Example:  spcluster user add alice
    """


@command.command("add")
@click.argument("name")
@click.option("--admin", is_flag=True, help="They may touch everybody's jobs and add users.")
@output_option
def add(name: str, admin: bool, as_json: bool) -> None:
    """Let somebody in and print their token.

    The token is shown this once; the cluster keeps only a hash of it.

    \b
    Example:  spcluster user add alice
    """
    with open_client() as client:
        user = client.add_user(name, role="admin" if admin else "user")
    if as_json:
        render.print_json(user.model_dump(mode="json"))
        return
    click.echo(user.token)
    note(f"the token of {user.name}, for them to keep: export SPCLUSTER_TOKEN=...")


@command.command("list")
@output_option
def list_(as_json: bool) -> None:
    """List who has a token.

    \b
    Example:  spcluster user list
    """
    with open_client() as client:
        users = client.users()
    if as_json:
        render.print_json([user.model_dump(mode="json") for user in users])
        return
    render.table(
        (Column("NAME", narrow="shorten"), Column("ROLE")), ((user.name, user.role) for user in users)
    )

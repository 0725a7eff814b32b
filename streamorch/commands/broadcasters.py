"""`streamorch broadcasters`."""

from uuid import uuid4

import click

from streamorch.commands import database
from streamorch.repositories import broadcasters


@click.group("broadcasters")
def command() -> None:
    """Who may publish."""


@command.command("create")
@click.argument("display_name")
def create(display_name: str) -> None:
    """Make a broadcaster and print its id."""
    broadcaster_id = uuid4()
    with database() as conn:
        broadcasters.create(conn, broadcaster_id=broadcaster_id, display_name=display_name, metadata={}, disabled=False)
    click.echo(broadcaster_id)


@command.command("list")
def index() -> None:
    """Print id, state and name of each, newest first."""
    with database() as conn:
        for row in broadcasters.page(conn, limit=1000, after=None):
            click.echo(f"{row.id}  {'disabled' if row.disabled else 'enabled ':8}  {row.display_name}")

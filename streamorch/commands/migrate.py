"""`streamorch migrate`."""

import click

from streamorch.commands import one_line, settings
from streamorch.repositories import migrate


@click.command("migrate")
def command() -> None:
    """Bring the schema of DATABASE_URL up to this release."""
    with one_line():
        for name in migrate.apply(settings().database_url) or ["schema is current"]:
            click.echo(name)

"""`streamorch serve`."""

import os

import click

from streamorch import local
from streamorch.commands import one_line
from streamorch.repositories import migrate
from streamorch.settings import Settings


@click.command("serve")
def command() -> None:
    """Run the service on the database of DATABASE_URL, which `migrate` has made ready."""
    with one_line():
        settings = Settings.from_env(os.environ)
        local.check_port(settings)
        local.check_tracing(settings)
        migrate.check(settings.database_url)
    program = local.service_command()
    os.execv(program[0], program)  # noqa: S606  # our own Python, without a shell

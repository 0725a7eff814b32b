"""`streamorch run`."""

import os

import click

from streamorch import local
from streamorch.commands import one_line


@click.command("run")
def command() -> None:
    """Try it: the service with a PostgreSQL of its own, if DATABASE_URL names none."""
    with one_line():
        local.run(os.environ)

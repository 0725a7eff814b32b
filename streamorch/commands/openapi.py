"""`streamorch openapi`."""

import click

from streamorch import openapi
from streamorch.app import with_routes


@click.command("openapi")
def command() -> None:
    """Print the contract: the HTTP API as an OpenAPI 3.1 document."""
    click.echo(openapi.text(with_routes()), nl=False)

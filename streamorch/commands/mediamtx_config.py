"""`streamorch mediamtx-config`."""

import click

from streamorch import mediamtx_config
from streamorch.commands import Failure, environ_without, one_line
from streamorch.settings import Settings


@click.command("mediamtx-config")
@click.option("--snippet", is_flag=True, help="Only the keys to merge into a configuration of your own.")
@click.option(
    "--hooks",
    type=click.Choice(mediamtx_config.HOOKS),
    default="curl",
    show_default=True,
    help="What brings the hooks. None of the container images of MediaMTX has curl; the -ffmpeg ones have wget.",
)
@click.option("--for", "version", metavar="VERSION", help="The MediaMTX that it is for, if older than v1.19.3.")
def command(snippet: bool, hooks: str, version: str | None) -> None:
    """Print MediaMTX's configuration for these settings, with the callback secret in it."""
    try:
        suits = mediamtx_config.parse_version(version) if version else mediamtx_config.CURRENT
    except ValueError as error:
        raise Failure(f"--for: {error}") from None
    with one_line():
        unused = {"API_SECRET": "unused", "DATABASE_URL": "postgresql:///unused"}
        settings = Settings.from_env(unused | environ_without(*unused))
        made = (mediamtx_config.snippet if snippet else mediamtx_config.config)(settings, hooks=hooks, version=suits)
    click.echo(made, nl=False)

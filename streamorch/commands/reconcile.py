"""`streamorch reconcile`."""

import os

import click
import msgspec

from streamorch import local
from streamorch.commands import Failure, one_line
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import LostLead, Reconciler
from streamorch.repositories import connect, migrate
from streamorch.settings import Settings


@click.command("reconcile")
@click.option("--once", is_flag=True, required=True, help="One tick; the service itself does one every two seconds.")
def command(once: bool) -> None:
    """Hold the streams against the media server now, set them right, and print what was seen and done."""
    with one_line():
        settings = Settings.from_env(local.completed(os.environ))
        migrate.check(settings.database_url)
        api = ControlAPI(
            settings.mediamtx_api_url, user=settings.mediamtx_api_user, password=settings.mediamtx_api_passwords[0]
        )
        reconciler = Reconciler(settings, api)
        with connect(settings.database_url) as conn:
            try:
                report = reconciler.tick(conn, force=True)
            except LostLead:
                raise Failure("another process took the lead meanwhile; try again") from None
            finally:
                reconciler.resign(conn)
    if report is None:
        raise Failure("another process leads")
    click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())

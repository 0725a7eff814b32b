"""The `streamorch` command. What goes wrong at start is one line on standard error, never a traceback."""

import os
import signal
import sys

if (__name__ == "__main__" or sys.argv[0].endswith("/streamorch")) and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    # A Ctrl-C while the rest is imported ends the command without a traceback; `run` catches it later.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from uuid import UUID, uuid4

import click
import flask
import msgspec
import psycopg

from streamorch import __version__, keys, local, mediamtx_config, openapi, paths, problems, urls
from streamorch.app import create_app, with_routes
from streamorch.blueprints import Service, moment
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import LostLead, Reconciler
from streamorch.repositories import Actor, Connection, Database, connect
from streamorch.repositories import broadcasters as broadcaster_rows
from streamorch.repositories import migrate as migrations
from streamorch.repositories import stream_keys as key_rows
from streamorch.settings import SettingError, Settings


class Failure(click.ClickException):
    """Ends the command with exit code 1 and its message as one line."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"streamorch: {self.message}", file=file or sys.stderr)


@contextmanager
def one_line() -> Iterator[None]:
    """Raise what an operator can mend as a Failure; everything else is a bug and keeps its traceback."""
    try:
        yield
    except (SettingError, local.StartError, migrations.SchemaError) as error:
        raise Failure(str(error)) from None
    except psycopg.OperationalError as error:
        raise Failure(f"the database does not answer: {' '.join(str(error).split())}") from None
    except psycopg.ProgrammingError as error:
        # Without a code of the server's it is libpq that cannot read the URL. It quotes it, password and all.
        reason = error.diag.message_primary if error.sqlstate else "DATABASE_URL is not a URL that PostgreSQL can read"
        raise Failure(f"the database refuses: {reason}" if error.sqlstate else str(reason)) from None


@click.group()
@click.version_option(__version__, prog_name="streamorch", message="%(prog)s %(version)s")
def main() -> None:
    """Decides who may publish to a MediaMTX server, and knows what is live."""


@main.command()
def run() -> None:
    """Try it: the service with a PostgreSQL of its own, if DATABASE_URL names none."""
    with one_line():
        local.run(os.environ)


@main.command()
def serve() -> None:
    """Run the service on the database of DATABASE_URL, which `migrate` has made ready."""
    with one_line():
        settings = Settings.from_env(os.environ)
        local.check_port(settings)
        local.check_tracing(settings)
        migrations.check(settings.database_url)
    command = local.service_command()
    os.execv(command[0], command)  # noqa: S606  # our own Python, without a shell


@main.command()
def migrate() -> None:
    """Bring the schema of DATABASE_URL up to this release."""
    with one_line():
        for name in migrations.apply(_database_url()) or ["schema is current"]:
            click.echo(name)


@main.command("mediamtx-config")
@click.option("--snippet", is_flag=True, help="Only the keys to merge into a configuration of your own.")
@click.option(
    "--hooks",
    type=click.Choice(mediamtx_config.HOOKS),
    default="curl",
    show_default=True,
    help="What brings the hooks. None of the container images of MediaMTX has curl; the -ffmpeg ones have wget.",
)
@click.option("--for", "version", metavar="VERSION", help="The MediaMTX that it is for, if older than v1.19.3.")
def show_mediamtx_config(snippet: bool, hooks: str, version: str | None) -> None:
    """Print MediaMTX's configuration for these settings, with the callback secret in it."""
    try:
        suits = mediamtx_config.parse_version(version) if version else mediamtx_config.CURRENT
    except ValueError as error:
        raise Failure(f"--for: {error}") from None
    with one_line():
        unused = {"API_SECRET": "unused", "DATABASE_URL": "postgresql:///unused"}
        settings = Settings.from_env(unused | _environ_without(*unused))
        made = (mediamtx_config.snippet if snippet else mediamtx_config.config)(settings, hooks=hooks, version=suits)
    click.echo(made, nl=False)


@main.command("openapi")
def show_openapi() -> None:
    """Print the contract: the HTTP API as an OpenAPI 3.1 document."""
    click.echo(openapi.text(with_routes()), nl=False)


@main.group()
def broadcasters() -> None:
    """Who may publish."""


@broadcasters.command("create")
@click.argument("display_name")
def create_broadcaster(display_name: str) -> None:
    """Make a broadcaster and print its id."""
    broadcaster_id = uuid4()
    with one_line(), _database() as conn:
        broadcaster_rows.create(
            conn, broadcaster_id=broadcaster_id, display_name=display_name, metadata={}, disabled=False
        )
    click.echo(broadcaster_id)


@broadcasters.command("list")
def list_broadcasters() -> None:
    """Print id, state and name of each, newest first."""
    with one_line(), _database() as conn:
        for row in broadcaster_rows.page(conn, limit=1000, after=None):
            click.echo(f"{row.id}  {'disabled' if row.disabled else 'enabled ':8}  {row.display_name}")


@main.group("keys")
def stream_keys() -> None:
    """The keys that broadcasters publish with."""


@stream_keys.command("create")
@click.argument("broadcaster_id", type=click.UUID)
@click.option("--label", help="What the key is for.")
@click.option("--path", help="The only path that it may publish to; any free one without.")
@click.option("--takeover", type=click.Choice(["stalled", "always", "never"]), default="stalled", show_default=True)
@click.option("--expires-at", help="RFC 3339, with an offset: 2026-12-31T23:59:59Z.")
def create_key(
    broadcaster_id: UUID, label: str | None, path: str | None, takeover: str, expires_at: str | None
) -> None:
    """Make a stream key and print it: its value is shown this once."""
    if path is not None and (refusal := paths.refusal(path)):
        raise Failure(refusal)
    try:
        expiry = moment(expires_at) if expires_at else None
    except (ValueError, msgspec.ValidationError):
        raise Failure("--expires-at is no RFC 3339 time with an offset, like 2026-12-31T23:59:59Z") from None
    key_id, value = uuid4(), keys.mint()
    with one_line(), _database() as conn:
        outcome = key_rows.create(
            conn,
            stream_key_id=key_id,
            broadcaster_id=broadcaster_id,
            key_hash=keys.digest(value),
            hint=keys.hint(value),
            label=label,
            path=path,
            takeover=takeover,
            expires_at=expiry,
            disabled=False,
            metadata={},
        )
    if outcome != "created":
        raise Failure({"unknown-broadcaster": "no such broadcaster"}.get(outcome, problems.TABLE[outcome].meaning))
    shown = urls.publish(_settings().media_urls, path or urls.suggested_path(key_id.hex), value)
    click.echo(json.dumps({"id": str(key_id), "key_value": value, "publish": shown}, indent=2))


@stream_keys.command("list")
@click.option("--broadcaster", type=click.UUID, help="Only those of this broadcaster.")
def list_keys(broadcaster: UUID | None) -> None:
    """Print id, state, hint, path and label of each, newest first."""
    with one_line(), _database() as conn:
        for row in key_rows.page(conn, broadcaster_id=broadcaster, status=None, limit=1000, after=None):
            state = "in use" if row.in_use else "disabled" if row.disabled else row.status
            click.echo(f"{row.id}  {state:8}  …{row.hint}  {row.path or '(any path)'}  {row.label or ''}".rstrip())


@stream_keys.command("revoke")
@click.argument("stream_key_id", type=click.UUID)
def revoke_key(stream_key_id: UUID) -> None:
    """Take a key back for good; its streams end."""
    with one_line(), _database() as conn:
        outcome = key_rows.revoke(conn, stream_key_id)
    if outcome == "not-found":
        raise Failure("no such stream key")
    click.echo({"revoked": "revoked", "already": "it was revoked before"}[outcome])


@main.command()
@click.option("--once", is_flag=True, required=True, help="One tick; the service itself does one every two seconds.")
def reconcile(once: bool) -> None:
    """Hold the streams against the media server now, set them right, and print what was seen and done."""
    with one_line():
        settings = Settings.from_env(os.environ)
        migrations.check(settings.database_url)
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


def application() -> flask.Flask:
    """What a worker of gunicorn serves: with a connection at hand, if the database is there, and a reconciler."""
    app = create_app(Settings.from_env(os.environ))
    service: Service = app.extensions["streamorch"]
    service.database.await_connection()
    reconciler = Reconciler(service.settings, service.api, service.metrics, service.tracer)
    app.extensions["streamorch.reconciler"] = reconciler
    reconciler.start()
    return app


def _settings() -> Settings:
    """The settings of a command that serves nobody; without a DATABASE_URL, the database of a running `run`."""
    environ = {"API_SECRET": "unused", **_environ_without("API_SECRET")}
    if not any(environ.get(name) for name in ("DATABASE_URL", "DATABASE_URL_FILE")):
        environ["DATABASE_URL"] = local.running_database_url(environ)
    return Settings.from_env(environ)


def _environ_without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not any(left_out in name for left_out in names)}


def _database_url() -> str:
    return _settings().database_url


@contextmanager
def _database() -> Iterator[Connection]:
    """A connection to a database whose schema is that of this release."""
    url = _database_url()
    migrations.check(url)
    database = Database(url, min_size=1, max_size=1)
    database.open()
    try:
        with database.connection(actor=Actor("CLI")) as conn:
            yield conn
    finally:
        database.close()


if __name__ == "__main__":
    main(prog_name="streamorch")

"""`streamorch clients`."""

import datetime
from collections.abc import Iterator
from typing import get_args
from uuid import UUID, uuid4

import click
import msgspec

from streamorch import keys
from streamorch.callers import SCOPES, Scope, name_refusal
from streamorch.commands import Failure, Id, Listing, Text, as_json, database, show_json, show_members, show_table
from streamorch.moments import moment as moment_in
from streamorch.repositories import Connection, api_clients
from streamorch.repositories.api_clients import APIClient, Status
from streamorch.tables import moment

_PAGE = 1000
_UNKNOWN = "no such API client; list them with: streamorch clients"


def _every(conn: Connection, status: Status | None = None) -> Iterator[APIClient]:
    after = None
    while page := api_clients.page(conn, status=status, limit=_PAGE, after=after):
        yield from page
        after = (page[-1].created_at, str(page[-1].id))


one = click.argument("api_client_id", type=Id(lambda conn: ((row.id, row.name) for row in _every(conn))))


@click.group("clients", cls=Listing)
def command() -> None:
    """Who may call the API, beside API_SECRET."""


@command.command("list")
@click.option("--status", type=click.Choice(get_args(Status)), help="Only those of this status.")
@as_json
def index(status: Status | None, as_json: bool) -> None:
    """All of them, newest first.

    \b
    Examples:
      streamorch clients
      streamorch clients --status active --json | jq -r '.api_clients[].name'
    """
    with database() as conn:
        found = list(_every(conn, status))
    if as_json:
        show_json({"api_clients": found, "count": len(found)})
        return
    rows = [(row.id, row.status, row.scope, f"…{row.hint}", row.name, moment(row.last_used_at)) for row in found]
    show_table(("ID", "STATE", "SCOPE", "SECRET", "NAME", "LAST USED"), rows, elastic=("NAME",))


@command.command("create")
@click.argument("name", type=Text(255))
@click.option("--scope", type=click.Choice(SCOPES), default="read", show_default=True, help="What it may do.")
@click.option("--expires-at", help="RFC 3339, with an offset: 2026-12-31T23:59:59Z.")
@as_json
def create(name: str, scope: Scope, expires_at: str | None, as_json: bool) -> None:
    """Make an API client and print its secret, which is shown this once.

    `read` is for every GET but those of API clients and the audit trail, `operate` also steers broadcasters, stream
    keys and streams, `admin` may all.

    \b
    Examples:
      streamorch clients create 'Watch page'
      streamorch clients create Stage --scope operate --json | jq -r .secret
    """
    if refusal := name_refusal(name):
        raise Failure(f"NAME {refusal}")
    expiry: datetime.datetime | None
    try:
        expiry = moment_in(expires_at) if expires_at else None
    except (ValueError, msgspec.ValidationError):
        raise Failure("--expires-at is no RFC 3339 time with an offset, like 2026-12-31T23:59:59Z") from None
    client_id, secret = uuid4(), keys.mint_client_secret()
    with database() as conn:
        api_clients.create(
            conn,
            client_id=client_id,
            name=name,
            scope=scope,
            secret_hash=keys.digest(secret),
            hint=keys.hint(secret),
            expires_at=expiry,
        )
        made = api_clients.get(conn, client_id)
    if made is None:
        raise Failure("an API client has this name; list them with: streamorch clients")
    if as_json:
        show_json(msgspec.structs.asdict(made) | {"secret": secret})
        return
    show_members({"id": client_id, "name": name, "scope": scope, "secret": secret})
    click.echo("The secret is not stored: nobody can show it again.")


@command.command("show")
@one
@as_json
def show(api_client_id: UUID, as_json: bool) -> None:
    """One of them, without its secret.

    \b
    Example:
      streamorch clients show 0197f1d0-44c1-7a02-8d15-7be2a06f3c04
    """
    with database() as conn:
        found = api_clients.get(conn, api_client_id)
    if found is None:
        raise Failure(_UNKNOWN)
    if as_json:
        show_json(found)
        return
    show_members(
        {
            "id": found.id,
            "name": found.name,
            "scope": found.scope,
            "state": found.status,
            "secret": f"…{found.hint}",
            "created": moment(found.created_at),
            "last used": moment(found.last_used_at),
            "expires": moment(found.expires_at),
            "revoked": moment(found.revoked_at),
        }
    )


@command.command("revoke")
@one
def revoke(api_client_id: UUID) -> None:
    """Take the secret of an API client back for good; within two seconds the running service refuses it.

    \b
    Example:
      streamorch clients revoke 0197f1d0-44c1-7a02-8d15-7be2a06f3c04
    """
    with database() as conn:
        outcome = api_clients.revoke(conn, api_client_id)
    if outcome == "not-found":
        raise Failure(_UNKNOWN)
    click.echo({"revoked": "revoked", "already": "it was revoked before"}[outcome])

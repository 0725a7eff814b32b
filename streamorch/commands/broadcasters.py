"""`streamorch broadcasters`."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import click

from streamorch.commands import Failure, Id, Listing, Text, as_json, database, show_json, show_members, show_table
from streamorch.repositories import Connection, broadcasters
from streamorch.repositories.broadcasters import Broadcaster
from streamorch.tables import moment

_PAGE = 1000
_NONE = "no such broadcaster; list them with: streamorch broadcasters"


def _every(conn: Connection) -> Iterator[Broadcaster]:
    after = None
    while page := broadcasters.page(conn, limit=_PAGE, after=after):
        yield from page
        after = (page[-1].created_at, str(page[-1].id))


one = click.argument("broadcaster_id", type=Id(lambda conn: ((row.id, row.display_name) for row in _every(conn))))


@click.group("broadcasters", cls=Listing)
def command() -> None:
    """Who may publish."""


@command.command("list")
@as_json
def index(as_json: bool) -> None:
    """All of them, newest first.

    \b
    Examples:
      streamorch broadcasters
      streamorch broadcasters --json | jq '.broadcasters[] | select(.disabled).display_name'
    """
    with database() as conn:
        found = list(_every(conn))
    if as_json:
        show_json({"broadcasters": found, "count": len(found)})
        return
    rows = [(row.id, row.display_name, _state(row), moment(row.created_at)) for row in found]
    show_table(("ID", "NAME", "STATE", "CREATED"), rows, elastic=("NAME",))


@command.command("create")
@click.argument("display_name", type=Text(255))
@as_json
def create(display_name: str, as_json: bool) -> None:
    """Make a broadcaster and print its id.

    \b
    Examples:
      streamorch broadcasters create 'Boat 3'
      streamorch keys create "$(streamorch broadcasters create 'Boat 3')"
    """
    broadcaster_id = uuid4()
    with database() as conn:
        broadcasters.create(conn, broadcaster_id=broadcaster_id, display_name=display_name, metadata={}, disabled=False)
        made = broadcasters.get(conn, broadcaster_id)
    if as_json:
        show_json(made)
    else:
        click.echo(broadcaster_id)


@command.command("show")
@one
@as_json
def show(broadcaster_id: UUID, as_json: bool) -> None:
    """One of them.

    \b
    Example:
      streamorch broadcasters show 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f
    """
    with database() as conn:
        found = broadcasters.get(conn, broadcaster_id)
    if found is None:
        raise Failure(_NONE)
    if as_json:
        show_json(found)
        return
    show_members(
        {
            "id": found.id,
            "name": found.display_name,
            "state": _state(found),
            "created": moment(found.created_at),
            "changed": moment(found.updated_at),
            "metadata": bytes(found.metadata).decode(),
        }
    )


@command.command("disable")
@one
def disable(broadcaster_id: UUID) -> None:
    """Let none of its keys publish until it is enabled again; its streams end.

    \b
    Example:
      streamorch broadcasters disable 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f
    """
    _change(broadcaster_id, {"disabled": True})
    click.echo("disabled; its streams have ended")


@command.command("enable")
@one
def enable(broadcaster_id: UUID) -> None:
    """Let its keys publish again.

    \b
    Example:
      streamorch broadcasters enable 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f
    """
    _change(broadcaster_id, {"disabled": False})
    click.echo("enabled")


@command.command("delete")
@one
@click.confirmation_option(prompt="Its keys are revoked for good, and its streams end. Delete it?")
def delete(broadcaster_id: UUID) -> None:
    """Delete a broadcaster and revoke its keys for good; its streams end, its history stays.

    \b
    Examples:
      streamorch broadcasters delete 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f
      streamorch broadcasters delete --yes 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f
    """
    with database() as conn:
        outcome = broadcasters.delete(conn, broadcaster_id)
    if outcome == "not-found":
        raise Failure(_NONE)
    click.echo({"deleted": "deleted; its keys are revoked", "already": "it was deleted before"}[outcome])


def _change(broadcaster_id: UUID, changes: dict[str, Any]) -> None:
    with database() as conn:
        outcome = broadcasters.update(conn, broadcaster_id, changes)
    if outcome == "not-found":
        raise Failure(_NONE)


def _state(row: Broadcaster) -> str:
    return "disabled" if row.disabled else "enabled"

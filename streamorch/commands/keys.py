"""`streamorch keys`."""

import datetime
import json
from uuid import UUID, uuid4

import click
import msgspec

from streamorch import keys, paths, problems, urls
from streamorch.commands import Failure, database, settings
from streamorch.moments import moment
from streamorch.repositories import stream_keys


@click.group("keys")
def command() -> None:
    """The keys that broadcasters publish with."""


@command.command("create")
@click.argument("broadcaster_id", type=click.UUID)
@click.option("--label", help="What the key is for.")
@click.option("--path", help="The only path that it may publish to; any free one without.")
@click.option("--takeover", type=click.Choice(["stalled", "always", "never"]), default="stalled", show_default=True)
@click.option("--expires-at", help="RFC 3339, with an offset: 2026-12-31T23:59:59Z.")
def create(broadcaster_id: UUID, label: str | None, path: str | None, takeover: str, expires_at: str | None) -> None:
    """Make a stream key and print it: its value is shown this once."""
    if path is not None and (refusal := paths.refusal(path)):
        raise Failure(refusal)
    expiry: datetime.datetime | None
    try:
        expiry = moment(expires_at) if expires_at else None
    except (ValueError, msgspec.ValidationError):
        raise Failure("--expires-at is no RFC 3339 time with an offset, like 2026-12-31T23:59:59Z") from None
    key_id, value = uuid4(), keys.mint()
    with database() as conn:
        outcome = stream_keys.create(
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
    shown = urls.publish(settings().media_urls, path or urls.suggested_path(key_id.hex), value)
    click.echo(json.dumps({"id": str(key_id), "key_value": value, "publish": shown}, indent=2))


@command.command("list")
@click.option("--broadcaster", type=click.UUID, help="Only those of this broadcaster.")
def index(broadcaster: UUID | None) -> None:
    """Print id, state, hint, path and label of each, newest first."""
    with database() as conn:
        for row in stream_keys.page(conn, broadcaster_id=broadcaster, status=None, limit=1000, after=None):
            state = "in use" if row.in_use else "disabled" if row.disabled else row.status
            click.echo(f"{row.id}  {state:8}  …{row.hint}  {row.path or '(any path)'}  {row.label or ''}".rstrip())


@command.command("revoke")
@click.argument("stream_key_id", type=click.UUID)
def revoke(stream_key_id: UUID) -> None:
    """Take a key back for good; its streams end."""
    with database() as conn:
        outcome = stream_keys.revoke(conn, stream_key_id)
    if outcome == "not-found":
        raise Failure("no such stream key")
    click.echo({"revoked": "revoked", "already": "it was revoked before"}[outcome])

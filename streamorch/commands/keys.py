"""`streamorch keys`."""

import datetime
from collections.abc import Iterator
from typing import Any, get_args
from uuid import UUID, uuid4

import click
import msgspec

from streamorch import keys, paths, urls
from streamorch.commands import (
    Failure,
    Id,
    Listing,
    Text,
    as_json,
    database,
    settings,
    show_json,
    show_members,
    show_table,
)
from streamorch.moments import moment as moment_in
from streamorch.repositories import Connection, stream_keys
from streamorch.repositories.stream_keys import Status, StreamKey, Takeover
from streamorch.tables import moment

_PAGE = 1000
_REFUSALS = {
    "not-found": "no such stream key; list them with: streamorch keys",
    "revoked": "the key is revoked, which is for good; make another with: streamorch keys create",
    "unknown-broadcaster": "no such broadcaster; list them with: streamorch broadcasters",
    "path-in-use": "a stream of another key is live on this path; see: streamorch streams --path",
    "stream-key-in-use": "a stream of this key is live; see: streamorch streams --key",
}


def _every(conn: Connection, broadcaster_id: UUID | None = None, status: Status | None = None) -> Iterator[StreamKey]:
    after = None
    while page := stream_keys.page(conn, broadcaster_id=broadcaster_id, status=status, limit=_PAGE, after=after):
        yield from page
        after = (page[-1].created_at, str(page[-1].id))


one = click.argument(
    "stream_key_id", type=Id(lambda conn: ((row.id, row.label or row.path or f"…{row.hint}") for row in _every(conn)))
)


@click.group("keys", cls=Listing)
def command() -> None:
    """The keys that broadcasters publish with."""


@command.command("list")
@click.option("--broadcaster", "broadcaster_id", type=click.UUID, help="Only those of this broadcaster.")
@click.option("--status", type=click.Choice(get_args(Status)), help="Only those of this status.")
@as_json
def index(broadcaster_id: UUID | None, status: Status | None, as_json: bool) -> None:
    """All of them, newest first.

    \b
    Examples:
      streamorch keys
      streamorch keys --status active --broadcaster 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f
      streamorch keys --json | jq -r '.stream_keys[] | select(.in_use).id'
    """
    with database() as conn:
        found = list(_every(conn, broadcaster_id, status))
    if as_json:
        show_json({"stream_keys": found, "count": len(found)})
        return
    rows = [
        (row.id, _state(row), _hints(row), row.path or "(any)", row.label, moment(row.last_used_at)) for row in found
    ]
    show_table(("ID", "STATE", "KEY", "PATH", "LABEL", "LAST USED"), rows, elastic=("PATH", "LABEL"))


@command.command("create")
@click.argument("broadcaster_id", type=click.UUID)
@click.option("--label", type=Text(255), help="What the key is for.")
@click.option("--path", help="The only path that it may publish to; any free one without.")
@click.option("--takeover", type=click.Choice(get_args(Takeover)), default="stalled", show_default=True)
@click.option("--expires-at", help="RFC 3339, with an offset: 2026-12-31T23:59:59Z.")
@as_json
def create(
    broadcaster_id: UUID, label: str | None, path: str | None, takeover: str, expires_at: str | None, as_json: bool
) -> None:
    """Make a stream key and print it, with what encoders need: its value is shown this once.

    \b
    Examples:
      streamorch keys create 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f --path live/boat3 --label 'Boat 3, mast'
      streamorch keys create 0b7c5a5e-8f6f-4a9e-9f7e-2d1c0a9b8e7f --json | jq -r .publish.rtmp
    """
    if path is not None and (refusal := paths.refusal(path)):
        raise Failure(refusal)
    expiry: datetime.datetime | None
    try:
        expiry = moment_in(expires_at) if expires_at else None
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
        made = stream_keys.get(conn, key_id)
    if made is None:
        raise Failure(_REFUSALS[outcome])
    _show_minted(made, value, as_json)


@command.command("show")
@one
@as_json
def show(stream_key_id: UUID, as_json: bool) -> None:
    """One of them, without its value.

    \b
    Example:
      streamorch keys show 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c
    """
    with database() as conn:
        found = stream_keys.get(conn, stream_key_id)
    if found is None:
        raise Failure(_REFUSALS["not-found"])
    if as_json:
        show_json(found)
        return
    show_members(
        {
            "id": found.id,
            "broadcaster": found.broadcaster_id,
            "label": found.label,
            "state": _state(found),
            "key": f"…{found.hint}",
            "previous key": _previous(found),
            "path": found.path or "any free one",
            "takeover": found.takeover,
            "created": moment(found.created_at),
            "last used": moment(found.last_used_at),
            "expires": moment(found.expires_at),
            "on hold until": moment(found.hold_until),
            "revoked": moment(found.revoked_at),
            "metadata": bytes(found.metadata).decode(),
        }
    )


@command.command("revoke")
@one
def revoke(stream_key_id: UUID) -> None:
    """Take a key back for good; its streams end, and the running service cuts them off within two seconds.

    \b
    Example:
      streamorch keys revoke 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c
    """
    with database() as conn:
        outcome = stream_keys.revoke(conn, stream_key_id)
    if outcome == "not-found":
        raise Failure(_REFUSALS[outcome])
    click.echo({"revoked": "revoked; its streams have ended", "already": "it was revoked before"}[outcome])


@command.command("rotate")
@one
@click.option(
    "--overlap",
    "overlap_seconds",
    type=click.IntRange(0, stream_keys.LONGEST_OVERLAP_SECONDS),
    default=stream_keys.OVERLAP_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="For how long the value before works on; 0 for no longer.",
)
@as_json
def rotate(stream_key_id: UUID, overlap_seconds: int, as_json: bool) -> None:
    """Give a key a new value and print it, this once. What is live streams on, whichever value it came with.

    A value that was replaced earlier is out at once.

    \b
    Examples:
      streamorch keys rotate 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c
      streamorch keys rotate 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c --overlap 0 --json | jq -r .publish.rtmp
    """
    value = keys.mint()
    with database() as conn:
        outcome = stream_keys.rotate(
            conn, stream_key_id, key_hash=keys.digest(value), hint=keys.hint(value), overlap_seconds=overlap_seconds
        )
        found = stream_keys.get(conn, stream_key_id)
    if outcome != "rotated" or found is None:
        raise Failure(_REFUSALS[outcome])
    _show_minted(found, value, as_json)


@command.command("disable")
@one
def disable(stream_key_id: UUID) -> None:
    """Let nobody publish with a key until it is enabled again; its streams end.

    \b
    Example:
      streamorch keys disable 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c
    """
    _change(stream_key_id, {"disabled": True})
    click.echo("disabled; its streams have ended")


@command.command("enable")
@one
def enable(stream_key_id: UUID) -> None:
    """Let the key publish again.

    \b
    Example:
      streamorch keys enable 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c
    """
    _change(stream_key_id, {"disabled": False})
    click.echo("enabled")


@command.command("hold")
@one
@click.option("--seconds", type=click.IntRange(1, 86400), default=30, show_default=True, help="For how long.")
def hold(stream_key_id: UUID, seconds: int) -> None:
    """Refuse new publishes of a key for a while. What is live goes on: see `streamorch streams stop`.

    \b
    Example:
      streamorch keys hold 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c --seconds 600
    """
    with database() as conn:
        _judge(stream_keys.hold(conn, stream_key_id, seconds=seconds))
        found = stream_keys.get(conn, stream_key_id)
    click.echo(f"on hold until {moment(found.hold_until if found else None)}")


@command.command("release")
@one
def release(stream_key_id: UUID) -> None:
    """End the hold of a key now.

    \b
    Example:
      streamorch keys release 6f1d0c9b-8e7f-4a9e-9f7e-0b7c5a5e2d1c
    """
    _change(stream_key_id, {"hold_until": None})
    click.echo("released")


def _show_minted(made: StreamKey, value: str, as_json: bool) -> None:
    """The key with its value and what encoders need, this once."""
    publish = urls.publish(settings().media_urls, made.path or urls.suggested_path(made.id.hex), value)
    if as_json:
        show_json(msgspec.structs.asdict(made) | {"key_value": value, "publish": publish})
        return
    obs, whip = publish["obs"], publish["whip"]
    shown = {
        "id": made.id,
        "key": value,
        "previous key": _previous(made),
        "path": publish["path"] if made.path else f"any free one, such as {publish['path']}",
        "OBS server": obs and obs["server"],
        "OBS stream key": obs and obs["stream_key"],
        "RTMP": publish["rtmp"],
        "SRT": publish["srt"],
        "RTSP": publish["rtsp"],
        "WHIP": whip and whip["url"],
    }
    show_members({name: text for name, text in shown.items() if text is not None})
    click.echo("The key is not stored: nobody can show it again.")


def _hints(row: StreamKey) -> str:
    """Those of the values that work."""
    return f"…{row.hint} …{row.previous_hint}" if row.previous_works_until else f"…{row.hint}"


def _previous(row: StreamKey) -> str | None:
    """The value before the last rotation, as long as it works."""
    return row.previous_works_until and f"…{row.previous_hint} until {moment(row.previous_works_until)}"


def _change(stream_key_id: UUID, changes: dict[str, Any]) -> None:
    with database() as conn:
        _judge(stream_keys.update(conn, stream_key_id, changes))


def _judge(outcome: str) -> None:
    if outcome != "updated":
        raise Failure(_REFUSALS[outcome])


def _state(row: StreamKey) -> str:
    if row.status != "active":
        return row.status
    return "disabled" if row.disabled else "in use" if row.in_use else "on hold" if row.hold_until else "active"

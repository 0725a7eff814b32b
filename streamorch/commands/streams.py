"""`streamorch streams`."""

import time
from typing import Any
from uuid import UUID

import click

from streamorch import objects
from streamorch.commands import Failure, Id, Listing, as_json, database, settings, show_json, show_members, show_table
from streamorch.live import LiveStreams, rfc3339
from streamorch.objects import broadcaster_name
from streamorch.repositories import streams
from streamorch.tables import duration, moment

_NONE = "no such stream; list them with: streamorch streams --all"

one = click.argument("stream_id", type=Id(lambda conn: ((row.id, row.path) for row in streams.live_filtered(conn, {}))))


@click.group("streams", cls=Listing)
def command() -> None:
    """What is live, and what was."""


@command.command("list")
@click.option("--all", "status", flag_value="all", help="In every status, also claims that never became live.")
@click.option("--ended", "status", flag_value="ended", help="What was live and is over.")
@click.option("--pending", "status", flag_value="pending", help="Accepted, not live yet.")
@click.option("--path", help="Only those on this path.")
@click.option("--broadcaster", "broadcaster_id", type=click.UUID, help="Only those of this broadcaster.")
@click.option("--key", "stream_key_id", type=click.UUID, help="Only those of this stream key.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="At most so many that are not live.",
)
@as_json
def index(status: streams.Status | None, limit: int, as_json: bool, **filters: Any) -> None:
    """The live streams, newest first; or with --all, --ended or --pending, the last that were claimed.

    \b
    Examples:
      streamorch streams
      streamorch streams --ended --path live/boat3
      streamorch streams --json | jq -r '.streams[] | select(.media == "stalled").path'
    """
    with database() as conn:
        if status is None:
            found = streams.live_filtered(conn, filters)
        else:
            found = streams.page(conn, status=status, filters=filters, limit=limit + 1, after=None)
    has_more = status is not None and len(found) > limit
    found = found[:limit] if has_more else found
    shown = [objects.listed_stream(row, settings().media_urls) for row in found]
    if as_json:
        show_json(
            LiveStreams(shown, len(shown), stale=False, as_of=rfc3339(time.time()))
            if status is None
            else {"streams": shown, "count": len(shown)}
        )
        return
    if status is None:
        headings: tuple[str, ...] = ("ID", "PATH", "BROADCASTER", "SINCE", "VIA", "VIEWERS", "MEDIA")
        rows: list[tuple[object, ...]] = [
            (
                row.id,
                row.path,
                broadcaster_name(row),
                moment(row.started_at),
                row.protocol,
                row.viewers,
                "interrupted" if row.interrupted_at else row.media,
            )
            for row in found
        ]
    else:
        headings = ("ID", "PATH", "BROADCASTER", "CLAIMED", "VIA", "STATUS", "LIVE FOR")
        rows = [
            (
                row.id,
                row.path,
                broadcaster_name(row),
                moment(row.claimed_at),
                row.protocol,
                row.end_reason or row.status,
                None if row.duration_seconds is None else duration(row.duration_seconds),
            )
            for row in found
        ]
    show_table(headings, rows, elastic=("PATH", "BROADCASTER"))
    if has_more:
        click.echo("(there are more: see --limit)", err=True)


@command.command("show")
@one
@as_json
def show(stream_id: UUID, as_json: bool) -> None:
    """One of them, in whatever status.

    \b
    Example:
      streamorch streams show 3c2b1a0f-8e7f-4a9e-9f7e-0b7c5a5e2d1c
    """
    with database() as conn:
        found = streams.get(conn, stream_id)
    if found is None:
        raise Failure(_NONE)
    if as_json:
        show_json(objects.lone_stream(found, settings().media_urls))
        return
    urls = objects.listed_stream(found, settings().media_urls).urls
    show_members(
        {
            "id": found.id,
            "path": found.path,
            "broadcaster": broadcaster_name(found),
            "key": f"{found.stream_key_id}{f' ({found.label})' if found.label else ''}",
            "status": f"{found.status} ({found.end_reason})" if found.end_reason else found.status,
            "claimed": moment(found.claimed_at),
            "live since": moment(found.started_at),
            "interrupted": moment(found.interrupted_at),
            "ended": moment(found.ended_at),
            "published": f"over {found.protocol} from {found.remote_address or 'an unknown address'}",
            "connection": found.source_id,
            "media": found.media,
            "viewers": found.viewers,
            "replaces": found.replaces,
            "replaced by": found.replaced_by,
            "kick": found.kick,
            "HLS": urls["hls"],
            "WebRTC": urls["webrtc"],
            "metadata": bytes(found.metadata).decode(),
            "recording": found.recording_ref,
        }
    )


@command.command("stop")
@one
@click.option(
    "--hold",
    "hold_seconds",
    metavar="SECONDS",
    type=click.IntRange(0, 86400),
    default=30,
    show_default=True,
    help="Refuse the key for so long, since encoders reconnect within two seconds.",
)
def stop(stream_id: UUID, hold_seconds: int) -> None:
    """End a stream, which the running service cuts off within two seconds, and hold its key for a while.

    \b
    Examples:
      streamorch streams stop 3c2b1a0f-8e7f-4a9e-9f7e-0b7c5a5e2d1c
      streamorch streams stop 3c2b1a0f-8e7f-4a9e-9f7e-0b7c5a5e2d1c --hold 600
    """
    with database() as conn:
        outcome = streams.stop(conn, stream_id, hold_seconds=hold_seconds)
    if outcome == "not-found":
        raise Failure(_NONE)
    click.echo({"stopped": "stopped", "already": "it had ended before"}[outcome])

"""The page of one stream: its picture, what is known of it, what became of it, and the two ways to end it."""

import time
from typing import Any
from uuid import UUID

import flask
import msgspec
from werkzeug.wrappers import Response

from streamorch import keys, moments, tracks
from streamorch.blueprints import identifier, invalid, service
from streamorch.blueprints import stream_keys as stream_keys_api
from streamorch.blueprints import streams as streams_api
from streamorch.blueprints.console import data, done, page, room, words
from streamorch.contract import aside
from streamorch.objects import LoneStream, lone_stream, owner
from streamorch.problems import Problem
from streamorch.repositories import streams, timeline

bp = room("streams")

_MOST_EVENTS = 500
# For how long the key of a stopped stream is refused: encoders reconnect within two seconds.
HOLDS = {30: "30 seconds", 300: "5 minutes", 3600: "an hour", 86400: "a day"}


class Now(msgspec.Struct, frozen=True):
    """What the script of the page draws, and those parts of the page that may have changed, as HTML."""

    status: str
    media: str | None
    viewers: int | None
    bitrate: int | None
    mean_bitrate: int | None
    parts: dict[str, str]


@bp.get("/streams/<stream_id>")
@aside
def show(stream_id: str) -> flask.Response:
    """One stream, in whatever state."""
    policy = service().settings.read_policy
    return page("stream.html", **_told(identifier(stream_id)), holds=HOLDS, read_policy=policy)


@bp.get("/now/<stream_id>")
@aside
def now(stream_id: str) -> flask.Response:
    """The same for the script, again and again."""
    told = _told(identifier(stream_id))
    stream = told["stream"]
    parts = {part: flask.render_template(f"console/stream_{part}.html", **told) for part in _PARTS}
    return data(Now(stream.status, stream.media, stream.viewers, stream.bitrate, _mean(stream), parts))


_PARTS = ("state", "facts", "timeline")


def _mean(stream: LoneStream) -> int | None:
    """Bits in a second since it went live; None while that is nothing to speak of."""
    if stream.bytes is None or stream.started_at is None:
        return None
    seconds = time.time() - moments.moment(stream.started_at).timestamp()
    return int(stream.bytes * 8 / seconds) if seconds > 1 else None


def _told(stream_id: UUID) -> dict[str, Any]:
    with service().database.connection() as conn:
        found = streams.get(conn, stream_id)
        facts = streams.facts(conn, stream_id)
        events = timeline.page(conn, stream_id, limit=_MOST_EVENTS, after=None)
    if found is None:
        raise Problem("not-found", "no such stream")
    stream = lone_stream(found, service().settings.media_urls)
    metadata = keys.redact(msgspec.json.format(bytes(stream.metadata), indent=2).decode())
    return {
        "stream": stream,
        "owner": owner(found),
        "facts": facts,
        "tracks": tracks.in_words(stream.tracks),
        "metadata": "" if metadata == "{}" else metadata,
        "why": words.ended(stream.end_reason),
        "events": [(event, words.happened(event), words.changes(event)) for event in events],
        "is_cut": len(events) == _MOST_EVENTS,
    }


@bp.post("/streams/<stream_id>/stop")
@aside
def stop(stream_id: str) -> Response:
    """End it, and refuse its key for a while."""
    wanted = identifier(stream_id)
    hold = flask.request.form.get("hold_seconds", "30")
    if hold not in map(str, HOLDS):
        raise invalid("hold_seconds", "is none of the choices")
    is_stopped = streams_api.end(wanted, hold_seconds=int(hold))
    return done("stream-stopped" if is_stopped else "stream-had-ended", flask.url_for(".show", stream_id=wanted))


@bp.post("/streams/<stream_id>/revoke-key")
@aside
def revoke_key(stream_id: str) -> Response:
    """Take its key back for good, which ends it."""
    wanted = identifier(stream_id)
    with service().database.connection() as conn:
        found = streams.get(conn, wanted)
    if found is None:
        raise Problem("not-found", "no such stream")
    stream_keys_api.take_back(found.stream_key_id)
    return done("key-revoked", flask.url_for(".show", stream_id=wanted))

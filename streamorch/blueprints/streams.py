"""Streams: the live list that frontends poll, history, one stream, stop."""

import time
from typing import Annotated, Any

import flask
import msgspec
from werkzeug.http import parse_etags

from streamorch import mediamtx, urls
from streamorch.blueprints import (
    Service,
    after,
    answer,
    as_flask,
    asked,
    body,
    first,
    given,
    identifier,
    integer_parameter,
    moment_parameter,
    next_cursor,
    no_content,
    parameter,
    require_api_caller,
    service,
    uuid_parameter,
)
from streamorch.exchange import Reply, Request
from streamorch.live import envelope, rfc3339
from streamorch.problems import Problem
from streamorch.repositories import streams

bp = flask.Blueprint("streams", __name__, url_prefix="/streams")
bp.before_request(first(require_api_caller))

_JSON = (("Content-Type", "application/json"),)
_PRIVATE = ("Cache-Control", "private, no-cache")
# What one stream shows and lists leave out.
_SHOWN_ALONE = ("remote_address", "bytes", "bitrate", "tracks", "kick")


class Changes(msgspec.Struct, frozen=True):
    """The body of PATCH /streams/{id}."""

    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    recording_ref: Annotated[str, msgspec.Meta(max_length=512)] | msgspec.UnsetType | None = msgspec.UNSET


@bp.get("")
def index() -> flask.Response:
    """The live list, or history when `status` asks for it."""
    end_reason = parameter("end_reason", streams.END_REASONS)
    status = parameter("status", streams.STATUSES) or ("ended" if end_reason else "active")
    filters: dict[str, Any] = {
        "broadcaster_id": uuid_parameter("broadcaster_id"),
        "stream_key_id": uuid_parameter("stream_key_id"),
        "path": parameter("path"),
        "protocol": parameter("protocol"),
        "node": parameter("node"),
        "end_reason": end_reason,
        "since": moment_parameter("since"),
        "until": moment_parameter("until"),
    }
    if status != "active":
        return _history(status, filters)
    if any(value is not None for value in filters.values()):
        return _live_filtered(filters)
    return as_flask(live(asked(), service()))


def _history(status: str, filters: dict[str, Any]) -> flask.Response:
    limit = integer_parameter("limit", 100, 1, 1000)
    bound = filters | {"status": status}
    last = after(bound)
    with service().database.connection() as conn:
        found = streams.page(conn, status=status, filters=filters, limit=limit + 1, after=last)
    items, more = found[:limit], len(found) > limit
    cursor = next_cursor(items[-1].claimed_at, items[-1].id, bound) if more else None
    return answer(
        {
            "streams": [_shown(item) for item in items],
            "count": len(items),
            "next_cursor": cursor,
        }
    )


def _live_filtered(filters: dict[str, Any]) -> flask.Response:
    with service().database.connection() as conn:
        found = streams.live_filtered(conn, filters)
    reply = answer(envelope([_shown(item) for item in found], stale=False, as_of=rfc3339(time.time())))
    reply.headers.add(*_PRIVATE)
    return reply


def live(request: Request, of: Service) -> Reply:
    """The whole live list: 304, or the bytes of its version."""
    built = of.live.current()
    if built.etag is None:
        return Reply(200, built.encoded, (*_JSON, _PRIVATE))
    # By weak comparison, with lists and `*`: proxies that compress weaken tags.
    known = parse_etags(request.header("If-None-Match"))
    if known.star_tag or known.contains_weak(built.etag.strip('"')):
        return Reply(304, b"", (("ETag", built.etag), _PRIVATE))
    return Reply(200, built.encoded, (*_JSON, ("ETag", built.etag), _PRIVATE))


@bp.get("/<stream_id>")
def show(stream_id: str) -> flask.Response:
    """One stream in whatever state, with what lists leave out."""
    with service().database.connection() as conn:
        return _one(streams.get(conn, identifier(stream_id)))


@bp.patch("/<stream_id>")
def change(stream_id: str) -> flask.Response:
    """The changed stream."""
    wanted = identifier(stream_id)
    changes = given(body(Changes))
    with service().database.connection() as conn:
        outcome = streams.update(conn, wanted, changes)
        return _one(streams.get(conn, wanted) if outcome == "updated" else None)


@bp.delete("/<stream_id>")
def stop(stream_id: str) -> flask.Response:
    """204, and 204 again: the stream has ended, and its key is on hold for `hold_seconds`."""
    wanted = identifier(stream_id)
    hold_seconds = integer_parameter("hold_seconds", 30, 0, 86400)
    with service().database.connection() as conn:
        outcome = streams.stop(conn, wanted, hold_seconds=hold_seconds)
    if outcome == "not-found":
        raise Problem("not-found", "no such stream")
    service().kicker.cut_off(stream_id=wanted)
    return no_content()


def _one(stream: streams.Stream | None) -> flask.Response:
    if stream is None:
        raise Problem("not-found", "no such stream")
    alone = {name: getattr(stream, name) for name in _SHOWN_ALONE}
    return answer(_shown(stream) | alone | {"tracks": mediamtx.tracks(stream.tracks)})


def _shown(stream: streams.Stream) -> dict[str, Any]:
    """A stream as lists show it, with its playback URLs in every status."""
    made = msgspec.structs.asdict(stream)
    for name in _SHOWN_ALONE:
        del made[name]
    made["urls"] = urls.playback(service().settings.media_urls, stream.path)
    return made

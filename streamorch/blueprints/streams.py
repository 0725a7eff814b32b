"""Streams: the live list that frontends poll, history, one stream, stop."""

import binascii
import threading
import time
from typing import Annotated, Any, NamedTuple

import flask
import msgspec
import psycopg

from streamorch import __version__, mediamtx, urls
from streamorch.blueprints import (
    Service,
    after,
    answer,
    body,
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
from streamorch.problems import Problem
from streamorch.repositories import streams

bp = flask.Blueprint("streams", __name__, url_prefix="/streams")
bp.before_request(require_api_caller)

_STALE_SECONDS = 30.0
# What one stream shows and lists leave out.
_SHOWN_ALONE = ("remote_address", "bytes", "bitrate", "tracks", "kick")


class Changes(msgspec.Struct, frozen=True):
    """The body of PATCH /streams/{id}."""

    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    recording_ref: Annotated[str, msgspec.Meta(max_length=512)] | msgspec.UnsetType | None = msgspec.UNSET


class Built(NamedTuple):
    """The live list as bytes, of one version; seen_at (monotonic) and seen_at_text: when it was last current."""

    version: str
    encoded: bytes
    etag: str
    items: list[dict[str, Any]]
    seen_at: float
    seen_at_text: str


class LiveCache:
    """The last live list of this process. Always as fresh as the database: its version is read for every answer."""

    def __init__(self) -> None:
        self.built: Built | None = None
        self.building = threading.Lock()


@bp.record_once
def _give_cache(state: flask.blueprints.BlueprintSetupState) -> None:
    state.app.extensions["streamorch.live"] = LiveCache()


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
    return _live()


def _history(status: str, filters: dict[str, Any]) -> flask.Response:
    limit = integer_parameter("limit", 100, 1, 1000)
    bound = filters | {"status": status}
    last = after(bound)
    with service().database.connection() as conn:
        found = streams.page(conn, status=status, filters=filters, limit=limit + 1, after=last)
    items, more = found[:limit], len(found) > limit
    cursor = next_cursor(items[-1].claimed_at, items[-1].id, bound) if more else None
    return answer({"streams": [_shown(item) for item in items], "count": len(items), "next_cursor": cursor})


def _live_filtered(filters: dict[str, Any]) -> flask.Response:
    with service().database.connection() as conn:
        found = streams.live_filtered(conn, filters)
    return _private(answer(_envelope([_shown(item) for item in found], stale=False, as_of=_now())))


def _live() -> flask.Response:
    """The whole live list: 304 or cached bytes while its version stands, built anew when it does not."""
    cache: LiveCache = flask.current_app.extensions["streamorch.live"]
    try:
        built = _current(cache, service())
    except psycopg.OperationalError:
        last = cache.built
        if last is None or time.monotonic() - last.seen_at > _STALE_SECONDS:
            raise
        # Better an old list, told as such, than an empty wall.
        return _private(answer(_envelope(last.items, stale=True, as_of=last.seen_at_text)))
    if _asks_for_other_than(built.etag):
        reply = flask.Response(built.encoded, content_type="application/json")
    else:
        reply = flask.Response(status=304)
    reply.headers["ETag"] = built.etag
    return _private(reply)


def _current(cache: LiveCache, of: Service) -> Built:
    with of.database.connection() as conn:
        version = streams.version(conn)
        built = cache.built
        if built is None or built.version != version:
            with cache.building:  # the first to see a change builds; the others wait for it
                built = cache.built
                if built is None or built.version != version:
                    cache.built = built = _build(streams.live(conn))
    cache.built = built = built._replace(seen_at=time.monotonic(), seen_at_text=_now())
    return built


def _build(live: streams.LiveList) -> Built:
    items = [_shown(item) for item in live.streams]
    # as_of is the moment of the last change, not of this answer: each worker must make the same bytes for an ETag.
    encoded = msgspec.json.encode(_envelope(items, stale=False, as_of=live.changed_at))
    looks = binascii.crc32(f"{__version__} {service().settings.media_urls}".encode())
    return Built(live.version, encoded, f'"{live.version}-{looks:08x}"', items, 0.0, "")


def _asks_for_other_than(etag: str) -> bool:
    """If-None-Match by weak comparison, with lists and `*`: proxies that compress weaken tags."""
    asked = flask.request.if_none_match
    return not (asked.star_tag or asked.contains_weak(etag.strip('"')))


def _envelope(items: list[dict[str, Any]], *, stale: bool, as_of: str) -> dict[str, Any]:
    return {"streams": items, "count": len(items), "stale": stale, "as_of": as_of}


def _now() -> str:
    seconds = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1e6):06d}Z"


def _private(reply: flask.Response) -> flask.Response:
    reply.headers["Cache-Control"] = "private, no-cache"
    return reply


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
    shown = msgspec.structs.asdict(stream)
    for name in _SHOWN_ALONE:
        del shown[name]
    shown["urls"] = urls.playback(service().settings.media_urls, stream.path)
    return shown

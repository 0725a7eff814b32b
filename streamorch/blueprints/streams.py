"""Streams: the live list that frontends poll, history, one stream, stop."""

import time
from typing import Annotated, Any
from uuid import UUID

import flask
import msgspec
from werkzeug.http import parse_etags

from streamorch.blueprints import (
    Cursor,
    Limit,
    Metadata,
    Service,
    When,
    Word,
    actor,
    after,
    answer,
    as_flask,
    asked,
    body,
    first,
    given,
    identifier,
    invalid,
    no_content,
    one_page,
    query,
    require_api_caller,
    service,
)
from streamorch.contract import Answer, Link, Operation
from streamorch.exchange import Reply, Request
from streamorch.live import LiveStreams, rfc3339
from streamorch.objects import ListedStream, LoneStream, listed_stream, lone_stream
from streamorch.problems import Problem
from streamorch.repositories import streams, timeline

bp = flask.Blueprint("streams", __name__, url_prefix="/streams")
bp.before_request(first(require_api_caller))

_JSON = (("Content-Type", "application/json"),)
_PRIVATE = ("Cache-Control", "private, no-cache")


class StreamChanges(msgspec.Struct, frozen=True):
    """The body of PATCH /streams/{id}: a member given replaces the whole value, null clears it."""

    metadata: Metadata | msgspec.UnsetType = msgspec.UNSET
    recording_ref: Annotated[str, msgspec.Meta(max_length=512)] | msgspec.UnsetType | None = msgspec.UNSET


class WhichStreams(msgspec.Struct, frozen=True):
    """The query of GET /streams. Without a status it is `active`, or `ended` where `end_reason` is given."""

    status: streams.Status | None = None
    broadcaster_id: UUID | None = None
    stream_key_id: UUID | None = None
    path: Word | None = None
    end_reason: streams.EndReason | None = None
    protocol: Word | None = None
    node: Word | None = None
    since: Annotated[When, msgspec.Meta(description="Claimed then or later.")] | None = None
    until: Annotated[When, msgspec.Meta(description="Claimed before.")] | None = None
    limit: Annotated[Limit, msgspec.Meta(description="How many at most; the live list is always whole.")] = 100
    cursor: Cursor | None = None


class Hold(msgspec.Struct, frozen=True):
    """The query of DELETE /streams/{id}."""

    hold_seconds: Annotated[
        int, msgspec.Meta(ge=0, le=86400, description="How long its key is refused: encoders reconnect at once.")
    ] = 30


class StreamPage(msgspec.Struct, frozen=True):
    """History, last claimed first; `next_cursor` is null on the last page."""

    streams: list[ListedStream]
    count: int
    next_cursor: str | None


class WhichEvents(msgspec.Struct, frozen=True):
    """The query of GET /streams/{id}/events."""

    limit: Limit = 100
    cursor: Cursor | None = None


class EventPage(msgspec.Struct, frozen=True):
    """What became of a stream, oldest first; `next_cursor` is null on the last page."""

    events: list[timeline.Event]
    count: int
    next_cursor: str | None


_ONE = {"stream_id": "$response.body#/id"}
_FIRST = {"stream_id": "$response.body#/streams/0/id"}


@bp.get("")
@Operation(
    "listStreams",
    {
        200: Answer(
            "The live list, complete; or a page of history.",
            (LiveStreams[ListedStream], StreamPage),
            headers=("Cache-Control?", "ETag?"),
            links=(
                Link("getStream", _FIRST),
                Link("changeStream", _FIRST),
                Link("stopStream", _FIRST),
            ),
        ),
        304: Answer("The live list is as `If-None-Match` has it.", headers=("Cache-Control", "ETag")),
    },
    asks=WhichStreams,
    reads=("If-None-Match",),
)
def index() -> flask.Response:
    """The live list, or history.

    History when `status` or `end_reason` asks for it. Poll the live list with `If-None-Match`: 304 while nothing has
    changed. When the database is away it goes on for 30 seconds as it was, with `stale` true.
    """
    asked_for = query(WhichStreams)
    status = asked_for.status or ("ended" if asked_for.end_reason else "active")
    filters = {name: getattr(asked_for, name) for name in _FILTERS}
    if status != "active":
        return _history(status, filters, asked_for)
    if asked_for.cursor is not None:
        raise invalid("cursor", "is for history; the live list is whole")
    if any(value is not None for value in filters.values()):
        return _live_filtered(filters)
    return as_flask(live(asked(), service()))


_FILTERS = ("broadcaster_id", "stream_key_id", "path", "protocol", "node", "end_reason", "since", "until")


def _history(status: streams.Status, filters: dict[str, Any], asked_for: WhichStreams) -> flask.Response:
    bound = filters | {"status": status}
    last = after(asked_for.cursor, bound)
    with service().database.connection() as conn:
        found = streams.page(conn, status=status, filters=filters, limit=asked_for.limit + 1, after=last)
    items, cursor = one_page(found, asked_for.limit, bound, lambda item: (item.claimed_at, item.id))
    return answer(StreamPage([_listed(item) for item in items], len(items), cursor))


def _live_filtered(filters: dict[str, Any]) -> flask.Response:
    with service().database.connection() as conn:
        found = streams.live_filtered(conn, filters)
    listed = [_listed(item) for item in found]
    reply = answer(LiveStreams(listed, len(listed), stale=False, as_of=rfc3339(time.time())))
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
@Operation(
    "getStream",
    {
        200: Answer(
            "The stream.",
            LoneStream,
            links=(
                Link("getStreamKey", {"stream_key_id": "$response.body#/stream_key_id"}),
                Link("getBroadcaster", {"broadcaster_id": "$response.body#/broadcaster/id"}),
                Link("listEvents", _ONE),
            ),
        )
    },
    problems=("not-found",),
)
def show(stream_id: str) -> flask.Response:
    """One stream in whatever state, with what lists leave out."""
    with service().database.connection() as conn:
        return _one(streams.get(conn, identifier(stream_id)))


@bp.patch("/<stream_id>")
@Operation(
    "changeStream",
    {200: Answer("The changed stream.", LoneStream, links=(Link("getStream", _ONE),))},
    takes=StreamChanges,
    problems=("not-found",),
)
def change(stream_id: str) -> flask.Response:
    """Change what of a stream is yours."""
    wanted = identifier(stream_id)
    changes = given(body(StreamChanges))
    with service().database.connection(actor=actor()) as conn:
        outcome = streams.update(conn, wanted, changes)
        return _one(streams.get(conn, wanted) if outcome == "updated" else None)


@bp.delete("/<stream_id>")
@Operation("stopStream", {204: Answer("It has ended, or had.")}, asks=Hold, problems=("not-found",))
def stop(stream_id: str) -> flask.Response:
    """Stop a stream.

    204, and 204 again: it has ended, its connection is closed, and its key is on hold for `hold_seconds`.
    """
    end(identifier(stream_id), hold_seconds=query(Hold).hold_seconds)
    return no_content()


@bp.get("/<stream_id>/events")
@Operation(
    "listEvents",
    {200: Answer("The page.", EventPage)},
    asks=WhichEvents,
    problems=("not-found",),
)
def events(stream_id: str) -> flask.Response:
    """What became of a stream, oldest first.

    From its claim to its end: what was changed meanwhile and by whom, and who was refused because of it.
    """
    wanted = identifier(stream_id)
    asked_for = query(WhichEvents)
    bound = {"stream_id": wanted}
    last = after(asked_for.cursor, bound)
    with service().database.connection() as conn:
        found = timeline.page(conn, wanted, limit=asked_for.limit + 1, after=last)
    if not found and last is None:
        raise Problem("not-found", "no such stream")
    items, cursor = one_page(found, asked_for.limit, bound, lambda item: (item.at, item.id))
    return answer(EventPage(items, len(items), cursor))


def end(wanted: UUID, *, hold_seconds: int) -> bool:
    """Stop this stream and hold its key; False when it had ended already. Problem `not-found`."""
    with service().database.connection(actor=actor()) as conn:
        outcome = streams.stop(conn, wanted, hold_seconds=hold_seconds)
    if outcome == "not-found":
        raise Problem("not-found", "no such stream")
    service().kicker.cut_off(stream_id=wanted)
    return outcome == "stopped"


def _one(stream: streams.Stream | None) -> flask.Response:
    if stream is None:
        raise Problem("not-found", "no such stream")
    return answer(lone_stream(stream, service().settings.media_urls))


def _listed(stream: streams.Stream) -> ListedStream:
    return listed_stream(stream, service().settings.media_urls)

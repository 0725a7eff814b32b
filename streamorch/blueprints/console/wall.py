"""The wall: what is live, a tile for each stream."""

import time
from functools import lru_cache

import flask
import msgspec

from streamorch import repositories, tracks, urls
from streamorch.blueprints import service
from streamorch.blueprints.console import data, page, room
from streamorch.contract import aside
from streamorch.live import LiveStreams
from streamorch.objects import ListedStream
from streamorch.problems import Problem
from streamorch.repositories import streams

bp = room("wall")

_decode = msgspec.json.Decoder(LiveStreams[ListedStream]).decode


class Measures(msgspec.Struct, frozen=True):
    """By the id of a stream: bits in a second, and its tracks in words. `now` is Unix time."""

    now: float
    streams: dict[str, tuple[int | None, str]]


@bp.get("")
@aside
def index() -> flask.Response:
    """A tile for each live stream, which the script makes; a table for who has no scripts."""
    settings = service().settings
    told = _decode(service().live.current().encoded)
    fields = urls.publish(settings.media_urls, "live/my-camera", "YOUR-STREAM-KEY")["obs"]
    return page("wall.html", streams=told.streams, fields=fields, read_policy=settings.read_policy)


@bp.get("/live")
@aside
def live() -> flask.Response:
    """The live list, as GET /streams has it: 304 while nothing has changed."""
    built = service().live.current()
    made = flask.Response(built.encoded, content_type="application/json")
    made.headers["Cache-Control"] = "no-store"
    if built.etag is not None:
        made.headers["ETag"] = built.etag
        made.make_conditional(flask.request)
    return made


@bp.get("/measures")
@aside
def measures() -> flask.Response:
    """What changes all the time, and is none of the list for that reason."""
    with service().database.connection() as conn:
        found = streams.measures(conn)
    return data(Measures(time.time(), {one.id: (one.bitrate, _in_words(one.tracks)) for one in found}))


@lru_cache(1024)
def _in_words(described: str | None) -> str:
    return tracks.in_words(tracks.in_one_form(described))


@bp.get("/alive")
@aside
def alive() -> flask.Response:
    """Does the database answer? For the banner of each page: an empty object, or a problem."""
    with service().database.connection() as conn:
        repositories.ping(conn)
    return data({})


@bp.route("/<path:_>", methods=["GET", "POST"])
@aside
def nowhere(_: str) -> flask.Response:
    """An address that is none, as a page."""
    raise Problem("not-found", "there is no such page")

"""Broadcasters: who may publish, and what they did."""

from uuid import UUID

import flask
import msgspec
from werkzeug.wrappers import Response

from streamorch.blueprints import Cursor, accepted, after, identifier, one_page, query, service
from streamorch.blueprints import broadcasters as broadcasters_api
from streamorch.blueprints.broadcasters import BroadcasterChanges, NewBroadcaster
from streamorch.blueprints.console import done, page, room, typed
from streamorch.contract import aside
from streamorch.problems import FieldError, Problem
from streamorch.repositories import broadcasters, stream_keys, streams

bp = room("broadcasters")

_PAGE = 100
_KEYS = 100
_RECENT = 20


class WhichBroadcasters(msgspec.Struct, frozen=True):
    """The query of the list."""

    cursor: Cursor | None = None


@bp.get("/broadcasters")
@aside
def index() -> flask.Response:
    """A page of broadcasters, newest first."""
    return _list([], 200)


@bp.post("/broadcasters")
@aside
def create() -> Response:
    """Make one of this name."""
    try:
        made = broadcasters_api.make(
            accepted(NewBroadcaster, {"display_name": flask.request.form.get("display_name", "").strip()})
        )
    except Problem as problem:
        if problem.errors is None:
            raise
        return _list(problem.errors, 400)
    return done("broadcaster-made", flask.url_for(".show", broadcaster_id=made.id))


@bp.get("/broadcasters/<broadcaster_id>")
@aside
def show(broadcaster_id: str) -> flask.Response:
    """One broadcaster: its keys, what is live of it, what was; of one that was deleted, where its history is."""
    return _shown(identifier(broadcaster_id), [], 200)


@bp.post("/broadcasters/<broadcaster_id>")
@aside
def rename(broadcaster_id: str) -> Response:
    """Call it otherwise."""
    wanted = identifier(broadcaster_id)
    try:
        broadcasters_api.changed(
            wanted, accepted(BroadcasterChanges, {"display_name": flask.request.form.get("display_name", "").strip()})
        )
    except Problem as problem:
        if problem.errors is None:
            raise
        return _shown(wanted, problem.errors, 400)
    return done("broadcaster-changed", flask.url_for(".show", broadcaster_id=wanted))


@bp.post("/broadcasters/<broadcaster_id>/<any(enable, disable):what>")
@aside
def switch(broadcaster_id: str, what: str) -> Response:
    """Disable it, which ends all its streams, or let it publish again."""
    wanted = identifier(broadcaster_id)
    broadcasters_api.changed(wanted, BroadcasterChanges(disabled=what == "disable"))
    return done(f"broadcaster-{what}", flask.url_for(".show", broadcaster_id=wanted))


@bp.post("/broadcasters/<broadcaster_id>/delete")
@aside
def delete(broadcaster_id: str) -> Response:
    """Delete it: its keys are revoked, its streams end, its history stays."""
    broadcasters_api.remove(identifier(broadcaster_id))
    return done("broadcaster-deleted", flask.url_for(".index"))


def _list(errors: list[FieldError], status: int) -> flask.Response:
    last = after(query(WhichBroadcasters).cursor, {})
    with service().database.connection() as conn:
        found = broadcasters.page(conn, limit=_PAGE + 1, after=last)
    shown, cursor = one_page(found, _PAGE, {}, lambda one: (one.created_at, one.id))
    given = typed()
    return page("broadcasters.html", status, broadcasters=shown, cursor=cursor, errors=errors, given=given)


def _shown(wanted: UUID, errors: list[FieldError], status: int) -> flask.Response:
    with service().database.connection() as conn:
        one = broadcasters.get(conn, wanted)
        if one is None:
            gone = broadcasters.deleted(conn, [wanted]).get(wanted)
            if gone is None:
                raise Problem("not-found", "no such broadcaster")
            return page("broadcaster_deleted.html", 404, id=wanted, one=gone)
        keys = stream_keys.page(conn, broadcaster_id=wanted, status=None, limit=_KEYS, after=None)
        live = streams.live_filtered(conn, {"broadcaster_id": wanted})
        recent = streams.page(conn, status="ended", filters={"broadcaster_id": wanted}, limit=_RECENT, after=None)
    given = typed()
    return page("broadcaster.html", status, one=one, keys=keys, live=live, recent=recent, errors=errors, given=given)

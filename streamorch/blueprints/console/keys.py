"""Stream keys: hand one out, look at it, change it, take it back."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import flask
import msgspec
import segno
from werkzeug.wrappers import Response

from streamorch.blueprints import Cursor, accepted, after, identifier, invalid, one_page, query, service
from streamorch.blueprints import broadcasters as broadcasters_api
from streamorch.blueprints import stream_keys as stream_keys_api
from streamorch.blueprints.broadcasters import NewBroadcaster
from streamorch.blueprints.console import done, lists, moment_of, page, room, typed
from streamorch.blueprints.stream_keys import RULES, MintedStreamKey, NewStreamKey, Rotation, StreamKeyChanges
from streamorch.contract import aside
from streamorch.problems import FieldError, Problem
from streamorch.repositories import broadcasters, stream_keys, streams
from streamorch.repositories.stream_keys import Status

bp = room("keys")

_PAGE = 100
_RECENT = 10


class WhichKeys(msgspec.Struct, frozen=True):
    """The query of the list."""

    broadcaster_id: UUID | None = None
    status: Status | None = None
    cursor: Cursor | None = None


@bp.get("/keys")
@aside
def index() -> flask.Response:
    """A page of keys, newest first."""
    wanted = query(WhichKeys)
    filters = {"broadcaster_id": wanted.broadcaster_id, "status": wanted.status}
    last = after(wanted.cursor, filters)
    with service().database.connection() as conn:
        found = stream_keys.page(
            conn, broadcaster_id=wanted.broadcaster_id, status=wanted.status, limit=_PAGE + 1, after=last
        )
        owners = lists.owner_choices(conn, chosen=wanted.broadcaster_id)
        names = broadcasters.names(conn, {key.broadcaster_id for key in found})
    keys, cursor = one_page(found, _PAGE, filters, lambda key: (key.created_at, key.id))
    return page("keys.html", keys=keys, names=names, owners=owners, wanted=wanted, cursor=cursor)


@bp.get("/keys/new")
@aside
def new() -> flask.Response:
    """The form for a key."""
    return _form({"broadcaster_id": flask.request.args.get("broadcaster_id", "")}, [], 200)


@bp.post("/keys/new")
@aside
def create() -> flask.Response:
    """Mint a key, for a new broadcaster if one is named, and show its value, this once."""
    given = flask.request.form
    members: dict[str, Any] = {name: given[name] for name in ("id", "label", "path", "takeover") if given.get(name)}
    if given.get("expires_at"):
        members["expires_at"] = moment_of(given["expires_at"])
    owner = given.get("new_broadcaster", "").strip()
    try:
        # Whatever is wrong with the key is told before a broadcaster is made for it.
        wanted = accepted(
            NewStreamKey, members | {"broadcaster_id": given.get("broadcaster_id") or str(UUID(int=0))}, rules=RULES
        )
        if owner:
            ids = {"id": given["owner_id"]} if given.get("owner_id") else {}
            made = broadcasters_api.make(accepted(NewBroadcaster, {"display_name": owner} | ids))
            wanted = msgspec.structs.replace(wanted, broadcaster_id=made.id)
        elif not given.get("broadcaster_id"):
            raise invalid("broadcaster_id", "is missing: choose one, or name a new one")
        minted = stream_keys_api.mint(wanted)
    except Problem as problem:
        if problem.slug == "conflict":
            errors = [FieldError("form", "was sent twice: the first time made a key, which is in the list")]
        elif problem.slug in ("invalid-request", "path-in-use"):
            errors = problem.errors or [FieldError("path", problem.detail)]
        else:
            raise
        return _form(typed(), errors, problem.status or (400 if problem.errors else 409))
    return page("key_minted.html", 201, key=minted, codes=_codes(minted))


@bp.get("/keys/<stream_key_id>")
@aside
def show(stream_key_id: str) -> flask.Response:
    """One key: what it is, what it does now, what it did last."""
    return _shown(identifier(stream_key_id), [], 200)


@bp.post("/keys/<stream_key_id>")
@aside
def change(stream_key_id: str) -> Response:
    """Change what it is called, where it publishes, and until when."""
    wanted = identifier(stream_key_id)
    given = flask.request.form
    members = {name: given[name] or None for name in ("label", "path", "takeover") if name in given}
    if "expires_at" in given:
        members["expires_at"] = moment_of(given["expires_at"]) if given["expires_at"] else None
    try:
        stream_keys_api.changed(wanted, accepted(StreamKeyChanges, members, rules=RULES))
    except Problem as problem:
        if problem.slug not in ("invalid-request", "path-in-use", "stream-key-in-use"):
            raise
        return _shown(wanted, problem.errors or [FieldError("path", problem.detail)], 400 if problem.errors else 409)
    return done("key-changed", flask.url_for(".show", stream_key_id=wanted))


@bp.post("/keys/<stream_key_id>/<any(enable, disable, lift):what>")
@aside
def switch(stream_key_id: str, what: str) -> Response:
    """Enable or disable it, or lift the hold after a stop."""
    wanted = identifier(stream_key_id)
    changes = StreamKeyChanges(hold_until=None) if what == "lift" else StreamKeyChanges(disabled=what == "disable")
    stream_keys_api.changed(wanted, changes)
    return done(f"key-{what}", flask.url_for(".show", stream_key_id=wanted))


@bp.post("/keys/<stream_key_id>/rotate")
@aside
def rotate(stream_key_id: str) -> flask.Response:
    """Give it a new value, which is shown this once; the one before works on for a while."""
    given = accepted(Rotation, {"overlap_seconds": _number(flask.request.form.get("overlap_seconds", ""))})
    minted = stream_keys_api.rotated(identifier(stream_key_id), given.overlap_seconds)
    return page("key_minted.html", 201, key=minted, codes=_codes(minted))


@bp.post("/keys/<stream_key_id>/end-overlap")
@aside
def end_overlap(stream_key_id: str) -> Response:
    """The value before the last rotation lets nobody in any more."""
    wanted = identifier(stream_key_id)
    stream_keys_api.changed(wanted, StreamKeyChanges(previous_works_until=None))
    return done("key-overlap-over", flask.url_for(".show", stream_key_id=wanted))


@bp.post("/keys/<stream_key_id>/revoke")
@aside
def revoke(stream_key_id: str) -> Response:
    """Take it back for good."""
    wanted = identifier(stream_key_id)
    stream_keys_api.take_back(wanted)
    return done("key-revoked", flask.url_for(".show", stream_key_id=wanted))


def _form(given: Mapping[str, str], errors: list[FieldError], status: int) -> flask.Response:
    with service().database.connection() as conn:
        owners = broadcasters.page(conn, limit=lists.CHOICES, after=None)
    # Their ids are the form's, so that a page that is loaded again makes nothing twice.
    ids = {"id": uuid4(), "owner_id": uuid4()}
    return page("key_new.html", status, owners=owners, given=given, errors=errors, ids=ids)


def _shown(wanted: UUID, errors: list[FieldError], status: int) -> flask.Response:
    with service().database.connection() as conn:
        key = stream_keys.get(conn, wanted)
        if key is None:
            raise Problem("not-found", "no such stream key, or its broadcaster was deleted")
        owner = broadcasters.get(conn, key.broadcaster_id)
        live = streams.live_filtered(conn, {"stream_key_id": wanted})
        recent = streams.page(conn, status="ended", filters={"stream_key_id": wanted}, limit=_RECENT, after=None)
    given = typed()
    return page("key.html", status, key=key, owner=owner, live=live, recent=recent, errors=errors, given=given)


def _number(text: str) -> int | str:
    """What a field for a number holds; as it came when that is none, for the problem to say."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


def _codes(minted: MintedStreamKey) -> dict[str, str]:
    """A QR code for each way in which an encoder on a phone publishes, as an image in the page."""
    publish = minted.publish
    urls = {"RTMP": publish["rtmp"], "SRT": publish["srt"], "RTSP": publish["rtsp"]}
    return {
        name: segno.make(url, error="m").svg_data_uri(scale=4, border=4, light="#fff")
        for name, url in urls.items()
        if url
    }

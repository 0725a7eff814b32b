"""Stream keys: list, mint, show, change, revoke. The value of a key is in the 201 that made it and nowhere else."""

import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import flask
import msgspec

from streamorch import keys, paths, urls
from streamorch.blueprints import (
    after,
    answer,
    body,
    created,
    first,
    given,
    identifier,
    integer_parameter,
    invalid,
    next_cursor,
    no_content,
    parameter,
    require_api_caller,
    service,
    uuid_parameter,
)
from streamorch.problems import Problem
from streamorch.repositories import stream_keys

bp = flask.Blueprint("stream_keys", __name__, url_prefix="/stream-keys")
bp.before_request(first(require_api_caller))

Label = Annotated[str, msgspec.Meta(max_length=255)]
_RULES = {"path": paths.refusal}
Takeover = Literal["stalled", "always", "never"]


class NewStreamKey(msgspec.Struct, frozen=True):
    """The body of POST /stream-keys."""

    broadcaster_id: UUID
    id: UUID | None = None
    label: Label | None = None
    path: str | None = None
    takeover: Takeover = "stalled"
    expires_at: datetime.datetime | None = None
    disabled: bool = False
    metadata: dict[str, Any] | None = None


class Changes(msgspec.Struct, frozen=True):
    """The body of PATCH /stream-keys/{id}: a member given replaces the whole value, null clears it."""

    label: Label | msgspec.UnsetType | None = msgspec.UNSET
    path: str | msgspec.UnsetType | None = msgspec.UNSET
    takeover: Takeover | msgspec.UnsetType = msgspec.UNSET
    expires_at: datetime.datetime | msgspec.UnsetType | None = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET
    hold_until: datetime.datetime | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


@bp.get("")
def index() -> flask.Response:
    """A page of keys, newest first; filters broadcaster_id and status."""
    filters: dict[str, Any] = {
        "broadcaster_id": uuid_parameter("broadcaster_id"),
        "status": parameter("status", stream_keys.STATUSES),
    }
    limit = integer_parameter("limit", 1000, 1, 1000)
    last = after(filters)
    with service().database.connection() as conn:
        found = stream_keys.page(conn, **filters, limit=limit + 1, after=last)
    items, more = found[:limit], len(found) > limit
    cursor = next_cursor(items[-1].created_at, items[-1].id, filters) if more else None
    return answer({"stream_keys": items, "count": len(items), "next_cursor": cursor})


@bp.post("")
def create() -> flask.Response:
    """201 with the key, its value and how to publish with it; the same id again is 409, never a second secret."""
    new = body(NewStreamKey, rules=_RULES)
    stream_key_id = new.id or uuid4()
    value = keys.mint()
    with service().database.connection() as conn:
        outcome = stream_keys.create(
            conn,
            stream_key_id=stream_key_id,
            broadcaster_id=new.broadcaster_id,
            key_hash=keys.digest(value),
            hint=keys.hint(value),
            label=new.label,
            path=new.path,
            takeover=new.takeover,
            expires_at=new.expires_at,
            disabled=new.disabled,
            metadata=new.metadata or {},
        )
        made = stream_keys.get(conn, stream_key_id) if outcome == "created" else None
    if outcome == "unknown-broadcaster":
        raise invalid("broadcaster_id", "is no broadcaster")
    if outcome == "path-in-use":
        raise Problem("path-in-use", "a stream of another key is live on this path")
    if made is None:
        raise Problem("conflict", "a stream key with this id exists")
    path = new.path or urls.suggested_path(stream_key_id.hex)
    secret = {"key_value": value, "publish": urls.publish(service().settings.media_urls, path, value)}
    return created(msgspec.structs.asdict(made) | secret, flask.url_for(".show", stream_key_id=stream_key_id))


@bp.get("/<stream_key_id>")
def show(stream_key_id: str) -> flask.Response:
    """The key without its value."""
    with service().database.connection() as conn:
        found = stream_keys.get(conn, identifier(stream_key_id))
    if found is None:
        raise Problem("not-found", "no such stream key")
    return answer(found)


@bp.patch("/<stream_key_id>")
def change(stream_key_id: str) -> flask.Response:
    """The changed key. Disabling it, or an expiry in the past, ends its streams; a revoked key stays as it is (409)."""
    wanted = identifier(stream_key_id)
    changes = given(body(Changes, rules=_RULES))
    with service().database.connection() as conn:
        outcome = stream_keys.update(conn, wanted, changes)
        found = stream_keys.get(conn, wanted) if outcome == "updated" else None
    if outcome == "revoked":
        raise Problem("conflict", "the key is revoked")
    if outcome == "path-in-use":
        raise Problem("path-in-use", "a stream of another key is live on this path")
    if outcome == "stream-key-in-use":
        raise Problem("stream-key-in-use", "a stream of this key is live on another path")
    if found is None:
        raise Problem("not-found", "no such stream key")
    service().kicker.cut_off(stream_key_id=wanted)
    return answer(found)


@bp.delete("/<stream_key_id>")
def revoke(stream_key_id: str) -> flask.Response:
    """204, and 204 again: from the commit on nobody publishes with it, and its streams have ended."""
    wanted = identifier(stream_key_id)
    with service().database.connection() as conn:
        outcome = stream_keys.revoke(conn, wanted)
    if outcome == "not-found":
        raise Problem("not-found", "no such stream key")
    service().kicker.cut_off(stream_key_id=wanted)
    return no_content()

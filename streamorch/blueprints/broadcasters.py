"""Broadcasters: list, create, show, change, delete."""

from typing import Annotated, Any
from uuid import UUID, uuid4

import flask
import msgspec

from streamorch.blueprints import (
    after,
    answer,
    body,
    created,
    first,
    given,
    identifier,
    integer_parameter,
    next_cursor,
    no_content,
    require_api_caller,
    service,
)
from streamorch.problems import Problem
from streamorch.repositories import broadcasters

bp = flask.Blueprint("broadcasters", __name__, url_prefix="/broadcasters")
bp.before_request(first(require_api_caller))

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class NewBroadcaster(msgspec.Struct, frozen=True):
    """The body of POST /broadcasters."""

    display_name: Name
    id: UUID | None = None
    metadata: dict[str, Any] | None = None
    disabled: bool = False


class Changes(msgspec.Struct, frozen=True):
    """The body of PATCH /broadcasters/{id}: a member given replaces the whole value."""

    display_name: Name | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET


@bp.get("")
def index() -> flask.Response:
    """A page of broadcasters, newest first."""
    limit = integer_parameter("limit", 1000, 1, 1000)
    last = after({})
    with service().database.connection() as conn:
        found = broadcasters.page(conn, limit=limit + 1, after=last)
    items, more = found[:limit], len(found) > limit
    cursor = next_cursor(items[-1].created_at, items[-1].id, {}) if more else None
    return answer({"broadcasters": items, "count": len(items), "next_cursor": cursor})


@bp.post("")
def create() -> flask.Response:
    """201 with the broadcaster; 409 when its id is taken."""
    new = body(NewBroadcaster)
    broadcaster_id = new.id or uuid4()
    with service().database.connection() as conn:
        made = broadcasters.create(
            conn,
            broadcaster_id=broadcaster_id,
            display_name=new.display_name,
            metadata=new.metadata or {},
            disabled=new.disabled,
        )
        if not made:
            raise Problem("conflict", "a broadcaster with this id exists")
        return created(broadcasters.get(conn, broadcaster_id), flask.url_for(".show", broadcaster_id=broadcaster_id))


@bp.get("/<broadcaster_id>")
def show(broadcaster_id: str) -> flask.Response:
    """The broadcaster; 404 when it was deleted."""
    with service().database.connection() as conn:
        found = broadcasters.get(conn, identifier(broadcaster_id))
    if found is None:
        raise Problem("not-found", "no such broadcaster")
    return answer(found)


@bp.patch("/<broadcaster_id>")
def change(broadcaster_id: str) -> flask.Response:
    """The changed broadcaster; disabling it ends its streams."""
    wanted = identifier(broadcaster_id)
    changes = given(body(Changes))
    with service().database.connection() as conn:
        outcome = broadcasters.update(conn, wanted, changes)
        found = broadcasters.get(conn, wanted) if outcome == "updated" else None
    if found is None:
        raise Problem("not-found", "no such broadcaster")
    service().kicker.cut_off(broadcaster_id=wanted)
    return answer(found)


@bp.delete("/<broadcaster_id>")
def delete(broadcaster_id: str) -> flask.Response:
    """204, and 204 again: its keys are revoked, its streams ended."""
    wanted = identifier(broadcaster_id)
    with service().database.connection() as conn:
        outcome = broadcasters.delete(conn, wanted)
    if outcome == "not-found":
        raise Problem("not-found", "no such broadcaster")
    service().kicker.cut_off(broadcaster_id=wanted)
    return no_content()

"""Broadcasters: list, create, show, change, delete."""

from typing import Annotated
from uuid import UUID, uuid4

import flask
import msgspec

from streamorch.blueprints import (
    Cursor,
    Limit,
    Metadata,
    actor,
    after,
    answer,
    body,
    created,
    first,
    given,
    identifier,
    no_content,
    one_page,
    query,
    require_api_caller,
    service,
)
from streamorch.contract import Answer, Link, Operation
from streamorch.problems import Problem
from streamorch.repositories import broadcasters
from streamorch.repositories.broadcasters import Broadcaster

bp = flask.Blueprint("broadcasters", __name__, url_prefix="/broadcasters")
bp.before_request(first(require_api_caller))

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class NewBroadcaster(msgspec.Struct, frozen=True):
    """The body of POST /broadcasters."""

    display_name: Name
    id: UUID | None = None
    metadata: Metadata | None = None
    disabled: bool = False


class BroadcasterChanges(msgspec.Struct, frozen=True):
    """The body of PATCH /broadcasters/{id}: a member given replaces the whole value."""

    display_name: Name | msgspec.UnsetType = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET


class WhichBroadcasters(msgspec.Struct, frozen=True):
    """The query of GET /broadcasters."""

    limit: Limit = 1000
    cursor: Cursor | None = None


class BroadcasterPage(msgspec.Struct, frozen=True):
    """Broadcasters, newest first; `next_cursor` is null on the last page."""

    broadcasters: list[Broadcaster]
    count: int
    next_cursor: str | None


_ONE = {"broadcaster_id": "$response.body#/id"}


@bp.get("")
@Operation(
    "listBroadcasters",
    {
        200: Answer(
            "The page.",
            BroadcasterPage,
            links=(
                Link("getBroadcaster", {"broadcaster_id": "$response.body#/broadcasters/0/id"}),
                Link("listBroadcasters", {"cursor": "$response.body#/next_cursor"}),
            ),
        )
    },
    asks=WhichBroadcasters,
)
def index() -> flask.Response:
    """A page of broadcasters, newest first."""
    asked = query(WhichBroadcasters)
    last = after(asked.cursor, {})
    with service().database.connection() as conn:
        found = broadcasters.page(conn, limit=asked.limit + 1, after=last)
    items, cursor = one_page(found, asked.limit, {}, lambda item: (item.created_at, item.id))
    return answer(BroadcasterPage(items, len(items), cursor))


@bp.post("")
@Operation(
    "createBroadcaster",
    {
        201: Answer(
            "Made.",
            Broadcaster,
            headers=("Location", "Cache-Control"),
            links=(
                Link("getBroadcaster", _ONE),
                Link("changeBroadcaster", _ONE),
                Link("deleteBroadcaster", _ONE),
                Link("createStreamKey", body=_ONE),
                Link("listStreamKeys", _ONE),
            ),
        )
    },
    takes=NewBroadcaster,
    problems=("conflict",),
)
def create() -> flask.Response:
    """Make a broadcaster.

    409 when its id is taken: a lost answer may be asked for again.
    """
    made = make(body(NewBroadcaster))
    return created(made, flask.url_for(".show", broadcaster_id=made.id))


def make(new: NewBroadcaster) -> Broadcaster:
    """Make this broadcaster. Problem `conflict` when its id is taken."""
    broadcaster_id = new.id or uuid4()
    with service().database.connection(actor=actor()) as conn:
        is_made = broadcasters.create(
            conn,
            broadcaster_id=broadcaster_id,
            display_name=new.display_name,
            metadata=new.metadata or {},
            disabled=new.disabled,
        )
        made = broadcasters.get(conn, broadcaster_id) if is_made else None
    if made is None:
        raise Problem("conflict", "a broadcaster with this id exists")
    return made


@bp.get("/<broadcaster_id>")
@Operation("getBroadcaster", {200: Answer("The broadcaster.", Broadcaster)}, problems=("not-found",))
def show(broadcaster_id: str) -> flask.Response:
    """One broadcaster.

    404 when it was deleted.
    """
    with service().database.connection() as conn:
        found = broadcasters.get(conn, identifier(broadcaster_id))
    if found is None:
        raise Problem("not-found", "no such broadcaster")
    return answer(found)


@bp.patch("/<broadcaster_id>")
@Operation(
    "changeBroadcaster",
    {200: Answer("The changed broadcaster.", Broadcaster, links=(Link("getBroadcaster", _ONE),))},
    takes=BroadcasterChanges,
    problems=("not-found",),
)
def change(broadcaster_id: str) -> flask.Response:
    """Change a broadcaster.

    Disabling it ends its streams.
    """
    return answer(changed(identifier(broadcaster_id), body(BroadcasterChanges)))


def changed(wanted: UUID, changes: BroadcasterChanges) -> Broadcaster:
    """The broadcaster with these changes. Problem `not-found`."""
    with service().database.connection(actor=actor()) as conn:
        outcome = broadcasters.update(conn, wanted, given(changes))
        found = broadcasters.get(conn, wanted) if outcome == "updated" else None
    if found is None:
        raise Problem("not-found", "no such broadcaster")
    service().kicker.cut_off(broadcaster_id=wanted)
    return found


@bp.delete("/<broadcaster_id>")
@Operation("deleteBroadcaster", {204: Answer("It is deleted, or was.")}, problems=("not-found",))
def delete(broadcaster_id: str) -> flask.Response:
    """Delete a broadcaster.

    204, and 204 again: it and its keys leave the lists, the keys are revoked, their streams ended.
    """
    remove(identifier(broadcaster_id))
    return no_content()


def remove(wanted: UUID) -> None:
    """Delete this broadcaster. Problem `not-found`."""
    with service().database.connection(actor=actor()) as conn:
        outcome = broadcasters.delete(conn, wanted)
    if outcome == "not-found":
        raise Problem("not-found", "no such broadcaster")
    service().kicker.cut_off(broadcaster_id=wanted)

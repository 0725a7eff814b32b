"""Stream keys: list, mint, show, change, rotate, revoke. A value is in the 201 that made it and nowhere else."""

from typing import Annotated
from uuid import UUID, uuid4

import flask
import msgspec

from streamorch import keys, paths, urls
from streamorch.blueprints import (
    Cursor,
    Limit,
    Metadata,
    When,
    actor,
    after,
    answer,
    body,
    created,
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
from streamorch.problems import Problem
from streamorch.repositories import stream_keys
from streamorch.repositories.stream_keys import Status, StreamKey, Takeover

bp = flask.Blueprint("stream_keys", __name__, url_prefix="/stream-keys")
bp.before_request(first(require_api_caller))

Label = Annotated[str, msgspec.Meta(max_length=255)]
RULES = {"path": paths.refusal}
Path = Annotated[str, msgspec.Meta(extra_json_schema=paths.SCHEMA)]


class NewStreamKey(msgspec.Struct, frozen=True):
    """The body of POST /stream-keys."""

    broadcaster_id: UUID
    id: UUID | None = None
    label: Label | None = None
    path: Path | None = None
    takeover: Takeover = "stalled"
    expires_at: When | None = None
    disabled: bool = False
    metadata: Metadata | None = None


class StreamKeyChanges(msgspec.Struct, frozen=True):
    """The body of PATCH /stream-keys/{id}: a member given replaces the whole value, null clears it."""

    label: Label | msgspec.UnsetType | None = msgspec.UNSET
    path: Path | msgspec.UnsetType | None = msgspec.UNSET
    takeover: Takeover | msgspec.UnsetType = msgspec.UNSET
    expires_at: When | msgspec.UnsetType | None = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET
    hold_until: When | msgspec.UnsetType | None = msgspec.UNSET
    previous_works_until: When | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType = msgspec.UNSET


class Rotation(msgspec.Struct, frozen=True):
    """The body of POST /stream-keys/{id}/rotate: for how long the value before works on; 0 for no longer."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=stream_keys.LONGEST_OVERLAP_SECONDS)] = (
        stream_keys.OVERLAP_SECONDS
    )


class WhichStreamKeys(msgspec.Struct, frozen=True):
    """The query of GET /stream-keys."""

    broadcaster_id: UUID | None = None
    status: Status | None = None
    limit: Limit = 1000
    cursor: Cursor | None = None


class StreamKeyPage(msgspec.Struct, frozen=True):
    """Stream keys, newest first; `next_cursor` is null on the last page."""

    stream_keys: list[StreamKey]
    count: int
    next_cursor: str | None


class MintedStreamKey(StreamKey, frozen=True):
    """A key with its new value, which is told this once, and how to publish with it."""

    key_value: str
    publish: urls.Publish


_ONE = {"stream_key_id": "$response.body#/id"}
_MINTED = "Minted. Keep `key_value`: it is told this once."


@bp.get("")
@Operation(
    "listStreamKeys",
    {
        200: Answer(
            "The page.",
            StreamKeyPage,
            links=(Link("getStreamKey", {"stream_key_id": "$response.body#/stream_keys/0/id"}),),
        )
    },
    asks=WhichStreamKeys,
)
def index() -> flask.Response:
    """A page of stream keys, newest first."""
    asked = query(WhichStreamKeys)
    filters = {"broadcaster_id": asked.broadcaster_id, "status": asked.status}
    last = after(asked.cursor, filters)
    with service().database.connection() as conn:
        found = stream_keys.page(
            conn, broadcaster_id=asked.broadcaster_id, status=asked.status, limit=asked.limit + 1, after=last
        )
    items, cursor = one_page(found, asked.limit, filters, lambda item: (item.created_at, item.id))
    return answer(StreamKeyPage(items, len(items), cursor))


@bp.post("")
@Operation(
    "createStreamKey",
    {
        201: Answer(
            _MINTED,
            MintedStreamKey,
            headers=("Location", "Cache-Control"),
            links=(
                Link("getStreamKey", _ONE),
                Link("changeStreamKey", _ONE),
                Link("rotateStreamKey", _ONE),
                Link("revokeStreamKey", _ONE),
                Link(
                    "askMay",
                    body={
                        "action": "publish",
                        "password": "$response.body#/key_value",
                        "path": "$response.body#/publish/path",
                    },
                ),
                Link("listStreams", _ONE),
            ),
        )
    },
    takes=NewStreamKey,
    problems=("conflict", "path-in-use"),
)
def create() -> flask.Response:
    """Mint a stream key.

    The answer has its value, this once, and how to publish with it; the same id again is 409, never a second secret.
    """
    minted = mint(body(NewStreamKey, rules=RULES))
    return created(minted, flask.url_for(".show", stream_key_id=minted.id))


def mint(new: NewStreamKey) -> MintedStreamKey:
    """Mint this key. Problem `conflict`, `path-in-use`, or `invalid-request` when the broadcaster is none."""
    stream_key_id = new.id or uuid4()
    value = keys.mint()
    with service().database.connection(actor=actor()) as conn:
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
    return _told(made, value)


@bp.post("/<stream_key_id>/rotate")
@Operation(
    "rotateStreamKey",
    {
        201: Answer(
            _MINTED,
            MintedStreamKey,
            headers=("Location", "Cache-Control"),
            links=(Link("getStreamKey", _ONE), Link("changeStreamKey", _ONE)),
        )
    },
    takes=Rotation,
    problems=("not-found", "conflict"),
)
def rotate(stream_key_id: str) -> flask.Response:
    """Give a stream key a new value.

    The one before works on for `overlap_seconds`; one that was replaced earlier is out at once. No stream ends: who
    publishes with an old value streams on. Not to be repeated after a lost answer without need: each time is one more.
    """
    minted = rotated(identifier(stream_key_id), body(Rotation).overlap_seconds)
    return created(minted, flask.url_for(".show", stream_key_id=minted.id))


def rotated(wanted: UUID, overlap_seconds: int) -> MintedStreamKey:
    """The key with a new value, the one before working on for so long. Problem `not-found`, or `conflict`: revoked."""
    value = keys.mint()
    with service().database.connection(actor=actor()) as conn:
        outcome = stream_keys.rotate(
            conn, wanted, key_hash=keys.digest(value), hint=keys.hint(value), overlap_seconds=overlap_seconds
        )
        found = stream_keys.get(conn, wanted) if outcome == "rotated" else None
    if outcome == "revoked":
        raise Problem("conflict", "the key is revoked")
    if found is None:
        raise Problem("not-found", "no such stream key")
    return _told(found, value)


def _told(key: StreamKey, value: str) -> MintedStreamKey:
    """The key with its value, which nobody is told again."""
    path = key.path or urls.suggested_path(key.id.hex)
    return MintedStreamKey(
        **msgspec.structs.asdict(key),
        key_value=value,
        publish=urls.publish(service().settings.media_urls, path, value),
    )


@bp.get("/<stream_key_id>")
@Operation("getStreamKey", {200: Answer("The key.", StreamKey)}, problems=("not-found",))
def show(stream_key_id: str) -> flask.Response:
    """One stream key, without its value."""
    with service().database.connection() as conn:
        found = stream_keys.get(conn, identifier(stream_key_id))
    if found is None:
        raise Problem("not-found", "no such stream key")
    return answer(found)


@bp.patch("/<stream_key_id>")
@Operation(
    "changeStreamKey",
    {200: Answer("The changed key.", StreamKey, links=(Link("getStreamKey", _ONE),))},
    takes=StreamKeyChanges,
    problems=("not-found", "conflict", "path-in-use", "stream-key-in-use"),
)
def change(stream_key_id: str) -> flask.Response:
    """Change a stream key.

    Disabling it, or an expiry in the past, ends its streams. `previous_works_until` moves the end of an overlap, to now
    by null; after its end that is 409. A revoked key stays as it is: 409.
    """
    return answer(changed(identifier(stream_key_id), body(StreamKeyChanges, rules=RULES)))


def changed(wanted: UUID, changes: StreamKeyChanges) -> StreamKey:
    """The key with these changes. Problem `not-found`, `conflict`, `path-in-use` or `stream-key-in-use`."""
    with service().database.connection(actor=actor()) as conn:
        outcome = stream_keys.update(conn, wanted, given(changes))
        found = stream_keys.get(conn, wanted) if outcome == "updated" else None
    if outcome == "revoked":
        raise Problem("conflict", "the key is revoked")
    if outcome == "path-in-use":
        raise Problem("path-in-use", "a stream of another key is live on this path")
    if outcome == "overlap-over":
        raise Problem("conflict", "no value before this one works any more")
    if outcome == "overlap-too-long":
        raise invalid("previous_works_until", "is more than 30 days from now")
    if outcome == "stream-key-in-use":
        raise Problem("stream-key-in-use", "a stream of this key is live on another path")
    if found is None:
        raise Problem("not-found", "no such stream key")
    service().kicker.cut_off(stream_key_id=wanted)
    return found


@bp.delete("/<stream_key_id>")
@Operation("revokeStreamKey", {204: Answer("It is revoked, or was.")}, problems=("not-found",))
def revoke(stream_key_id: str) -> flask.Response:
    """Revoke a stream key.

    204, and 204 again: from then on nobody publishes with it, and its streams have ended. It stays in the lists.
    """
    take_back(identifier(stream_key_id))
    return no_content()


def take_back(wanted: UUID) -> None:
    """Revoke this key. Problem `not-found`."""
    with service().database.connection(actor=actor()) as conn:
        outcome = stream_keys.revoke(conn, wanted)
    if outcome == "not-found":
        raise Problem("not-found", "no such stream key")
    service().kicker.cut_off(stream_key_id=wanted)

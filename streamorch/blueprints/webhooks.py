"""POST /webhook/ready and /webhook/not-ready: what MediaMTX's hook commands tell.

Hooks are separate processes: unordered, unretried, sometimes lost or doubled. So they are hints, decided by the id
of the connection, and answered truthfully: never a 2xx for work that was not done.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated
from uuid import UUID

import flask
import msgspec

from streamorch import keys
from streamorch.blueprints import OfNode, asked, first, no_content, node, require_media_server, service, told
from streamorch.contract import Answer, Link, Operation
from streamorch.mediamtx import SOURCE_LISTS, NoAnswer
from streamorch.problems import FieldError, Problem
from streamorch.repositories import Connection, nodes, streams

bp = flask.Blueprint("webhooks", __name__, url_prefix="/webhook")
bp.before_request(first(require_media_server))
log = logging.getLogger(__name__)

# A not-ready without a connection id that comes within this of a start is most likely about the publisher before.
_GRACE_SECONDS = 5
_ASK_SECONDS = 0.3
_ASK_AT_ONCE = 2
_HEARD_SECONDS = 1.0
_MAX_LENGTH = 255
_SHORT = {"maxLength": _MAX_LENGTH, "pattern": r"^[^\x00]*$"}


class Ear:
    """What a worker keeps of hooks: when it last wrote down that one came, and how many ask the media server now."""

    def __init__(self) -> None:
        self.heard_at = -_HEARD_SECONDS
        self.asking = threading.BoundedSemaphore(_ASK_AT_ONCE)


@bp.record_once
def _give_ear(state: flask.blueprints.BlueprintSetupState) -> None:
    state.app.extensions["streamorch.ear"] = Ear()


Work = Callable[[Connection], tuple[str, UUID | None]]


class Event(msgspec.Struct, frozen=True):
    """The body of a hook. The plain form has fewer members; unknown ones (a query, say) are ignored and not logged."""

    path: Annotated[str, msgspec.Meta(extra_json_schema=_SHORT | {"minLength": 1})]
    source_type: str = ""
    source_id: Annotated[str, msgspec.Meta(extra_json_schema=_SHORT)] | None = None


_decode = msgspec.json.Decoder(Event).decode


_ENDING = {"path": "$request.body#/path", "source_id": "$request.body#/source_id"}


@bp.post("/ready")
@Operation(
    "tellReady",
    {
        204: Answer(
            "The stream is live; or the source has no id, and is nobody's claim.",
            links=(Link("tellNotReady", body=_ENDING), Link("listStreams", {"path": "$request.body#/path"})),
        )
    },
    takes=Event,
    asks=OfNode,
    problems=("stream-not-found",),
)
def ready() -> flask.Response:
    """A connection went live.

    Its claim becomes an active stream. 404 when nobody claimed it, or its stream has ended.
    """
    from_node = node(asked())
    event = _event()
    if not event.source_id:  # a static source, an always-available path
        return no_content()
    work = partial(
        streams.start, node=from_node, path=event.path, source_type=event.source_type, source_id=event.source_id
    )
    request = asked()
    outcome, stream_id, request.claim_seconds = service().database.run(work)
    request.outcome, request.stream_id = outcome, stream_id
    _note_heard(from_node)
    log.info("ready", extra=_facts(event) | {"outcome": outcome, "stream_id": stream_id})
    if outcome not in ("active", "replay"):
        if stream_id is not None:
            service().kicker.cut_off(stream_id=stream_id)  # its key lost its right after the claim
        raise Problem("stream-not-found")
    return no_content()


@bp.post("/not-ready")
@Operation("tellNotReady", {204: Answer("It is written down.")}, takes=Event, asks=OfNode)
def not_ready() -> flask.Response:
    """A connection is no longer live.

    Its stream ends. 204 always: a late or doubled end changes nothing.
    """
    from_node = node(asked())
    event = _event()
    if event.source_id:
        work: Work = partial(
            streams.end, node=from_node, path=event.path, source_type=event.source_type, source_id=event.source_id
        )
    elif event.source_id is None and (not event.source_type or event.source_type in SOURCE_LISTS):
        unnamed = _end_of_the_unnamed(from_node, event)
        if unnamed is None:
            _note_heard(from_node)
            return no_content()
        work = unnamed
    else:
        return no_content()
    request = asked()
    outcome, stream_id = service().database.run(work)
    request.outcome, request.stream_id = outcome, stream_id
    _note_heard(from_node)
    log.info("not ready", extra=_facts(event) | {"outcome": outcome, "stream_id": stream_id})
    return no_content()


def _end_of_the_unnamed(from_node: str, event: Event) -> Work | None:
    """What the plain hook, which names no connection, asks for; None when the one that we know of still publishes.

    Asked of the connection lists: the list of paths waits while the media server waits for us. When nobody says, the
    stream ends unless it is so young that the hook is most likely about the publisher before.
    """
    ear: Ear = flask.current_app.extensions["streamorch.ear"]
    unsure = partial(streams.end_on_path, node=from_node, path=event.path, grace_seconds=_GRACE_SECONDS)
    active = service().database.run(partial(streams.active_on_path, node=from_node, path=event.path))
    if active is None or not ear.asking.acquire(blocking=False):
        return unsure
    protocol, source_id = active
    try:
        found = service().api.connection(protocol, source_id, seconds=_ASK_SECONDS)
    except NoAnswer:
        return unsure
    finally:
        ear.asking.release()
    if found is not None and found.state == "publish" and found.path == event.path:
        return None
    # By its id, and not by the path, which may have another publisher by now.
    return partial(streams.end, node=from_node, path=event.path, source_type=event.source_type, source_id=source_id)


def _note_heard(from_node: str) -> None:
    """Write down that hooks of this node arrive: once a second, since nobody needs to know it better."""
    ear: Ear = flask.current_app.extensions["streamorch.ear"]
    now = time.monotonic()
    if now - ear.heard_at >= _HEARD_SECONDS:
        ear.heard_at = now
        service().database.run(partial(nodes.heard, node=from_node))


def _event() -> Event:
    """The JSON of the body, whatever its Content-Type says: `curl -d` labels it as a form."""
    asked().about = event = told(asked(), _decode)
    errors = [
        FieldError(name, reason)
        for name, value, reason in (
            ("path", event.path, f"is empty, longer than {_MAX_LENGTH} characters or holds a NUL"),
            ("source_type", event.source_type, f"is longer than {_MAX_LENGTH} characters or holds a NUL"),
            ("source_id", event.source_id, f"is longer than {_MAX_LENGTH} characters or holds a NUL"),
        )
        if (value == "" and name == "path") or len(value or "") > _MAX_LENGTH or "\x00" in (value or "")
    ]
    if errors:
        raise Problem("invalid-request", errors=errors)
    # No stream has a key in these: so nothing is found, and none reaches the database.
    return Event(
        keys.redact(event.path), keys.redact(event.source_type), event.source_id and keys.redact(event.source_id)
    )


def _facts(event: Event) -> dict[str, object]:
    return {
        "path": event.path,
        "source_type": event.source_type[:32],
        "source_id": event.source_id,
    }

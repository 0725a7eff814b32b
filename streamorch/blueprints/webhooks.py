"""POST /webhook/ready and /webhook/not-ready: what MediaMTX's hook commands tell.

Hooks are separate processes: unordered, unretried, sometimes lost or doubled. So they are hints, decided by the id
of the connection, and answered truthfully: never a 2xx for work that was not done.
"""

import logging
from functools import partial

import flask
import msgspec

from streamorch import keys
from streamorch.blueprints import no_content, node, require_media_server, service, told
from streamorch.problems import FieldError, Problem
from streamorch.repositories import streams

bp = flask.Blueprint("webhooks", __name__, url_prefix="/webhook")
bp.before_request(require_media_server)
log = logging.getLogger(__name__)

# A not-ready without a connection id that comes within this of a start is most likely about the publisher before.
_GRACE_SECONDS = 5
# Sources that are clients; every other type is a static source of the configuration, which nobody claims.
_PUBLISHERS = (
    "rtmpConn",
    "rtmpsConn",
    "rtspSession",
    "rtspsSession",
    "srtConn",
    "webRTCSession",
    "moqSession",
)


class Event(msgspec.Struct, frozen=True):
    """The body of a hook. The plain form has fewer members; unknown ones (a query, say) are ignored and not logged."""

    path: str
    source_type: str = ""
    source_id: str | None = None


_decode = msgspec.json.Decoder(Event).decode


@bp.post("/ready")
def ready() -> flask.Response:
    """204 when the stream is live (or the source is nobody's claim), 404 when nobody claimed it or it has ended."""
    from_node = node()
    event = _event()
    if not event.source_id:  # a static source, an always-available path
        return no_content()
    work = partial(
        streams.start, node=from_node, path=event.path, source_type=event.source_type, source_id=event.source_id
    )
    outcome, stream_id = service().database.run(work)
    log.info("ready", extra=_facts(event) | {"outcome": outcome, "stream_id": stream_id})
    if outcome not in ("active", "replay"):
        raise Problem("stream-not-found")
    return no_content()


@bp.post("/not-ready")
def not_ready() -> flask.Response:
    """204 always, once it is written down; a late or doubled end changes nothing."""
    from_node = node()
    event = _event()
    if event.source_id:
        work = partial(
            streams.end, node=from_node, path=event.path, source_type=event.source_type, source_id=event.source_id
        )
    elif event.source_id is None and (not event.source_type or event.source_type in _PUBLISHERS):
        # The plain hook names no connection, and nobody can be asked which one it was.
        work = partial(streams.end_on_path, node=from_node, path=event.path, grace_seconds=_GRACE_SECONDS)
    else:
        return no_content()
    outcome, stream_id = service().database.run(work)
    log.info("not ready", extra=_facts(event) | {"outcome": outcome, "stream_id": stream_id})
    return no_content()


def _event() -> Event:
    """The JSON of the body, whatever its Content-Type says: `curl -d` labels it as a form."""
    event = told(_decode)
    errors = [
        FieldError(name, reason)
        for name, value, reason in (
            ("path", event.path, "is empty, longer than 255 characters or holds a NUL"),
            ("source_id", event.source_id, "is longer than 255 characters or holds a NUL"),
        )
        if (value == "" and name == "path") or len(value or "") > 255 or "\x00" in (value or "")
    ]
    if errors:
        raise Problem("invalid-request", errors=errors)
    return event


def _facts(event: Event) -> dict[str, object]:
    return {
        "path": keys.redact(event.path),
        "source_type": event.source_type[:32],
        "source_id": event.source_id,
    }

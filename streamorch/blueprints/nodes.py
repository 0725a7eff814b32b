"""Nodes: the media servers, and what is known of each."""

import flask
import msgspec

from streamorch.blueprints import answer, first, require_api_caller, service
from streamorch.contract import Answer, Operation
from streamorch.repositories import NODE, Moment, nodes

bp = flask.Blueprint("nodes", __name__, url_prefix="/nodes")
bp.before_request(first(require_api_caller))


class Unclaimed(msgspec.Struct, frozen=True):
    """A live publisher that nobody claimed. (What the reconciler thinks of it is its own affair.)"""

    path: str
    source_type: str
    source_id: str
    since: Moment


class MediaServer(msgspec.Struct, frozen=True):
    """A media server: does its Control API answer, when did a hook come, who publishes without a claim.

    `problem` tells in words what is wrong with it, null when nothing is.
    """

    name: str
    version: str | None
    started_at: Moment | None
    api: nodes.APIState
    last_tick_at: Moment | None
    last_hook_at: Moment | None
    active: int
    unclaimed: list[Unclaimed]
    problem: str | None


class MediaServers(msgspec.Struct, frozen=True):
    """Every media server, by name."""

    nodes: list[MediaServer]
    count: int


@bp.get("")
@Operation("listNodes", {200: Answer("All of them.", MediaServers)})
def index() -> flask.Response:
    """The media servers, and what is known of each."""
    with service().database.connection() as conn:
        found = nodes.every(conn, default=NODE)
    return answer(MediaServers([_shown(node) for node in found], len(found)))


_unclaimed = msgspec.json.Decoder(list[Unclaimed])


def _shown(node: nodes.Node) -> MediaServer:
    return MediaServer(
        node.name,
        node.version,
        node.started_at,
        node.api,
        node.last_tick_at,
        node.last_hook_at,
        node.active,
        _unclaimed.decode(node.unclaimed),
        _DEAF if node.is_deaf else None,
    )


_DEAF = (
    "publishers are let in, but neither a hook nor the Control API tells what became of them: no stream becomes live"
)

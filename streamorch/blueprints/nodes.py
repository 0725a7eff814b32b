"""Nodes: the media servers, and what is known of each."""

import flask
import msgspec

from streamorch.blueprints import answer, first, require_api_caller, service
from streamorch.contract import Answer, Operation
from streamorch.objects import MediaServer, media_server
from streamorch.repositories import NODE, nodes

bp = flask.Blueprint("nodes", __name__, url_prefix="/nodes")
bp.before_request(first(require_api_caller))


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
    return answer(MediaServers([media_server(node) for node in found], len(found)))

"""Nodes: the media servers, and what is known of each."""

import flask
import msgspec

from streamorch.blueprints import answer, first, require_api_caller, service
from streamorch.repositories import NODE, nodes

bp = flask.Blueprint("nodes", __name__, url_prefix="/nodes")
bp.before_request(first(require_api_caller))


@bp.get("")
def index() -> flask.Response:
    """Every media server: does its Control API answer, when did a hook come, who publishes without a claim."""
    with service().database.connection() as conn:
        found = nodes.every(conn, default=NODE)
    return answer({"nodes": [_shown(node) for node in found], "count": len(found)})


def _shown(node: nodes.Node) -> dict[str, object]:
    shown = msgspec.structs.asdict(node)
    # What the reconciler thinks of each is its own affair.
    shown["unclaimed"] = [{name: entry[name] for name in _UNCLAIMED} for entry in msgspec.json.decode(node.unclaimed)]
    shown["problem"] = _DEAF if shown.pop("is_deaf") else None
    return shown


_UNCLAIMED = ("path", "source_type", "source_id", "since")
_DEAF = (
    "publishers are let in, but neither a hook nor the Control API tells what became of them: no stream becomes live"
)

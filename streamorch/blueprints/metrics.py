"""GET /metrics: what Prometheus scrapes, on the API's port, or (`edge.py`) on a port of its own."""

import flask
import psycopg

from streamorch.blueprints import Service, as_flask, asked, first, require_scraper, service
from streamorch.contract import Answer, Operation
from streamorch.exchange import Reply, Request
from streamorch.problems import Problem
from streamorch.repositories import NODE, gauges

_FORMATS = ("text/plain", "application/openmetrics-text")

bp = flask.Blueprint("metrics", __name__)
bp.before_request(first(require_scraper))


@bp.get("/metrics")
@Operation(
    "scrape",
    {200: Answer("Prometheus's text format, or OpenMetrics.", str, media=_FORMATS, headers=("Cache-Control",))},
    problems=("not-found",),
)
def scrape() -> flask.Response:
    """What this instance has counted, and what is open.

    Of all workers, whichever answers. The secret of an API client is not taken: the database would have to be asked,
    and the metrics also tell that it is away. `not-found` where the metrics have a port of their own, or are off.
    """
    of = service()
    if of.settings.metrics_port is not None:
        raise Problem("not-found", "the metrics are on METRICS_PORT")
    return as_flask(answer(asked(), of))


def answer(request: Request, of: Service) -> Reply:
    """The metrics of this instance, and of the database what is open; without it the rest, and that it is away."""
    if of.metrics is None:
        raise Problem("not-found", "METRICS_ENABLED is false")
    try:
        with of.database.connection() as conn:
            nodes = gauges.read(conn, default=NODE)
    except psycopg.OperationalError:
        nodes = None
    text, content_type = of.metrics.exposition(nodes, accept=request.header("Accept"))
    return Reply(200, text, (("Content-Type", content_type), ("Cache-Control", "no-store")))

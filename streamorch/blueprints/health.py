"""Is the process alive, is the database there, may traffic come?"""

from collections.abc import Mapping

import flask
import psycopg

from streamorch import __version__, repositories
from streamorch.blueprints import answer, service
from streamorch.problems import TABLE, Problem
from streamorch.repositories import NODE, migrate, nodes

bp = flask.Blueprint("health", __name__)


@bp.get("/livez")
def livez() -> flask.Response:
    """200 as long as the process answers."""
    return answer({"status": "ok"})


@bp.get("/health")
def health() -> flask.Response:
    """200, or 503 when the database is away; plain JSON, as rescuestream-api has it."""
    try:
        with service().database.connection() as conn:
            repositories.ping(conn)
    except psycopg.OperationalError:
        return _not_ready({"status": "degraded", "database": "unreachable", "version": __version__})
    return answer({"status": "ok", "database": "ok", "version": __version__})


@bp.get("/readyz")
def readyz() -> flask.Response:
    """200 when pool and schema are fit for traffic; a media server that is away is told, and no reason for a 503."""
    media_server = None
    try:
        with service().database.connection() as conn:
            current = migrate.is_current(conn)
            if current:
                media_server = nodes.api_state(conn, NODE)
    except psycopg.OperationalError:
        return _not_ready({"status": "degraded", "database": "unreachable", "schema": None, "version": __version__})
    except psycopg.errors.UndefinedTable:
        current = False
    state = {
        "database": "ok",
        "schema": "current" if current else "old",
        "media_server": media_server,
        "version": __version__,
    }
    return answer({"status": "ok"} | state) if current else _not_ready({"status": "degraded"} | state)


@bp.get("/errors/<slug>")
def error_page(slug: str) -> flask.Response:
    """What a problem means and what to do about it: the page that its `type` names."""
    kind = TABLE.get(slug)
    if kind is None:
        raise Problem("not-found", "no such problem")
    text = f"{kind.title} ({kind.status}, {slug})\n\n{kind.meaning}\n\nWhat to do: {kind.mend}\n"
    return flask.Response(text, content_type="text/plain; charset=utf-8")


def _not_ready(state: Mapping[str, str | None]) -> flask.Response:
    reply = answer(state, 503)
    reply.headers["Retry-After"] = "1"
    return reply

"""Is the process alive, is the database there, may traffic come?"""

from typing import Literal

import flask
import msgspec
import psycopg

from streamorch import __version__, repositories
from streamorch.blueprints import answer, service
from streamorch.contract import Answer, Operation
from streamorch.repositories import NODE, migrate, nodes

bp = flask.Blueprint("health", __name__)


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"]


class Health(msgspec.Struct, frozen=True):
    """Is the database there? (The shape is rescuestream-api's.)"""

    status: Literal["ok", "degraded"]
    database: Literal["ok", "unreachable"]
    version: str


class Readiness(msgspec.Struct, frozen=True):
    """May traffic come? `schema` and `media_server` (its Control API) are null when nobody could say."""

    status: Literal["ok", "degraded"]
    database: Literal["ok", "unreachable"]
    schema: Literal["current", "old"] | None
    media_server: nodes.APIState | None
    version: str


@bp.get("/livez")
@Operation("isAlive", {200: Answer("It is.", Alive)})
def livez() -> flask.Response:
    """Is the process there?

    200 as long as it answers.
    """
    return answer(Alive("ok"))


@bp.get("/health")
@Operation(
    "isHealthy",
    {200: Answer("It is.", Health), 503: Answer("The database is away.", Health, headers=("Retry-After",))},
)
def health() -> flask.Response:
    """Is the database there?

    503 when it is away, in plain JSON, as rescuestream-api has it.
    """
    try:
        with service().database.connection() as conn:
            repositories.ping(conn)
    except psycopg.OperationalError:
        return _not_ready(Health("degraded", "unreachable", __version__))
    return answer(Health("ok", "ok", __version__))


@bp.get("/readyz")
@Operation(
    "isReady",
    {
        200: Answer("It may.", Readiness),
        503: Answer("The database is away, or its schema is old.", Readiness, headers=("Retry-After",)),
    },
)
def readyz() -> flask.Response:
    """May traffic come?

    When pool and schema are fit for it. A media server that is away is told, and no reason for a 503.
    """
    media_server = None
    try:
        with service().database.connection() as conn:
            current = migrate.is_current(conn)
            if current:
                media_server = nodes.api_state(conn, NODE)
    except psycopg.OperationalError:
        return _not_ready(Readiness("degraded", "unreachable", None, None, __version__))
    except psycopg.errors.UndefinedTable:
        current = False
    if not current:
        return _not_ready(Readiness("degraded", "ok", "old", None, __version__))
    return answer(Readiness("ok", "ok", "current", media_server, __version__))


def _not_ready(state: Health | Readiness) -> flask.Response:
    reply = answer(state, 503)
    reply.headers["Retry-After"] = "1"
    return reply

"""What is live."""

import flask

from streamorch import repositories
from streamorch.blueprints import service
from streamorch.blueprints.console import data, page, room
from streamorch.contract import aside
from streamorch.problems import Problem

bp = room("wall")


@bp.get("")
@aside
def index() -> flask.Response:
    """A tile for each live stream."""
    return page("wall.html")


@bp.get("/alive")
@aside
def alive() -> flask.Response:
    """Does the database answer? For the banner of each page: an empty object, or a problem."""
    with service().database.connection() as conn:
        repositories.ping(conn)
    return data({})


@bp.route("/<path:_>", methods=["GET", "POST"])
@aside
def nowhere(_: str) -> flask.Response:
    """An address that is none, as a page."""
    raise Problem("not-found", "there is no such page")

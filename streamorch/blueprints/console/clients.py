"""API clients: give a program or a colleague a secret of its own, see who has one, take it back."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import flask
import msgspec
from werkzeug.wrappers import Response

from streamorch.blueprints import Cursor, accepted, after, identifier, one_page, query, service
from streamorch.blueprints import api_clients as api_clients_api
from streamorch.blueprints.api_clients import NAME_TAKEN, RULES, NewAPIClient
from streamorch.blueprints.console import done, moment_of, page, room, typed
from streamorch.callers import Scope
from streamorch.contract import aside
from streamorch.problems import Problem
from streamorch.repositories import api_clients
from streamorch.repositories.api_clients import Status

bp = room("clients", scope="admin")

_PAGE = 100

# What each scope allows, for who has to choose one.
SCOPES: dict[Scope, str] = {
    "read": "Sees what is live, broadcasters, keys, history and refusals, and changes nothing.",
    "operate": "Also makes, changes and revokes broadcasters and keys, and stops streams.",
    "admin": "Also sees who changed what, and makes and revokes API clients, of any scope.",
}
# What is wrong with a field of the form, whatever it is: the sentence tells what is right.
_WRONG = {
    "name": "A name has 1 to 255 characters, and no key or secret among them: it stands in lists and in the audit"
    " trail.",
    "scope": "Choose one of these.",
    "expires_at": "That is no moment that can be kept. Leave it empty for a client that does not expire.",
}
_TAKEN = "Another API client has this name. Choose another one, or revoke that first: then the name is free."
_TWICE = (
    "The form was sent twice: the first time made the client, which is in the list. Its secret was shown then, and"
    " nobody can show it again; if it is lost, revoke the client and make another."
)


class WhichClients(msgspec.Struct, frozen=True):
    """The query of the list."""

    status: Status | None = None
    cursor: Cursor | None = None


@bp.get("/clients")
@aside
def index() -> flask.Response:
    """A page of API clients, newest first."""
    wanted = query(WhichClients)
    filters = {"status": wanted.status}
    last = after(wanted.cursor, filters)
    with service().database.connection() as conn:
        found = api_clients.page(conn, status=wanted.status, limit=_PAGE + 1, after=last)
    clients, cursor = one_page(found, _PAGE, filters, lambda client: (client.created_at, client.id))
    return page("clients.html", clients=clients, wanted=wanted, cursor=cursor)


@bp.get("/clients/new")
@aside
def new() -> flask.Response:
    """The form for an API client."""
    return _form({}, {}, 200)


@bp.post("/clients/new")
@aside
def create() -> flask.Response:
    """Make an API client, and show its secret, this once."""
    given = flask.request.form
    members: dict[str, Any] = {name: given[name] for name in ("id", "scope") if given.get(name)}
    members["name"] = given.get("name", "").strip()
    if given.get("expires_at"):
        members["expires_at"] = moment_of(given["expires_at"])
    try:
        made = api_clients_api.make(accepted(NewAPIClient, members, rules=RULES))
    except Problem as problem:
        if problem.slug == "conflict":
            wrong = {"name": _TAKEN} if problem.detail == NAME_TAKEN else {"form": _TWICE}
            return _form(typed(), wrong, 409)
        if problem.errors is None or not all(error.field in _WRONG for error in problem.errors):
            raise
        return _form(typed(), {error.field: _WRONG[error.field] for error in problem.errors}, 400)
    return page("client_made.html", 201, client=made)


@bp.post("/clients/<api_client_id>/revoke")
@aside
def revoke(api_client_id: str) -> Response:
    """Take its secret back for good."""
    api_clients_api.take_back(identifier(api_client_id))
    return done("client-revoked", flask.url_for(".index"))


def _form(given: Mapping[str, str], wrong: Mapping[str, str], status: int) -> flask.Response:
    # The id is the form's, so that a page that is loaded again makes nothing twice.
    return page("client_new.html", status, given=given, wrong=wrong, id=uuid4(), scopes=SCOPES)

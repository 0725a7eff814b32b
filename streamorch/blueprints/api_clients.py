"""API clients: list, make, show, change, revoke. The secret of one is in the 201 that made it and nowhere else."""

from typing import Annotated
from uuid import UUID, uuid4

import flask
import msgspec

from streamorch import keys
from streamorch.blueprints import (
    Cursor,
    Limit,
    When,
    actor,
    after,
    answer,
    body,
    created,
    first,
    given,
    identifier,
    no_content,
    one_page,
    query,
    require_api_caller,
    service,
)
from streamorch.callers import Scope, name_refusal
from streamorch.contract import Answer, Link, Operation
from streamorch.problems import Problem
from streamorch.repositories import api_clients
from streamorch.repositories.api_clients import APIClient, Status

bp = flask.Blueprint("api_clients", __name__, url_prefix="/api-clients")
bp.before_request(first(require_api_caller))

Name = Annotated[
    str, msgspec.Meta(min_length=1, max_length=255, extra_json_schema={"not": {"pattern": keys.FORM.pattern}})
]
RULES = {"name": name_refusal}
NAME_TAKEN = "an API client with this name exists"


class NewAPIClient(msgspec.Struct, frozen=True):
    """The body of POST /api-clients."""

    name: Name
    scope: Scope
    id: UUID | None = None
    expires_at: When | None = None


class APIClientChanges(msgspec.Struct, frozen=True):
    """The body of PATCH /api-clients/{id}: a member given replaces the whole value, null clears it."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    scope: Scope | msgspec.UnsetType = msgspec.UNSET
    expires_at: When | msgspec.UnsetType | None = msgspec.UNSET


class WhichAPIClients(msgspec.Struct, frozen=True):
    """The query of GET /api-clients."""

    status: Status | None = None
    limit: Limit = 1000
    cursor: Cursor | None = None


class APIClientPage(msgspec.Struct, frozen=True):
    """API clients, newest first; `next_cursor` is null on the last page."""

    api_clients: list[APIClient]
    count: int
    next_cursor: str | None


class MadeAPIClient(APIClient, frozen=True):
    """A new API client with its secret, which is told this once."""

    secret: str


_ONE = {"api_client_id": "$response.body#/id"}


@bp.get("")
@Operation(
    "listApiClients",
    {
        200: Answer(
            "The page.",
            APIClientPage,
            links=(Link("getApiClient", {"api_client_id": "$response.body#/api_clients/0/id"}),),
        )
    },
    asks=WhichAPIClients,
    scope="admin",
)
def index() -> flask.Response:
    """A page of API clients, newest first."""
    asked = query(WhichAPIClients)
    filters = {"status": asked.status}
    last = after(asked.cursor, filters)
    with service().database.connection() as conn:
        found = api_clients.page(conn, status=asked.status, limit=asked.limit + 1, after=last)
    items, cursor = one_page(found, asked.limit, filters, lambda item: (item.created_at, item.id))
    return answer(APIClientPage(items, len(items), cursor))


@bp.post("")
@Operation(
    "createApiClient",
    {
        201: Answer(
            "Made. Keep `secret`: it is told this once.",
            MadeAPIClient,
            headers=("Location", "Cache-Control"),
            links=(Link("getApiClient", _ONE), Link("changeApiClient", _ONE), Link("revokeApiClient", _ONE)),
        )
    },
    takes=NewAPIClient,
    problems=("conflict",),
    scope="admin",
)
def create() -> flask.Response:
    """Make an API client.

    The answer has its secret, this once; the same id again is 409, never a second secret, and so is a name that a
    client has who is not revoked. `read` is for every GET but those of API clients and the audit trail, `operate` also
    steers broadcasters, stream keys and streams, `admin` may all.
    """
    made = make(body(NewAPIClient, rules=RULES))
    return created(made, flask.url_for(".show", api_client_id=made.id))


def make(new: NewAPIClient) -> MadeAPIClient:
    """Make this client. Problem `conflict` when its id is taken, or its name, which says NAME_TAKEN."""
    client_id = new.id or uuid4()
    secret = keys.mint_client_secret()
    with service().database.connection(actor=actor()) as conn:
        outcome = api_clients.create(
            conn,
            client_id=client_id,
            name=new.name,
            scope=new.scope,
            secret_hash=keys.digest(secret),
            hint=keys.hint(secret),
            expires_at=new.expires_at,
        )
        made = api_clients.get(conn, client_id) if outcome == "created" else None
    if outcome == "name-taken":
        raise Problem("conflict", NAME_TAKEN)
    if made is None:
        raise Problem("conflict", "an API client with this id exists")
    return MadeAPIClient(**msgspec.structs.asdict(made), secret=secret)


@bp.get("/<api_client_id>")
@Operation("getApiClient", {200: Answer("The client.", APIClient)}, problems=("not-found",), scope="admin")
def show(api_client_id: str) -> flask.Response:
    """One API client, without its secret."""
    with service().database.connection() as conn:
        found = api_clients.get(conn, identifier(api_client_id))
    if found is None:
        raise Problem("not-found", "no such API client")
    return answer(found)


@bp.patch("/<api_client_id>")
@Operation(
    "changeApiClient",
    {200: Answer("The changed client.", APIClient, links=(Link("getApiClient", _ONE),))},
    takes=APIClientChanges,
    problems=("not-found", "conflict"),
    scope="admin",
)
def change(api_client_id: str) -> flask.Response:
    """Change an API client.

    It holds within two seconds. A revoked client stays as it is: 409.
    """
    wanted = identifier(api_client_id)
    changes = given(body(APIClientChanges, rules=RULES))
    with service().database.connection(actor=actor()) as conn:
        outcome = api_clients.update(conn, wanted, changes)
        found = api_clients.get(conn, wanted) if outcome == "updated" else None
    if outcome == "revoked":
        raise Problem("conflict", "the API client is revoked")
    if outcome == "name-taken":
        raise Problem("conflict", NAME_TAKEN)
    if found is None:
        raise Problem("not-found", "no such API client")
    return answer(found)


@bp.delete("/<api_client_id>")
@Operation("revokeApiClient", {204: Answer("It is revoked, or was.")}, problems=("not-found",), scope="admin")
def revoke(api_client_id: str) -> flask.Response:
    """Revoke an API client.

    204, and 204 again: within two seconds nobody calls with its secret. It stays in the list, and its name is free.
    """
    take_back(identifier(api_client_id))
    return no_content()


def take_back(wanted: UUID) -> None:
    """Revoke this client. Problem `not-found`."""
    with service().database.connection(actor=actor()) as conn:
        outcome = api_clients.revoke(conn, wanted)
    if outcome == "not-found":
        raise Problem("not-found", "no such API client")

"""The audit trail: who changed what, from where and when."""

from typing import Annotated
from uuid import UUID

import flask
import msgspec

from streamorch.blueprints import (
    Cursor,
    Limit,
    When,
    Word,
    after,
    answer,
    first,
    one_page,
    query,
    require_api_caller,
    service,
)
from streamorch.contract import Answer, Operation
from streamorch.repositories import audit

bp = flask.Blueprint("audit", __name__, url_prefix="/audit")
bp.before_request(first(require_api_caller))


class WhichChanges(msgspec.Struct, frozen=True):
    """The query of GET /audit."""

    who: (
        Annotated[Word, msgspec.Meta(description="The credential, like `API_SECRET` or `client:Watch page`.")] | None
    ) = None
    address: Word | None = None
    request_id: Word | None = None
    action: audit.Action | None = None
    kind: audit.Kind | None = None
    subject_id: Annotated[UUID, msgspec.Meta(description="What was changed.")] | None = None
    since: Annotated[When, msgspec.Meta(description="Changed then or later.")] | None = None
    until: Annotated[When, msgspec.Meta(description="Changed before.")] | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class ChangePage(msgspec.Struct, frozen=True):
    """Changes, newest first; `next_cursor` is null on the last page."""

    changes: list[audit.Change]
    count: int
    next_cursor: str | None


_FILTERS = ("who", "address", "request_id", "action", "kind", "subject_id", "since", "until")


@bp.get("")
@Operation("listChanges", {200: Answer("The page.", ChangePage)}, asks=WhichChanges, scope="admin")
def index() -> flask.Response:
    """Who changed what, newest first.

    Every change of a broadcaster, a stream key or an API client, and each stop and edit of a stream; never the value of
    a key or a secret.
    """
    asked = query(WhichChanges)
    filters = {name: getattr(asked, name) for name in _FILTERS}
    last = after(asked.cursor, filters)
    with service().database.connection() as conn:
        found = audit.page(conn, filters=filters, limit=asked.limit + 1, after=last)
    items, cursor = one_page(found, asked.limit, filters, lambda item: (item.changed_at, item.id))
    return answer(ChangePage(items, len(items), cursor))

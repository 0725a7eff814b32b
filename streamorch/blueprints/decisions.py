"""Decisions: why was this encoder refused, and when was it let in?"""

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
    invalid,
    one_page,
    query,
    require_api_caller,
    service,
)
from streamorch.contract import Answer, Operation
from streamorch.problems import TABLE
from streamorch.repositories import decisions

bp = flask.Blueprint("decisions", __name__, url_prefix="/decisions")
bp.before_request(first(require_api_caller))

_OUTCOMES = (decisions.GRANTED, decisions.REFUSED, *TABLE)


class WhichDecisions(msgspec.Struct, frozen=True):
    """The query of GET /decisions."""

    outcome: (
        Annotated[
            Word,
            msgspec.Meta(
                description="`claimed`, `refused` for all that were, or a problem.",
                extra_json_schema={"enum": list(_OUTCOMES)},
            ),
        ]
        | None
    ) = None
    path: Word | None = None
    address: Annotated[Word, msgspec.Meta(description="That of the encoder.")] | None = None
    protocol: Word | None = None
    stream_key_id: UUID | None = None
    stream_id: Annotated[UUID, msgspec.Meta(description="Its claim, and those whom it was in the way of.")] | None = (
        None
    )
    connection_id: Word | None = None
    node: Word | None = None
    since: Annotated[When, msgspec.Meta(description="Decided then or later.")] | None = None
    until: Annotated[When, msgspec.Meta(description="Decided before.")] | None = None
    limit: Limit = 100
    cursor: Cursor | None = None


class DecisionPage(msgspec.Struct, frozen=True):
    """Decisions, newest first; `next_cursor` is null on the last page."""

    decisions: list[decisions.Decision]
    count: int
    next_cursor: str | None


_FILTERS = ("outcome", "path", "protocol", "stream_key_id", "stream_id", "connection_id", "node", "since", "until")


@bp.get("")
@Operation("listDecisions", {200: Answer("The page.", DecisionPage)}, asks=WhichDecisions)
def index() -> flask.Response:
    """A page of decisions, newest first.

    Those of the last `DECISION_DAYS`; a refusal is there within a second. The first try of RTSP and WHIP clients, which
    has no key, is none.
    """
    asked = query(WhichDecisions)
    if asked.outcome is not None and asked.outcome not in _OUTCOMES:
        raise invalid("outcome", f"must be one of {', '.join(_OUTCOMES)}")
    filters = {name: getattr(asked, name) for name in _FILTERS} | {"remote_address": asked.address}
    last = after(asked.cursor, filters)
    days = service().settings.decision_days
    with service().database.connection() as conn:
        found = decisions.page(conn, filters=filters, days=days, limit=asked.limit + 1, after=last)
    items, cursor = one_page(found, asked.limit, filters, lambda item: (item.decided_at, item.id))
    return answer(DecisionPage(items, len(items), cursor))

"""Refusals: who was not let in and why, as it happens, so that a caller can be helped on the phone."""

import hashlib
from typing import Any, NamedTuple
from uuid import UUID

import flask
import msgspec
from markupsafe import Markup

from streamorch import problems
from streamorch.blueprints import Cursor, Word, after, invalid, one_page, query, service
from streamorch.blueprints.console import data, lists, page, refused, room, stream_url
from streamorch.contract import aside
from streamorch.repositories import Connection, broadcasters, decisions, stream_keys, streams
from streamorch.repositories.decisions import GRANTED, REFUSED, Decision
from streamorch.repositories.stream_keys import StreamKey

bp = room("refusals")

_PAGE = 50
_EVERYTHING = "all"
_LINK = Markup('<a href="{}">{}</a>')


class WhichDecisions(msgspec.Struct, frozen=True):
    """The query of the list, and of what is new in it."""

    outcome: Word = REFUSED
    path: Word | None = None
    address: Word | None = None
    stream_key_id: UUID | None = None
    cursor: Cursor | None = None

    def filters(self) -> dict[str, Any]:
        """As the repository has them; Problem `invalid-request` of an outcome that there is not."""
        if self.outcome not in (_EVERYTHING, GRANTED, REFUSED, *problems.TABLE):
            raise invalid("outcome", "is no reason that there is")
        return {
            "outcome": None if self.outcome == _EVERYTHING else self.outcome,
            "path": self.path and self.path.strip(),
            "remote_address": self.address and self.address.strip(),
            "stream_key_id": self.stream_key_id,
        }


class Row(NamedTuple):
    """A decision, and what a person wants to know of it.

    `places` are those of what is to do; `rival` is the path of the stream in the way, if known.
    """

    decision: Decision
    why: refused.Why
    to_do: refused.ToDo | None
    places: dict[str, Markup | str]
    key: StreamKey | None
    owner: str | None
    rival: str | None


@bp.get("/refusals")
@aside
def index() -> flask.Response:
    """A page of decisions, newest first."""
    wanted = query(WhichDecisions)
    filters = wanted.filters()
    last = after(wanted.cursor, filters)
    with service().database.connection() as conn:
        found = _page(conn, filters, last)
        shown, cursor = one_page(found, _PAGE, filters, lambda decision: (decision.decided_at, decision.id))
        rows = _rows(conn, shown)
        choices = lists.key_choices(conn, broadcaster_id=None, chosen=wanted.stream_key_id)
    given = lists.filters_of_page(WhichDecisions)
    return page(
        "refusals.html",
        rows=rows,
        cursor=cursor,
        wanted=wanted,
        is_filtered=bool(given),
        keys=choices,
        reasons={slug: problems.TABLE[slug].title for slug in refused.REASONS},
        news=flask.url_for(".news", **given) if last is None else None,
        days=service().settings.decision_days,
    )


@bp.get("/refusals/news")
@aside
def news() -> flask.Response:
    """The first page for the script of an open one: its rows as HTML, or 304."""
    filters = query(WhichDecisions).filters()
    with service().database.connection() as conn:
        # Not what came after the newest that the page has: while the database was away, older ones waited.
        shown = _page(conn, filters, None)[:_PAGE]
        told = "".join(f"{decision.id} {decision.left_out}\n" for decision in shown)
        tag = hashlib.sha256(told.encode()).hexdigest()[:32]
        if flask.request.if_none_match.contains_weak(tag):
            made = flask.Response(status=304)
        else:
            rows = _rows(conn, shown)
            html = flask.render_template("console/refusal_rows.html", rows=rows, stream_url=stream_url)
            made = data({"rows": html})
    made.set_etag(tag, weak=True)
    return made


def _page(conn: Connection, filters: dict[str, Any], last: tuple[str, str] | None) -> list[Decision]:
    days = service().settings.decision_days
    return decisions.page(conn, filters=filters, days=days, limit=_PAGE + 1, after=last)


def _rows(conn: Connection, shown: list[Decision]) -> list[Row]:
    key_ids = {decision.stream_key_id for decision in shown if decision.stream_key_id}
    rival_ids = {decision.rival_id for decision in shown if decision.rival_id}
    keys = {key.id: key for key in stream_keys.several(conn, key_ids)} if key_ids else {}
    names = broadcasters.names(conn, {key.broadcaster_id for key in keys.values()}) if keys else {}
    rivals = {stream.id: stream.path for stream in streams.several(conn, rival_ids)} if rival_ids else {}
    rows = []
    for decision in shown:
        key = keys.get(decision.stream_key_id) if decision.stream_key_id else None
        rival = rivals.get(decision.rival_id) if decision.rival_id else None
        places = _places(decision, key, rival)
        owner = names.get(key.broadcaster_id) if key else None
        rows.append(Row(decision, refused.why(decision, key), refused.to_do(decision, key), places, key, owner, rival))
    return rows


def _places(decision: Decision, key: StreamKey | None, rival: str | None) -> dict[str, Markup | str]:
    """The places in a text of TO_DO: what each is called, as a link where it is known which page that is."""
    url, path, address = flask.url_for, decision.path, decision.remote_address
    owner_id = key and key.broadcaster_id
    called = {
        "keys": ("keys", url("console_keys.index")),
        "new_key": ("new key", url("console_keys.new", broadcaster_id=owner_id)),
        "key": ("the page of the key", key and url("console_keys.show", stream_key_id=key.id)),
        "broadcaster": (
            "the page of the broadcaster",
            key and url("console_broadcasters.show", broadcaster_id=owner_id),
        ),
        "rival": ("the stream in the way", stream_url(decision.rival_id) if rival and decision.rival_id else None),
        "path": ("what is live on the path", path and url("console_history.index", path=path, status="active")),
        "address": ("the refusals of this address", address and url(".index", address=address)),
        "system": ("System", url("console_system.index")),
    }
    return {place: _LINK.format(where, name) if where else name for place, (name, where) in called.items()}

"""The audit trail: every change of broadcasters, keys, streams and API clients, written in its own transaction."""

from typing import Any, Literal
from uuid import UUID

import msgspec
from psycopg.rows import class_row
from psycopg.types.numeric import Int4, Int8

from streamorch.repositories import Connection, Members, Moment, only

Kind = Literal["broadcaster", "stream_key", "stream", "api_client"]
Action = Literal["create", "update", "delete", "revoke", "rotate", "stop"]


class Change(msgspec.Struct, frozen=True):
    """A change of a broadcaster, a stream key, a stream or an API client: what differs, `before` and `after`.

    `who` is the credential: `API_SECRET`, `client:` and the name of an API client, `CLI` for a command, `database` for
    what went past the service.
    """

    id: UUID
    changed_at: Moment
    who: str
    address: str | None
    request_id: str | None
    action: Action
    kind: Kind
    subject_id: UUID
    before: Members
    after: Members


_SHOWN = """
    SELECT a.id, rfc3339_v1(a.changed_at) AS changed_at, a.who, a.address, a.request_id, a.action, a.kind, a.subject_id,
           a.before, a.after
    FROM audit AS a
    WHERE true
"""
_FILTERS = {
    "who": " AND a.who = %(who)s",
    "address": " AND a.address = %(address)s",
    "request_id": " AND a.request_id = %(request_id)s",
    "action": " AND a.action = %(action)s",
    "kind": " AND a.kind = %(kind)s",
    "subject_id": " AND a.subject_id = %(subject_id)s",
    "since": " AND a.changed_at >= %(since)s",
    "until": " AND a.changed_at < %(until)s",
}
_AFTER = " AND (a.changed_at, a.id) < (%(after_time)s::timestamptz, %(after_id)s::uuid)"


def page(conn: Connection, *, filters: dict[str, Any], limit: int, after: tuple[str, str] | None) -> list[Change]:
    """At most `limit` changes, newest first, after (changed_at, id) of the one before."""
    after_time, after_id = after or (None, None)
    query = (
        "/* audit.page */"
        + _SHOWN
        + "".join(text for name, text in _FILTERS.items() if filters.get(name) is not None)
        + (_AFTER if after else "")
        + " ORDER BY a.changed_at DESC, a.id DESC LIMIT %(limit)s"
    )
    with conn.cursor(row_factory=class_row(Change)) as cursor:
        return cursor.execute(
            query.encode(), {**filters, "limit": Int8(limit), "after_time": after_time, "after_id": after_id}
        ).fetchall()


def trim(conn: Connection, epoch: int, *, days: int, batch: int) -> int | None:
    """Delete what is too old among the `batch` oldest; how many that were, None without the lead."""
    trimmed: int | None = only(
        conn,
        "/* audit.trim */ SELECT trim_audit_v1(%(epoch)s::bigint, %(days)s, %(batch)s)",
        {"epoch": epoch, "days": Int4(days), "batch": Int8(batch)},
    )[0]
    return trimmed

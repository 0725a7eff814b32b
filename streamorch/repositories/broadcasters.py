"""Broadcasters: who may publish."""

from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int8

from streamorch.repositories import Connection, Moment, Object, only


class Broadcaster(msgspec.Struct, frozen=True):
    """A broadcaster as the API shows it."""

    id: UUID
    display_name: str
    metadata: Object
    disabled: bool
    created_at: Moment
    updated_at: Moment


class Deleted(NamedTuple):
    """What is left of a broadcaster that was deleted, beside its history."""

    display_name: str
    deleted_at: str


_SHOWN = """
    SELECT
        b.id,
        b.display_name,
        b.metadata,
        b.disabled_at IS NOT NULL AS disabled,
        rfc3339_v1(b.created_at) AS created_at,
        rfc3339_v1(b.updated_at) AS updated_at
    FROM broadcasters AS b
    WHERE b.deleted_at IS NULL
"""
_GET = "/* broadcasters.get */" + _SHOWN + "AND b.id = %(id)s"
_ORDER = "ORDER BY b.created_at DESC, b.id DESC LIMIT %(limit)s"
_FIRST = "/* broadcasters.page */" + _SHOWN + _ORDER
_NEXT = (
    "/* broadcasters.page.next */"
    + _SHOWN
    + "AND (b.created_at, b.id) < (%(after_time)s::timestamptz, %(after_id)s::uuid)"
    + _ORDER
)


def get(conn: Connection, broadcaster_id: UUID) -> Broadcaster | None:
    """The broadcaster, or None when there is none or it was deleted."""
    with conn.cursor(row_factory=class_row(Broadcaster)) as cursor:
        return cursor.execute(_GET, {"id": broadcaster_id}).fetchone()


def page(conn: Connection, *, limit: int, after: tuple[str, str] | None) -> list[Broadcaster]:
    """At most `limit` broadcasters, newest first, after (created_at, id) of the one before."""
    with conn.cursor(row_factory=class_row(Broadcaster)) as cursor:
        after_time, after_id = after or (None, None)
        cursor.execute(
            _NEXT if after else _FIRST, {"limit": Int8(limit), "after_time": after_time, "after_id": after_id}
        )
        return cursor.fetchall()


def names(conn: Connection, broadcaster_ids: Iterable[UUID]) -> dict[UUID, str]:
    """What those of these broadcasters that there are, or were, are called."""
    rows = conn.execute(
        "/* broadcasters.names */ SELECT id, display_name FROM broadcasters WHERE id = ANY (lines_v1(%(ids)s)::uuid[])",
        {"ids": "\n".join(map(str, broadcaster_ids))},
    )
    return dict(rows.fetchall())


def deleted(conn: Connection, broadcaster_ids: Iterable[UUID]) -> dict[UUID, Deleted]:
    """Those of these broadcasters that were deleted."""
    rows = conn.execute(
        """/* broadcasters.deleted */
        SELECT b.id, b.display_name, rfc3339_v1(b.deleted_at)
        FROM broadcasters AS b
        WHERE b.id = ANY (lines_v1(%(ids)s)::uuid[]) AND b.deleted_at IS NOT NULL
        """,
        {"ids": "\n".join(map(str, broadcaster_ids))},
    )
    return {broadcaster_id: Deleted(*told) for broadcaster_id, *told in rows}


def create(
    conn: Connection, *, broadcaster_id: UUID, display_name: str, metadata: dict[str, Any], disabled: bool
) -> bool:
    """Make a broadcaster; False when the id is taken."""
    done = conn.execute(
        """/* broadcasters.create */
        INSERT INTO broadcasters (id, display_name, metadata, disabled_at)
        SELECT %(id)s, %(display_name)s, %(metadata)s, CASE WHEN %(disabled)s THEN clock_timestamp() END
        FROM acting_v1(%(actor)s)
        ON CONFLICT DO NOTHING
        """,
        {
            "actor": conn.acting(),
            "id": broadcaster_id,
            "display_name": display_name,
            "metadata": Jsonb(metadata),
            "disabled": disabled,
        },
    )
    return done.rowcount == 1


def update(conn: Connection, broadcaster_id: UUID, changes: dict[str, Any]) -> str:
    """Replace the given members; 'updated' or 'not-found'. Disabling ends every open stream of the broadcaster."""
    return str(
        only(
            conn,
            "/* broadcasters.update */ SELECT update_broadcaster_v1(%(id)s, %(changes)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": broadcaster_id, "changes": Jsonb(changes)},
        )[0]
    )


def delete(conn: Connection, broadcaster_id: UUID) -> str:
    """Revoke its keys, end its streams, keep its history; 'deleted', 'already' or 'not-found'."""
    return str(
        only(
            conn,
            "/* broadcasters.delete */ SELECT delete_broadcaster_v1(%(id)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": broadcaster_id},
        )[0]
    )

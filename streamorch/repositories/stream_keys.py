"""Stream keys: the credentials that let an encoder publish. Their values are never stored."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int4, Int8

from streamorch.repositories import Connection, Moment, Object, only

Takeover = Literal["stalled", "always", "never"]
Status = Literal["active", "revoked", "expired"]

# How long the value before a rotation may work on.
OVERLAP_SECONDS = 24 * 3600
LONGEST_OVERLAP_SECONDS = 30 * 24 * 3600


class StreamKey(msgspec.Struct, frozen=True):
    """A key as the API shows it, without its value; `hint` is the last four characters of that.

    `previous_hint` are those of the value before the last rotation, which works until `previous_works_until`, null when
    it does no more.
    """

    id: UUID
    broadcaster_id: UUID
    label: str | None
    path: str | None
    takeover: Takeover
    status: Status
    disabled: bool
    hold_until: Moment | None
    in_use: bool
    hint: str
    previous_hint: str | None
    previous_works_until: Moment | None
    rotated_at: Moment | None
    metadata: Object
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    last_used_at: Moment | None


_SHOWN = """
    SELECT
        k.id,
        k.broadcaster_id,
        k.label,
        k.path,
        k.takeover,
        CASE
            WHEN k.revoked_at IS NOT NULL THEN 'revoked'
            WHEN k.expires_at <= clock_timestamp() THEN 'expired'
            ELSE 'active'
        END AS status,
        k.disabled_at IS NOT NULL AS disabled,
        CASE WHEN k.hold_until > clock_timestamp() THEN rfc3339_v1(k.hold_until) END AS hold_until,
        EXISTS (
            SELECT 1 FROM streams AS s
            WHERE s.stream_key_id = k.id AND s.ended_at IS NULL
              AND (s.started_at IS NOT NULL OR s.lease_expires_at > clock_timestamp())
        ) AS in_use,
        k.hint,
        k.previous_hint,
        CASE
            WHEN k.previous_works_until > clock_timestamp() THEN rfc3339_v1(k.previous_works_until)
        END AS previous_works_until,
        rfc3339_v1(k.rotated_at) AS rotated_at,
        k.metadata,
        rfc3339_v1(k.created_at) AS created_at,
        rfc3339_v1(k.expires_at) AS expires_at,
        rfc3339_v1(k.revoked_at) AS revoked_at,
        rfc3339_v1(greatest(
            k.last_used_at,
            (SELECT s.claimed_at FROM streams AS s WHERE s.stream_key_id = k.id ORDER BY s.claimed_at DESC LIMIT 1)
        )) AS last_used_at
    FROM stream_keys AS k
    JOIN broadcasters AS b ON b.id = k.broadcaster_id
    WHERE b.deleted_at IS NULL
"""
_GET = "/* stream_keys.get */" + _SHOWN + "AND k.id = %(id)s"
_SEVERAL = "/* stream_keys.several */" + _SHOWN + "AND k.id = ANY (lines_v1(%(ids)s)::uuid[])"
_FILTERS = {
    "broadcaster_id": " AND k.broadcaster_id = %(broadcaster_id)s",
    "after_id": " AND (k.created_at, k.id) < (%(after_time)s::timestamptz, %(after_id)s::uuid)",
}
_STATUSES: dict[Status, str] = {
    "active": " AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())",
    "revoked": " AND k.revoked_at IS NOT NULL",
    "expired": " AND k.revoked_at IS NULL AND k.expires_at <= clock_timestamp()",
}


def get(conn: Connection, stream_key_id: UUID) -> StreamKey | None:
    """The key, or None when there is none or its broadcaster was deleted."""
    with conn.cursor(row_factory=class_row(StreamKey)) as cursor:
        return cursor.execute(_GET, {"id": stream_key_id}).fetchone()


def several(conn: Connection, stream_key_ids: Iterable[UUID]) -> list[StreamKey]:
    """Those of these keys that there are, in no order."""
    with conn.cursor(row_factory=class_row(StreamKey)) as cursor:
        return cursor.execute(_SEVERAL, {"ids": "\n".join(map(str, stream_key_ids))}).fetchall()


def page(
    conn: Connection, *, broadcaster_id: UUID | None, status: Status | None, limit: int, after: tuple[str, str] | None
) -> list[StreamKey]:
    """At most `limit` keys, newest first, after (created_at, id) of the one before."""
    after_time, after_id = after or (None, None)
    given = {"broadcaster_id": broadcaster_id, "after_time": after_time, "after_id": after_id, "limit": Int8(limit)}
    wanted = "".join(text for name, text in _FILTERS.items() if given[name] is not None)
    query = (
        "/* stream_keys.page */"
        + _SHOWN
        + wanted
        + (_STATUSES[status] if status else "")
        + " ORDER BY k.created_at DESC, k.id DESC LIMIT %(limit)s"
    )
    with conn.cursor(row_factory=class_row(StreamKey)) as cursor:
        return cursor.execute(query.encode(), given).fetchall()


def create(
    conn: Connection,
    *,
    stream_key_id: UUID,
    broadcaster_id: UUID,
    key_hash: bytes,
    hint: str,
    label: str | None,
    path: str | None,
    takeover: str,
    expires_at: datetime | None,
    disabled: bool,
    metadata: dict[str, Any],
) -> str:
    """Store a key; 'created', 'unknown-broadcaster', 'conflict' (the id is taken) or 'path-in-use'."""
    return str(
        only(
            conn,
            """/* stream_keys.create */
        SELECT create_stream_key_v1(
            %(id)s, %(broadcaster_id)s, %(key_hash)s, %(hint)s, %(label)s, %(path)s,
            %(takeover)s, %(expires_at)s, %(disabled)s, %(metadata)s)
        FROM acting_v1(%(actor)s)
        """,
            {
                "actor": conn.acting(),
                "id": stream_key_id,
                "broadcaster_id": broadcaster_id,
                "key_hash": key_hash,
                "hint": hint,
                "label": label,
                "path": path,
                "takeover": takeover,
                # As text, which has the same parameter type as nothing: one prepared statement for both.
                "expires_at": expires_at and expires_at.isoformat(),
                "disabled": disabled,
                "metadata": Jsonb(metadata),
            },
        )[0]
    )


def rotate(conn: Connection, stream_key_id: UUID, *, key_hash: bytes, hint: str, overlap_seconds: int) -> str:
    """Give the key another value, and let the one before work on for so long; 'rotated', 'not-found' or 'revoked'.

    What was replaced before that is out at once. No stream ends.
    """
    return str(
        only(
            conn,
            """/* stream_keys.rotate */
            SELECT rotate_stream_key_v1(%(id)s, %(key_hash)s, %(hint)s, %(overlap_seconds)s)
            FROM acting_v1(%(actor)s)
            """,
            {
                "actor": conn.acting(),
                "id": stream_key_id,
                "key_hash": key_hash,
                "hint": hint,
                "overlap_seconds": Int4(overlap_seconds),
            },
        )[0]
    )


def update(conn: Connection, stream_key_id: UUID, changes: dict[str, Any]) -> str:
    """Replace the given members; 'updated', 'not-found', 'revoked', 'path-in-use' or 'stream-key-in-use'.

    Of `previous_works_until` also 'overlap-over' and 'overlap-too-long'. Disabling the key, or moving its expiry into
    the past, ends its open streams.
    """
    return str(
        only(
            conn,
            "/* stream_keys.update */ SELECT update_stream_key_v1(%(id)s, %(changes)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": stream_key_id, "changes": Jsonb(changes)},
        )[0]
    )


def hold(conn: Connection, stream_key_id: UUID, *, seconds: int) -> str:
    """Refuse the key's publishes for so long, by the clock of the database; outcomes as of `update`."""
    return str(
        only(
            conn,
            """/* stream_keys.hold */
            SELECT update_stream_key_v1(
                %(id)s,
                jsonb_build_object('hold_until', clock_timestamp() + make_interval(secs => %(seconds)s)))
            FROM acting_v1(%(actor)s)
            """,
            {"actor": conn.acting(), "id": stream_key_id, "seconds": Int8(seconds)},
        )[0]
    )


def revoke(conn: Connection, stream_key_id: UUID) -> str:
    """Take the key back for good and end its open streams; 'revoked', 'already' or 'not-found'."""
    return str(
        only(
            conn,
            "/* stream_keys.revoke */ SELECT revoke_stream_key_v1(%(id)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": stream_key_id},
        )[0]
    )

"""What became of one stream, in order: from its own row, the audit trail and the decisions about it."""

from uuid import UUID

import msgspec
from psycopg.rows import class_row
from psycopg.types.numeric import Int8

from streamorch.repositories import Connection, Members, Moment


class Event(msgspec.Struct, frozen=True):
    """Something that befell a stream.

    `event` is claimed, live, interrupted, ended, replaced, kick, kicked, refused (another question of its connection,
    or somebody whom it was in the way of), or the kind and action of a change, like `stream_key.revoke`. `reason` is
    an end_reason or a problem, `stream_id` the stream that it replaces or that replaced it, `who` changed something.
    """

    id: UUID
    at: Moment
    event: str
    reason: str | None
    who: str | None
    address: str | None
    stream_id: UUID | None
    connection_id: str | None
    left_out: int | None
    before: Members | None
    after: Members | None


_EVENTS = """
    WITH told AS (
        SELECT s.id, s.stream_key_id, k.broadcaster_id, s.node, s.auth_id, s.source_id, s.remote_address, s.claimed_at,
               s.started_at, s.interrupted_at, s.ended_at, s.end_reason, s.replaces, s.replaced_by,
               n.started_at AS followed_at, s.kick_requested_at, s.kicked_at
        FROM streams AS s
        JOIN stream_keys AS k ON k.id = s.stream_key_id
        LEFT JOIN streams AS n ON n.id = s.replaced_by
        WHERE s.id = %(id)s
    ), about AS (
        SELECT d.id, d.decided_at, d.outcome, d.remote_address, d.connection_id, d.left_out
        FROM told AS s
        JOIN decisions AS d ON d.connection_id = s.auth_id AND d.node = s.node
        UNION
        SELECT d.id, d.decided_at, d.outcome, d.remote_address, d.connection_id, d.left_out
        FROM told AS s
        JOIN decisions AS d ON d.connection_id = s.source_id AND d.node = s.node
        UNION
        SELECT d.id, d.decided_at, d.outcome, d.remote_address, d.connection_id, d.left_out
        FROM told AS s
        JOIN decisions AS d ON d.rival_id = s.id
    ), events AS (
        -- What happened in one moment stands in this order.
        SELECT ('00000000-0000-0000-0000-00000000000' || o.rank)::uuid AS id, o.at, o.event, o.reason, NULL AS who,
               o.address, o.stream_id, o.connection_id, NULL::bigint AS left_out, NULL::jsonb AS before,
               NULL::jsonb AS after
        FROM told AS s
        CROSS JOIN LATERAL (VALUES
            (1, s.claimed_at, 'claimed', NULL, s.remote_address, s.replaces, s.auth_id),
            (2, s.started_at, 'live', NULL, NULL, NULL, s.source_id),
            (3, s.interrupted_at, 'interrupted', NULL, NULL, NULL, NULL),
            (4, s.ended_at, 'ended', s.end_reason, NULL, NULL, NULL),
            (5, s.followed_at, 'replaced', NULL, NULL, s.replaced_by, NULL),
            (6, s.kick_requested_at, 'kick', NULL, NULL, NULL, NULL),
            (7, s.kicked_at, 'kicked', NULL, NULL, NULL, NULL)
        ) AS o (rank, at, event, reason, address, stream_id, connection_id)
        WHERE o.at IS NOT NULL
        UNION ALL
        SELECT a.id, a.changed_at, a.kind || '.' || a.action, NULL, a.who, a.address, NULL, NULL, NULL, a.before,
               a.after
        FROM told AS s
        JOIN audit AS a ON a.subject_id IN (s.id, s.stream_key_id, s.broadcaster_id)
        WHERE a.kind = 'stream'
           OR a.changed_at >= s.claimed_at AND a.changed_at <= coalesce(s.ended_at, 'infinity')
        UNION ALL
        SELECT d.id, d.decided_at, 'refused', d.outcome, NULL, d.remote_address, NULL, d.connection_id, d.left_out,
               NULL, NULL
        FROM about AS d
    )
    SELECT e.id, rfc3339_v1(e.at) AS at, e.event, e.reason, e.who, e.address, e.stream_id, e.connection_id, e.left_out,
           e.before, e.after
    FROM events AS e
    WHERE (e.at, e.id) > (coalesce(%(after_time)s::timestamptz, '-infinity'),
                          coalesce(%(after_id)s::uuid, '00000000-0000-0000-0000-000000000000'))
    ORDER BY e.at, e.id
    LIMIT %(limit)s
"""


def page(conn: Connection, stream_id: UUID, *, limit: int, after: tuple[str, str] | None) -> list[Event]:
    """At most `limit` events of a stream, oldest first, after (at, id) of the one before; none of one that is not."""
    after_time, after_id = after or (None, None)
    with conn.cursor(row_factory=class_row(Event)) as cursor:
        return cursor.execute(
            "/* timeline.page */" + _EVENTS,
            {"id": stream_id, "limit": Int8(limit), "after_time": after_time, "after_id": after_id},
        ).fetchall()

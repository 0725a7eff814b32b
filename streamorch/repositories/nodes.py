"""Nodes: what is known of each media server."""

import msgspec
from psycopg.rows import class_row

from streamorch.repositories import Connection


class Node(msgspec.Struct, frozen=True):
    """A media server as the API shows it; times are RFC 3339 text."""

    name: str
    version: str | None
    started_at: str | None
    api: str
    last_tick_at: str | None
    last_hook_at: str | None
    active: int
    unclaimed: msgspec.Raw
    is_deaf: bool


_SHOWN = """/* nodes.all */
    SELECT
        n.node AS name,
        n.version,
        rfc3339_v1(n.started_at) AS started_at,
        CASE WHEN n.api_seen_at IS NULL AND n.api_state <> 'unauthorized' THEN 'never' ELSE n.api_state END AS api,
        rfc3339_v1(n.last_tick_at) AS last_tick_at,
        rfc3339_v1(n.last_hook_at) AS last_hook_at,
        (
            SELECT count(*) FROM streams AS s
            WHERE s.node = n.node AND s.ended_at IS NULL AND s.started_at IS NOT NULL
        ) AS active,
        n.unclaimed,
        n.api_state <> 'ok' AND coalesce(n.last_hook_at < c.first_at, c.first_at IS NOT NULL)
        AND c.first_at < clock_timestamp() - interval '60 seconds' AS is_deaf
    FROM (
        SELECT m.node, m.version, m.started_at, m.api_seen_at, m.api_state, m.last_tick_at, m.last_hook_at, m.unclaimed
        FROM nodes AS m
        UNION ALL
        SELECT %(default)s, NULL, NULL, NULL, 'never', NULL, NULL, '[]'::jsonb
        WHERE NOT EXISTS (SELECT 1 FROM nodes AS m WHERE m.node = %(default)s)
    ) AS n
    CROSS JOIN LATERAL (
        SELECT min(s.claimed_at) AS first_at
        FROM streams AS s
        WHERE s.node = n.node AND s.claimed_at > clock_timestamp() - interval '1 hour'
    ) AS c
    ORDER BY n.node
"""


def every(conn: Connection, *, default: str) -> list[Node]:
    """All nodes by name; `default` is one of them even when nothing was heard of it yet.

    `is_deaf`: it had claims a minute ago or longer, and neither a hook nor the Control API tells what became of them.
    """
    with conn.cursor(row_factory=class_row(Node)) as cursor:
        return cursor.execute(_SHOWN, {"default": default}).fetchall()


def heard(conn: Connection, node: str) -> None:
    """A hook of this node came."""
    conn.execute(
        """/* nodes.heard */
        INSERT INTO nodes AS n (node, last_hook_at) VALUES (%(node)s, clock_timestamp())
        ON CONFLICT (node) DO UPDATE SET last_hook_at = excluded.last_hook_at
        """,
        {"node": node},
    )

"""Nodes: what is known of each media server."""

from typing import Literal

import msgspec
from psycopg.rows import class_row

from streamorch.repositories import Connection, Moment

APIState = Literal["ok", "refused", "silent", "unauthorized", "never"]


class Node(msgspec.Struct, frozen=True):
    """A media server: what is known of it."""

    name: str
    version: str | None
    started_at: Moment | None
    api: APIState
    last_tick_at: Moment | None
    last_hook_at: Moment | None
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
        n.api_state <> 'ok' AND c.unheard > 0 AS is_deaf
    FROM (
        SELECT m.node, m.version, m.started_at, m.api_seen_at, m.api_state, m.last_tick_at, m.last_hook_at, m.unclaimed
        FROM nodes AS m
        UNION ALL
        SELECT %(default)s, NULL, NULL, NULL, 'never', NULL, NULL, '[]'::jsonb
        WHERE NOT EXISTS (SELECT 1 FROM nodes AS m WHERE m.node = %(default)s)
    ) AS n
    -- statement_timestamp() and not the clock itself, which no index could be asked with.
    CROSS JOIN LATERAL (
        SELECT count(*) AS unheard
        FROM streams AS s
        WHERE s.node = n.node AND s.claimed_at > statement_timestamp() - interval '1 hour'
          AND s.claimed_at < statement_timestamp() - interval '60 seconds'
          AND (n.last_hook_at IS NULL OR s.claimed_at > n.last_hook_at)
    ) AS c
    ORDER BY n.node
"""


def every(conn: Connection, *, default: str) -> list[Node]:
    """All nodes by name; `default` is one of them even when nothing was heard of it yet.

    `is_deaf`: a claim came a minute ago or longer, no hook since, and its Control API tells nothing.
    """
    with conn.cursor(row_factory=class_row(Node)) as cursor:
        return cursor.execute(_SHOWN, {"default": default}).fetchall()


def heard(conn: Connection, node: str) -> None:
    """A hook of this node came. (Who holds the row of the node is not waited for: the next hook will do.)"""
    conn.execute(
        """/* nodes.heard */
        WITH changed AS (
            UPDATE nodes SET last_hook_at = clock_timestamp()
            WHERE node = (SELECT n.node FROM nodes AS n WHERE n.node = %(node)s FOR UPDATE SKIP LOCKED)
        )
        INSERT INTO nodes (node, last_hook_at)
        SELECT %(node)s, clock_timestamp() WHERE NOT EXISTS (SELECT 1 FROM nodes AS n WHERE n.node = %(node)s)
        ON CONFLICT DO NOTHING
        """,
        {"node": node},
    )


def api_state(conn: Connection, node: str) -> APIState:
    """What GET /nodes says of the Control API of a node, 'never' of one that was not heard of; one row read."""
    row = conn.execute(
        """/* nodes.api_state */
        SELECT CASE WHEN n.api_seen_at IS NULL AND n.api_state <> 'unauthorized' THEN 'never' ELSE n.api_state END
        FROM nodes AS n
        WHERE n.node = %(node)s
        """,
        {"node": node},
    ).fetchone()
    state: APIState = row[0] if row else "never"
    return state

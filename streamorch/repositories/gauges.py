"""What is open at this moment, as numbers for the metrics."""

from typing import NamedTuple

from psycopg.rows import class_row

from streamorch.repositories import Connection


class NodeState(NamedTuple):
    """A media server, by name, and what is open on it.

    `api` as GET /nodes has it. Ages in seconds, None of what never came. `kicks`: connections still to be closed.
    """

    node: str
    api: str
    tick_age: float | None
    hook_age: float | None
    unclaimed: int
    pending: int
    active: int
    stalled: int
    viewers: int
    kicks: int


_READ = """/* gauges.read */
    SELECT
        n.node,
        CASE WHEN n.api_seen_at IS NULL AND n.api_state <> 'unauthorized' THEN 'never' ELSE n.api_state END AS api,
        extract(epoch FROM clock_timestamp() - n.last_tick_at)::float8 AS tick_age,
        extract(epoch FROM clock_timestamp() - n.last_hook_at)::float8 AS hook_age,
        jsonb_array_length(n.unclaimed) AS unclaimed,
        coalesce(o.pending, 0) AS pending,
        coalesce(o.active, 0) AS active,
        coalesce(o.stalled, 0) AS stalled,
        coalesce(o.viewers, 0) AS viewers,
        (
            SELECT count(*) FROM streams AS s
            WHERE s.node = n.node AND s.kick_requested_at IS NOT NULL AND s.kicked_at IS NULL
        ) AS kicks
    FROM (
        SELECT m.node, m.api_seen_at, m.api_state, m.last_tick_at, m.last_hook_at, m.unclaimed
        FROM nodes AS m
        UNION ALL
        SELECT %(default)s, NULL, 'never', NULL, NULL, '[]'::jsonb
        WHERE NOT EXISTS (SELECT 1 FROM nodes AS m WHERE m.node = %(default)s)
    ) AS n
    LEFT JOIN (
        SELECT
            s.node,
            count(*) FILTER (WHERE s.started_at IS NULL) AS pending,
            count(*) FILTER (WHERE s.started_at IS NOT NULL) AS active,
            count(*) FILTER (WHERE s.started_at IS NOT NULL AND t.media = 'stalled') AS stalled,
            sum(t.viewers) FILTER (WHERE s.started_at IS NOT NULL) AS viewers
        FROM streams AS s
        LEFT JOIN stream_stats AS t ON t.stream_id = s.id
        WHERE s.ended_at IS NULL
        GROUP BY s.node
    ) AS o ON o.node = n.node
    ORDER BY n.node
"""


def read(conn: Connection, *, default: str) -> list[NodeState]:
    """Every node by name; `default` is one of them even when nothing was heard of it yet."""
    with conn.cursor(row_factory=class_row(NodeState)) as cursor:
        return cursor.execute(_READ, {"default": default}).fetchall()

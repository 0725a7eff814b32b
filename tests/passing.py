"""Time that passes at once: never the machine's clock, only what is written down becomes older."""

import psycopg

from streamorch.repositories import Connection

TIMES = {
    "streams": (
        "claimed_at",
        "lease_expires_at",
        "started_at",
        "interrupted_at",
        "ended_at",
        "kick_requested_at",
        "kicked_at",
    ),
    "stream_stats": ("sampled_at", "moved_at"),
    "nodes": ("api_seen_at", "api_failing_since", "started_seen_at", "last_tick_at", "last_hook_at"),
    "stream_keys": ("expires_at", "hold_until", "previous_works_until"),
    "departures": ("departed_at",),
}


def pass_time(conn: Connection, seconds: float) -> None:
    """Make all that is written down so much older, but for the lease of the leader."""
    for table, columns in TIMES.items():
        changes = psycopg.sql.SQL(", ").join(
            psycopg.sql.SQL("{0} = {0} - make_interval(secs => %(seconds)s)").format(psycopg.sql.Identifier(column))
            for column in columns
        )
        statement = psycopg.sql.SQL("UPDATE {} SET {}").format(psycopg.sql.Identifier(table), changes)
        conn.execute(statement, {"seconds": seconds})

"""Diagnosis: what the database server says of itself."""

import msgspec
from psycopg.rows import class_row

from streamorch.repositories import Connection


class State(msgspec.Struct, frozen=True):
    """Connections are counted without the one that asks; `clock` is Unix time."""

    version: str
    is_standby: bool
    is_read_only: bool
    most_connections: int
    open_connections: int
    own_connections: int
    clock: float


def state(conn: Connection) -> State:
    """Of PostgreSQL 14 or newer. `most_connections` is what our role may have on our database."""
    with conn.cursor(row_factory=class_row(State)) as cursor:
        return cursor.execute(_STATE).fetchall()[0]


_STATE = """/* diagnosis.state */
    SELECT
        split_part(current_setting('server_version'), ' ', 1) AS version,
        pg_is_in_recovery() AS is_standby,
        current_setting('transaction_read_only')::boolean AS is_read_only,
        LEAST(
            current_setting('max_connections')::integer
            - current_setting('superuser_reserved_connections')::integer
            -- From PostgreSQL 16 on.
            - COALESCE(current_setting('reserved_connections', true)::integer, 0),
            NULLIF(r.rolconnlimit, -1),
            NULLIF(d.datconnlimit, -1)
        ) AS most_connections,
        a.open_connections::integer,
        a.own_connections::integer,
        extract(epoch FROM clock_timestamp())::double precision AS clock
    FROM pg_roles AS r, pg_database AS d, (
        SELECT
            count(*) AS open_connections,
            count(*) FILTER (
                WHERE datname = current_database() AND application_name LIKE 'streamorch%'
            ) AS own_connections
        FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    ) AS a
    WHERE r.rolname = current_user AND d.datname = current_database()
"""

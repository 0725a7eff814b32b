"""What happens to streams, for one who looks on: asked often, and cheap when nothing happens."""

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from psycopg.rows import class_row

from streamorch.repositories import Connection, only


class Pulse(NamedTuple):
    """Did anything happen? `version` is that of the live list; `has_claims`: there were some these last seconds.

    Claims are not in the live list, and one may be committed a little after another that is younger.
    """

    moment: str
    version: int
    has_claims: bool


class State(NamedTuple):
    """A stream as far as its events go; times are RFC 3339 text. `is_new`: claimed since the last look."""

    id: UUID
    is_new: bool
    claimed_at: str
    started_at: str | None
    interrupted_at: str | None
    ended_at: str | None
    end_reason: str | None
    media: str | None


_SHOWN = """
    SELECT
        s.id,
        s.claimed_at > %(since)s::timestamptz - interval '5 seconds' AS is_new,
        rfc3339_v1(s.claimed_at) AS claimed_at,
        rfc3339_v1(s.started_at) AS started_at,
        rfc3339_v1(s.interrupted_at) AS interrupted_at,
        rfc3339_v1(s.ended_at) AS ended_at,
        s.end_reason,
        CASE WHEN s.ended_at IS NULL AND s.started_at IS NOT NULL THEN t.media END AS media
    FROM streams AS s
    LEFT JOIN stream_stats AS t ON t.stream_id = s.id
"""


def pulse(conn: Connection) -> Pulse:
    """One row and one look into an index."""
    return Pulse(
        *only(
            conn,
            """/* tail.pulse */
            SELECT
                rfc3339_v1(clock_timestamp()),
                l.version,
                EXISTS (SELECT 1 FROM streams AS s WHERE s.claimed_at > statement_timestamp() - interval '5 seconds')
            FROM live_list AS l
            """,
        )
    )


def states(conn: Connection, *, since: str) -> list[State]:
    """Every open stream, and those that are new and have ended already; `since` is the moment of the last look."""
    query = (
        "/* tail.states */"
        + _SHOWN
        + "WHERE s.ended_at IS NULL UNION ALL"
        + _SHOWN
        + "WHERE s.ended_at IS NOT NULL AND s.claimed_at > %(since)s::timestamptz - interval '5 seconds'"
    )
    with conn.cursor(row_factory=class_row(State)) as cursor:
        return cursor.execute(query, {"since": since}).fetchall()


def states_of(conn: Connection, stream_ids: Iterable[UUID], *, since: str) -> list[State]:
    """The states of these streams."""
    query = "/* tail.states_of */" + _SHOWN + "WHERE s.id = ANY (lines_v1(%(ids)s)::uuid[])"
    with conn.cursor(row_factory=class_row(State)) as cursor:
        return cursor.execute(query, {"ids": "\n".join(map(str, stream_ids)), "since": since}).fetchall()

"""Decisions: whom POST /auth let in, told by the streams, and whom it refused, which has rows of its own."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int4, Int8

from streamorch.repositories import Connection, Moment, only


class Refusal(msgspec.Struct, frozen=True):
    """A refusal as it is written: `age` is how long ago it was, in seconds. Only `outcome` is always known."""

    outcome: str
    node: str | None = None
    action: str | None = None
    stream_key_id: UUID | None = None
    hint: str | None = None
    rival_id: UUID | None = None
    path: str | None = None
    protocol: str | None = None
    remote_address: str | None = None
    user_agent: str | None = None
    connection_id: str | None = None
    age: float = 0.0
    left_out: int = 0


class Decision(msgspec.Struct, frozen=True):
    """A decision of POST /auth: `claimed`, told by its stream, or the slug of the problem that it was refused for.

    `hint` are the last four characters of the key, `rival_id` is the stream that was in the way, and `left_out` says
    how many more of the same source have no entry of their own. `refused` is an entry for many sources together.
    """

    id: UUID
    decided_at: Moment
    node: str | None
    action: str | None
    outcome: str
    stream_key_id: UUID | None
    hint: str | None
    stream_id: UUID | None
    rival_id: UUID | None
    path: str | None
    protocol: str | None
    remote_address: str | None
    user_agent: str | None
    connection_id: str | None
    left_out: int


GRANTED = "claimed"
REFUSED = "refused"

_REFUSALS = """
    SELECT d.id, d.decided_at, d.node, d.action, d.outcome, d.stream_key_id, d.hint, NULL::uuid AS stream_id,
           d.rival_id, d.path, d.protocol, d.remote_address, d.user_agent, d.connection_id, d.left_out
    FROM decisions AS d
    WHERE d.decided_at > statement_timestamp() - make_interval(days => %(days)s)
"""
_CLAIMS = """
    SELECT s.id, s.claimed_at AS decided_at, s.node, 'publish' AS action, 'claimed' AS outcome, s.stream_key_id,
           -- Of a stream from before there were rotations it is known while the key has had one value only.
           coalesce(s.hint, (SELECT k.hint FROM stream_keys AS k WHERE k.id = s.stream_key_id AND k.rotated_at IS NULL))
               AS hint,
           s.id AS stream_id,
           NULL::uuid AS rival_id, s.path, s.protocol, s.remote_address, s.user_agent, s.auth_id AS connection_id,
           0::bigint AS left_out
    FROM streams AS s
    WHERE s.claimed_at > statement_timestamp() - make_interval(days => %(days)s)
"""
# A column's name in either, and how it is compared.
_FILTERS = {
    "path": ("d.path", "s.path", "="),
    "remote_address": ("d.remote_address", "s.remote_address", "="),
    "protocol": ("d.protocol", "s.protocol", "="),
    "stream_key_id": ("d.stream_key_id", "s.stream_key_id", "="),
    "connection_id": ("d.connection_id", "s.auth_id", "="),
    "node": ("d.node", "s.node", "="),
    "since": ("d.decided_at", "s.claimed_at", ">="),
    "until": ("d.decided_at", "s.claimed_at", "<"),
    "stream_id": ("d.rival_id", "s.id", "="),
}


def note(conn: Connection, refusals: Sequence[Refusal]) -> None:
    """Write these down, in one statement; psycopg.DataError when one of them cannot be stored, and none is."""
    conn.execute("/* decisions.note */ SELECT note_refusals_v1(%(refusals)s)", {"refusals": Jsonb(refusals)})


def trim(conn: Connection, epoch: int, *, days: int, rows: int, batch: int) -> int | None:
    """Delete what is too old or too much among the `batch` oldest; how many that were, None without the lead."""
    trimmed: int | None = only(
        conn,
        "/* decisions.trim */ SELECT trim_decisions_v1(%(epoch)s::bigint, %(days)s, %(rows)s, %(batch)s)",
        {"epoch": epoch, "days": Int4(days), "rows": Int8(rows), "batch": Int8(batch)},
    )[0]
    return trimmed


def page(
    conn: Connection, *, filters: dict[str, Any], days: int, limit: int, after: tuple[str, str] | None
) -> list[Decision]:
    """At most `limit` decisions of the last `days`, newest first, after (decided_at, id) of the one before.

    `outcome` among the filters is GRANTED, REFUSED (all others), or a slug.
    """
    outcome = filters.get("outcome")
    wanted = [(name, *columns) for name, columns in _FILTERS.items() if filters.get(name) is not None]
    refusals = _REFUSALS + "".join(f" AND {column} {how} %({name})s" for name, column, _, how in wanted)
    claims = _CLAIMS + "".join(f" AND {column} {how} %({name})s" for name, _, column, how in wanted)
    if after:
        refusals += " AND (d.decided_at, d.id) < (%(after_time)s::timestamptz, %(after_id)s::uuid)"
        claims += " AND (s.claimed_at, s.id) < (%(after_time)s::timestamptz, %(after_id)s::uuid)"
    if outcome not in (None, REFUSED):
        refusals += " AND d.outcome = %(outcome)s"
    # Each half is read along an index of its own, no further than the page may reach.
    halves = [] if outcome == GRANTED else [f"({refusals} ORDER BY d.decided_at DESC, d.id DESC LIMIT %(limit)s)"]
    if outcome in (None, GRANTED):
        halves.append(f"({claims} ORDER BY s.claimed_at DESC, s.id DESC LIMIT %(limit)s)")
    query = (
        "/* decisions.page */ SELECT c.id, rfc3339_v1(c.decided_at) AS decided_at, c.node, c.action, c.outcome,"  # noqa: S608  # put together from constants of this file alone
        " c.stream_key_id, c.hint, c.stream_id, c.rival_id, c.path, c.protocol, c.remote_address, c.user_agent,"
        f" c.connection_id, c.left_out FROM ({' UNION ALL '.join(halves)}) AS c"
        " ORDER BY c.decided_at DESC, c.id DESC LIMIT %(limit)s"
    )
    after_time, after_id = after or (None, None)
    with conn.cursor(row_factory=class_row(Decision)) as cursor:
        return cursor.execute(
            query.encode(),
            {**filters, "days": Int4(days), "limit": Int8(limit), "after_time": after_time, "after_id": after_id},
        ).fetchall()

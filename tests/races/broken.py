"""Ways to break functions and indexes, to see that the races would notice: `python -m tests.races --break NAME`.

A line is taken out of a function as the database holds it; if it is not there any more, that is an error here.
"""

from typing import NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow


class Break(NamedTuple):
    """One whole line of a function, what stands there instead, and a kind of race that notices."""

    function: str
    line: str
    kind: str
    instead: str = ""


class Drop(NamedTuple):
    """An index that is not there, and a kind of race that notices."""

    name: str
    kind: str


BREAKS: dict[str, Break | Drop] = {
    "claim-without-key-lock": Break(
        "claim_v1",
        "        PERFORM 1 FROM stream_keys AS k WHERE k.id = checked.key_id FOR UPDATE;",
        "claim-revoke",
    ),
    "claim-without-path-lock": Break("claim_v1", "        PERFORM lock_path_v1(p_path);", "two-keys-one-path"),
    "claim-without-second-check": Break(
        "claim_v1",
        "        SELECT * INTO checked"
        " FROM claim_check_v1(p_key_hash, p_node, p_path, p_connection_id, p_judged_gone);",
        "claim-revoke",
    ),
    "claim-without-order": Break(
        "claim_v1",
        "        PERFORM 1 FROM streams AS s WHERE s.id = ANY (checked.lapsed) ORDER BY s.id FOR UPDATE;",
        "exchange-paths",
        instead="        PERFORM 1 FROM streams AS s WHERE s.id = ANY (checked.lapsed)"
        " ORDER BY array_position(checked.lapsed, s.id) FOR UPDATE;",
    ),
    "not-ready-without-path-lock": Break(
        "not_ready_v1", "        PERFORM lock_path_v1(p_path);", "ready-not-ready-rtsp"
    ),
    "stop-without-key-lock": Break(
        "stop_stream_v1",
        "    PERFORM 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id FOR UPDATE;",
        "claim-stop-hold",
    ),
    "bind-without-path-lock": Break("update_stream_key_v1", "        PERFORM lock_path_v1(wanted_path);", "claim-bind"),
    "create-without-path-lock": Break(
        "create_stream_key_v1", "        PERFORM lock_path_v1(p_path);", "claim-create-bound"
    ),
    "create-without-broadcaster-lock": Break(
        "create_stream_key_v1",
        "    PERFORM 1 FROM broadcasters AS b WHERE b.id = p_broadcaster_id AND b.deleted_at IS NULL FOR SHARE;",
        "delete-create-claim",
        instead="    PERFORM 1 FROM broadcasters AS b WHERE b.id = p_broadcaster_id AND b.deleted_at IS NULL;",
    ),
    "disable-without-key-locks": Break(
        "lock_keys_of_broadcaster_v1",
        "    PERFORM 1 FROM stream_keys AS k WHERE k.broadcaster_id = p_broadcaster_id ORDER BY k.id FOR UPDATE;",
        "claim-disable-broadcaster",
    ),
    # A stream is ended when its successor is let in, and not when that one is live.
    "claim-ends-what-it-replaces": Break(
        "claim_v1",
        "    outcome := 'claimed';",
        "takeover",
        instead="    UPDATE streams AS s SET ended_at = moment, end_reason = 'superseded', replaced_by = stream_id"
        " WHERE s.id = checked.replaces; outcome := 'claimed';",
    ),
    # Whoever is live on the path ends, whichever connection the hook named.
    "not-ready-ends-by-path": Break(
        "not_ready_v1",
        "    target := stream_of_connection_v1(p_node, p_source_id);",
        "ready-new-not-ready-old",
        instead="    SELECT s.* INTO target FROM streams AS s WHERE s.node = p_node AND s.path = p_path"
        " AND s.ended_at IS NULL AND s.started_at IS NOT NULL;",
    ),
    "abandon-without-look": Break(
        "abandon_claim_v1",
        "    WHERE s.id = p_stream_id AND s.ended_at IS NULL AND s.started_at IS NULL;",
        "ready-abandon",
        instead="    WHERE s.id = p_stream_id AND s.ended_at IS NULL;",
    ),
    "reopen-without-path-lock": Break(
        "reopen_v1",
        "    IF NOT FOUND OR NOT"
        " pg_try_advisory_xact_lock(hashtextextended('streamorch.path:' || target.path, 0)) THEN",
        "reopen-claim",
        instead="    IF NOT FOUND THEN",
    ),
    "reopen-without-key-lock": Break(
        "reopen_v1",
        "    PERFORM 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id FOR UPDATE SKIP LOCKED;",
        "reopen-revoke",
        instead="    PERFORM 1 FROM stream_keys AS k WHERE k.id = target.stream_key_id;",
    ),
    "no-index-by-key": Drop("streams_one_pending_one_active_per_key", "insert-one-key"),
    "no-index-by-path": Drop("streams_one_pending_one_active_per_path", "insert-one-path"),
}


def break_schema(conn: psycopg.Connection[TupleRow], name: str) -> None:
    """Put the broken function in the place of the right one, or drop the index, in this database."""
    broken = BREAKS[name]
    if isinstance(broken, Drop):
        conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(broken.name)))
        return
    found = conn.execute("SELECT pg_get_functiondef(%s::regproc)", [broken.function]).fetchone()
    lines = str(found and found[0]).split("\n")
    if lines.count(broken.line) != 1:
        raise psycopg.ProgrammingError(f"{broken.function} has not exactly one line {broken.line.strip()!r}")
    lines[lines.index(broken.line)] = broken.instead
    conn.execute("\n".join(lines).encode())

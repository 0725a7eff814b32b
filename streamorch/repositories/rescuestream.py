"""The database of rescuestream-api, which is only read, and what is taken over from it.

Its moments go from one database to the other as text, and its JSON as it is.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import psycopg
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from streamorch.repositories import Connection, only

# Which media server they came from is not known, and no connection of today is one of theirs: under a node of their
# own neither a hook nor the reconciler takes one of them for what it sees.
NODE = "rescuestream"

_COLUMNS = {
    "broadcasters": {"id", "display_name", "metadata", "created_at", "updated_at"},
    "stream_keys": {
        "id", "key_value", "broadcaster_id", "status", "created_at", "expires_at", "revoked_at", "last_used_at",
    },
    "streams": {
        "id", "stream_key_id", "path", "status", "started_at", "ended_at", "source_type", "source_id", "metadata",
        "recording_ref",
    },
}  # fmt: skip

Old = psycopg.Connection[TupleRow]


class OldKey(NamedTuple):
    """A key as it stands there, in the clear."""

    id: UUID
    value: str
    broadcaster_id: UUID
    status: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class OldStream(NamedTuple):
    """A stream that has ended there; `metadata` is JSON text."""

    id: UUID
    stream_key_id: UUID
    path: str
    started_at: str
    ended_at: str | None
    source_type: str | None
    source_id: str | None
    metadata: str
    recording_ref: str | None


class KnownKey(NamedTuple):
    """A key that is here already."""

    id: UUID
    key_hash: bytes
    previous_key_hash: bytes | None
    is_revoked: bool


def open_old(url: str) -> Old:
    """The old database in one read-only snapshot; an OperationalError when it does not answer."""
    old = psycopg.connect(url, connect_timeout=5, application_name="streamorch import-rescuestream")
    old.read_only = True
    old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    old.execute("SET TimeZone TO 'UTC'")
    return old


def refusal(old: Old) -> str | None:
    """Why this is no database of rescuestream-api, as one sentence; None when it is."""
    rows = old.execute(
        """/* rescuestream.refusal */
        SELECT c.table_name, c.column_name
        FROM information_schema.columns AS c
        WHERE c.table_schema = ANY (current_schemas(false))
        """
    ).fetchall()
    there: dict[str, set[str]] = {}
    for table, column in rows:
        there.setdefault(table, set()).add(column)
    if "streamorch_migrations" in there:
        return "it is a database of streamorch"
    for table, columns in _COLUMNS.items():
        if table not in there:
            return f"it has no table {table} that its user may read"
        if missing := columns - there[table]:
            return f"its table {table} has no column {min(missing)} that its user may read"
    return None


def old_broadcasters(old: Old) -> list[dict[str, Any]]:
    """All broadcasters, in the form that `add_broadcasters` takes; metadata is an object."""
    rows = old.execute(
        """/* rescuestream.old_broadcasters */
        SELECT
            b.id,
            b.display_name,
            CASE jsonb_typeof(b.metadata)
                WHEN 'object' THEN b.metadata
                WHEN 'null' THEN '{}'
                ELSE jsonb_build_object('metadata', b.metadata)
            END::text,
            b.created_at::text,
            b.updated_at::text
        FROM broadcasters AS b
        """
    ).fetchall()
    names = ("id", "display_name", "metadata", "created_at", "updated_at")
    return [dict(zip(names, row, strict=True)) for row in rows]


def old_keys(old: Old) -> list[OldKey]:
    """All keys; of several with the same value, those that have been taken back first."""
    with old.cursor(row_factory=class_row(OldKey)) as cursor:
        return cursor.execute(
            """/* rescuestream.old_keys */
            SELECT
                k.id,
                k.key_value AS value,
                k.broadcaster_id,
                k.status,
                k.created_at::text AS created_at,
                NULLIF(k.expires_at, 'infinity')::text AS expires_at,
                k.revoked_at::text AS revoked_at,
                k.last_used_at::text AS last_used_at
            FROM stream_keys AS k
            ORDER BY (k.revoked_at IS NULL AND k.status <> 'revoked'), (k.status <> 'expired'), k.created_at, k.id
            """
        ).fetchall()


def count_streams(old: Old) -> tuple[int, int]:
    """How many streams have ended there, and how many have not."""
    ended, live = only(
        old,
        """/* rescuestream.count_streams */
        SELECT count(*) FILTER (WHERE s.status = 'ended'), count(*) FILTER (WHERE s.status <> 'ended')
        FROM streams AS s
        """,
    )
    return ended, live


def old_streams(old: Old, *, batch: int) -> Iterator[list[OldStream]]:
    """The streams that have ended, so many at a time."""
    with old.cursor("old_streams", row_factory=class_row(OldStream)) as cursor:
        cursor.execute(
            """/* rescuestream.old_streams */
            SELECT
                s.id,
                s.stream_key_id,
                s.path,
                s.started_at::text AS started_at,
                s.ended_at::text AS ended_at,
                s.source_type,
                s.source_id,
                CASE jsonb_typeof(s.metadata)
                    WHEN 'object' THEN s.metadata
                    WHEN 'null' THEN '{}'
                    ELSE jsonb_build_object('metadata', s.metadata)
                END::text AS metadata,
                s.recording_ref
            FROM streams AS s
            WHERE s.status = 'ended'
            """
        )
        while rows := cursor.fetchmany(batch):
            yield rows


def known_broadcasters(conn: Connection) -> set[UUID]:
    """The broadcasters that are here, also those that were deleted."""
    return {row[0] for row in conn.execute("/* rescuestream.known_broadcasters */ SELECT b.id FROM broadcasters AS b")}


def known_keys(conn: Connection) -> list[KnownKey]:
    """All keys that are here."""
    with conn.cursor(row_factory=class_row(KnownKey)) as cursor:
        return cursor.execute(
            """/* rescuestream.known_keys */
            SELECT k.id, k.key_hash, k.previous_key_hash, k.revoked_at IS NOT NULL AS is_revoked FROM stream_keys AS k
            """
        ).fetchall()


def count_known_streams(conn: Connection, stream_ids: Iterable[UUID]) -> int:
    """How many of these streams are here."""
    return int(
        only(
            conn,
            """/* rescuestream.count_known_streams */
            SELECT count(*) FROM streams AS s WHERE s.id = ANY (lines_v1(%(ids)s)::uuid[])
            """,
            {"ids": "\n".join(map(str, stream_ids))},
        )[0]
    )


def add_broadcasters(conn: Connection, rows: list[dict[str, Any]]) -> int:
    """Insert those that are not here; how many that were."""
    return conn.execute(
        """/* rescuestream.add_broadcasters */
        INSERT INTO broadcasters (id, display_name, metadata, created_at, updated_at)
        SELECT r.id, r.display_name, r.metadata, r.created_at, r.updated_at
        FROM acting_v1(%(actor)s)
        CROSS JOIN jsonb_to_recordset(%(rows)s) AS r(
            id uuid, display_name text, metadata jsonb, created_at timestamptz, updated_at timestamptz)
        ON CONFLICT DO NOTHING
        """,
        {"actor": conn.acting(), "rows": _records(rows)},
    ).rowcount


def add_keys(conn: Connection, rows: list[dict[str, Any]]) -> int:
    """Insert those whose id and value are not here; how many that were. Of a deleted broadcaster: revoked.

    key_hash is hex; `is_expired` and `is_revoked` count where the moment is missing or lies ahead.
    """
    return conn.execute(
        """/* rescuestream.add_keys */
        INSERT INTO stream_keys (
            id, broadcaster_id, key_hash, hint, created_at, expires_at, revoked_at, last_used_at)
        SELECT
            r.id,
            r.broadcaster_id,
            decode(r.key_hash, 'hex'),
            r.hint,
            r.created_at,
            CASE WHEN r.is_expired THEN least(r.expires_at, clock_timestamp()) ELSE r.expires_at END,
            CASE
                WHEN r.is_revoked OR b.deleted_at IS NOT NULL
                THEN least(r.revoked_at, clock_timestamp())
            END,
            r.last_used_at
        FROM acting_v1(%(actor)s)
        CROSS JOIN jsonb_to_recordset(%(rows)s) AS r(
            id uuid, broadcaster_id uuid, key_hash text, hint text, created_at timestamptz, expires_at timestamptz,
            revoked_at timestamptz, last_used_at timestamptz, is_expired boolean, is_revoked boolean)
        JOIN broadcasters AS b ON b.id = r.broadcaster_id
        FOR SHARE OF b
        ON CONFLICT DO NOTHING
        """,
        {"actor": conn.acting(), "rows": _records(rows)},
    ).rowcount


def add_streams(conn: Connection, rows: list[dict[str, Any]]) -> int:
    """Insert those that are not here, as ended; how many that were."""
    return conn.execute(
        """/* rescuestream.add_streams */
        INSERT INTO streams (
            id, stream_key_id, node, path, protocol, auth_id, source_id, source_type, claimed_at, lease_expires_at,
            started_at, ended_at, end_reason, metadata, recording_ref)
        SELECT
            r.id, r.stream_key_id, %(node)s, r.path, r.protocol, coalesce(r.source_id, r.id::text), r.source_id,
            r.source_type, r.started_at, r.started_at, r.started_at, coalesce(r.ended_at, r.started_at), 'disconnected',
            r.metadata, r.recording_ref
        FROM jsonb_to_recordset(%(rows)s) AS r(
            id uuid, stream_key_id uuid, path text, protocol text, source_id text, source_type text,
            started_at timestamptz, ended_at timestamptz, metadata jsonb, recording_ref text)
        ON CONFLICT DO NOTHING
        """,
        {"rows": _records(rows), "node": NODE},
    ).rowcount


def _records(rows: list[dict[str, Any]]) -> Jsonb:
    """Rows for one statement; their metadata is JSON text already."""
    return Jsonb(
        [row | {"metadata": msgspec.Raw(row["metadata"].encode())} if "metadata" in row else row for row in rows]
    )

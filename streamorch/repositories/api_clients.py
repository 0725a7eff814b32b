"""API clients: named callers of the API with a scope. Their secrets are never stored."""

from datetime import datetime
from typing import Any, Literal, LiteralString, NamedTuple
from uuid import UUID

import msgspec
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int8

from streamorch.repositories import Connection, Moment, only

Scope = Literal["read", "operate", "admin"]
Status = Literal["active", "revoked", "expired"]


class APIClient(msgspec.Struct, frozen=True):
    """A client as the API shows it, without its secret; `hint` is the last four characters of that."""

    id: UUID
    name: str
    scope: Scope
    status: Status
    hint: str
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    last_used_at: Moment | None


class Found(NamedTuple):
    """A client that may call. `seconds_left` is None of one that does not expire; `is_due`: note that it is used."""

    id: UUID
    name: str
    scope: Scope
    seconds_left: float | None
    is_due: bool


_SHOWN = """
    SELECT
        c.id,
        c.name,
        c.scope,
        CASE
            WHEN c.revoked_at IS NOT NULL THEN 'revoked'
            WHEN c.expires_at <= clock_timestamp() THEN 'expired'
            ELSE 'active'
        END AS status,
        c.hint,
        rfc3339_v1(c.created_at) AS created_at,
        rfc3339_v1(c.expires_at) AS expires_at,
        rfc3339_v1(c.revoked_at) AS revoked_at,
        rfc3339_v1(c.last_used_at) AS last_used_at
    FROM api_clients AS c
    WHERE true
"""
_GET = "/* api_clients.get */" + _SHOWN + "AND c.id = %(id)s"
_STATUSES: dict[Status, str] = {
    "active": " AND c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > clock_timestamp())",
    "revoked": " AND c.revoked_at IS NOT NULL",
    "expired": " AND c.revoked_at IS NULL AND c.expires_at <= clock_timestamp()",
}
_AFTER = " AND (c.created_at, c.id) < (%(after_time)s::timestamptz, %(after_id)s::uuid)"

_WHO_MAY: LiteralString = """
    SELECT c.id, c.name, c.scope, extract(epoch FROM c.expires_at - clock_timestamp())::float8,
           c.last_used_at IS NULL OR c.last_used_at < clock_timestamp() - interval '1 minute'
    FROM api_clients AS c
    WHERE c.revoked_at IS NULL AND (c.expires_at IS NULL OR c.expires_at > clock_timestamp())
"""


def by_secret(conn: Connection, secret_hash: bytes) -> Found | None:
    """The client with this secret, unless it is revoked or has expired."""
    query: LiteralString = "/* api_clients.by_secret */" + _WHO_MAY + "AND c.secret_hash = %(secret_hash)s"
    row = conn.execute(query, {"secret_hash": secret_hash}).fetchone()
    return Found(*row) if row else None


def by_id(conn: Connection, client_id: UUID) -> Found | None:
    """The client with this id, unless it is revoked or has expired."""
    query: LiteralString = "/* api_clients.by_id */" + _WHO_MAY + "AND c.id = %(id)s"
    row = conn.execute(query, {"id": client_id}).fetchone()
    return Found(*row) if row else None


def used(conn: Connection, client_id: UUID) -> None:
    """Note that the client is used, unless that was noted within the last minute, or somebody holds its row."""
    conn.execute(
        """/* api_clients.used */
        UPDATE api_clients AS c SET last_used_at = clock_timestamp()
        WHERE c.id = (
            SELECT o.id FROM api_clients AS o
            WHERE o.id = %(id)s
              AND (o.last_used_at IS NULL OR o.last_used_at < clock_timestamp() - interval '1 minute')
            FOR UPDATE SKIP LOCKED)
        """,
        {"id": client_id},
    )


def get(conn: Connection, client_id: UUID) -> APIClient | None:
    """The client, or None when there is none."""
    with conn.cursor(row_factory=class_row(APIClient)) as cursor:
        return cursor.execute(_GET, {"id": client_id}).fetchone()


def page(conn: Connection, *, status: Status | None, limit: int, after: tuple[str, str] | None) -> list[APIClient]:
    """At most `limit` clients, newest first, after (created_at, id) of the one before."""
    after_time, after_id = after or (None, None)
    query = (
        "/* api_clients.page */"
        + _SHOWN
        + (_STATUSES[status] if status else "")
        + (_AFTER if after else "")
        + " ORDER BY c.created_at DESC, c.id DESC LIMIT %(limit)s"
    )
    with conn.cursor(row_factory=class_row(APIClient)) as cursor:
        return cursor.execute(
            query.encode(), {"limit": Int8(limit), "after_time": after_time, "after_id": after_id}
        ).fetchall()


def create(
    conn: Connection,
    *,
    client_id: UUID,
    name: str,
    scope: Scope,
    secret_hash: bytes,
    hint: str,
    expires_at: datetime | None,
) -> str:
    """Store a client; 'created', 'name-taken' (by one that is not revoked) or 'conflict' (the id is taken)."""
    return str(
        only(
            conn,
            """/* api_clients.create */
        SELECT create_api_client_v1(%(id)s, %(name)s, %(scope)s, %(secret_hash)s, %(hint)s, %(expires_at)s)
        FROM acting_v1(%(actor)s)
        """,
            {
                "actor": conn.acting(),
                "id": client_id,
                "name": name,
                "scope": scope,
                "secret_hash": secret_hash,
                "hint": hint,
                # As text, which has the same parameter type as nothing: one prepared statement for both.
                "expires_at": expires_at and expires_at.isoformat(),
            },
        )[0]
    )


def update(conn: Connection, client_id: UUID, changes: dict[str, Any]) -> str:
    """Replace the given members; 'updated', 'not-found', 'revoked' or 'name-taken'."""
    return str(
        only(
            conn,
            "/* api_clients.update */ SELECT update_api_client_v1(%(id)s, %(changes)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": client_id, "changes": Jsonb(changes)},
        )[0]
    )


def revoke(conn: Connection, client_id: UUID) -> str:
    """Take the secret back for good; 'revoked', 'already' or 'not-found'."""
    return str(
        only(
            conn,
            "/* api_clients.revoke */ SELECT revoke_api_client_v1(%(id)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": client_id},
        )[0]
    )

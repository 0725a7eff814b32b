"""What the reconciler reads and writes; each call but `lead` does nothing without the lead of its epoch."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from psycopg.rows import class_row

from streamorch.repositories import Connection, only


class Lead(NamedTuple):
    """An epoch in which this process leads, and the moment of the database at which it was confirmed."""

    epoch: int
    moment: datetime


class Leader(NamedTuple):
    """Does any process lead, and in which epoch, the last one if none does?"""

    epoch: int
    is_there: bool


class Change(msgspec.Struct, frozen=True):
    """What became of a stream: `what` is 'active' or an end_reason."""

    what: str
    stream_id: UUID
    path: str


class Outcome(NamedTuple):
    """What a snapshot changed; see reconcile_v1 in sql/."""

    changes: list[Change]
    change_count: int
    missing: list[UUID]
    strangers: list[str]
    stranger_count: int
    more: bool


class Stranger(NamedTuple):
    """A live connection that is no open stream's; without a stream nobody ever claimed it."""

    source_id: str
    stream_id: UUID | None
    end_reason: str | None
    is_mistake: bool | None


class Known(NamedTuple):
    """What stands in the table of nodes from ticks before; ages in seconds."""

    api_state: str
    started_at: datetime | None
    last_tick_at: datetime | None
    last_tick_age: float | None
    unclaimed: list[dict[str, Any]]
    first_claim_at: datetime | None


class Publishers(NamedTuple):
    """Live publishers as columns; one index is one publisher. `auth_ids`: None where the server does not tell."""

    ids: list[str]
    auth_ids: list[str | None]
    paths: list[str]
    types: list[str]


class Awaiting(NamedTuple):
    """An active stream with a successor on its way. `is_interrupted`: its own end is known."""

    id: UUID
    source_id: str
    protocol: str
    is_interrupted: bool


_changes = msgspec.json.Decoder(list[Change])


def lead(conn: Connection, *, holder: str, seconds: float, force: bool = False) -> Lead | None:
    """Take or keep the lead; None while another has it. `force` takes it from whoever has it."""
    epoch, moment = only(
        conn,
        "/* reconciliation.lead */ SELECT epoch, moment FROM lead_v1(%(holder)s, %(seconds)s, %(force)s)",
        {"holder": holder, "seconds": float(seconds), "force": force},
    )
    return None if epoch is None else Lead(epoch, moment)


def leader(conn: Connection) -> Leader:
    """Who has the lead, as far as others are to know."""
    return Leader(
        *only(
            conn,
            """/* reconciliation.leader */
            SELECT l.epoch, l.expires_at > clock_timestamp() FROM leaders AS l WHERE l.name = 'reconciler'
            """,
        )
    )


def resign(conn: Connection, epoch: int) -> None:
    """Let another lead at once."""
    conn.execute("/* reconciliation.resign */ SELECT resign_v1(%(epoch)s::bigint)", {"epoch": epoch})


def known(conn: Connection, node: str) -> Known | None:
    """What ticks before have seen of a node; None before the first. `first_claim_at`: in this run of the server."""
    row = conn.execute(
        """/* reconciliation.known */
        SELECT n.api_state, n.started_at, n.last_tick_at,
               extract(epoch FROM clock_timestamp() - n.last_tick_at)::float8, n.unclaimed::text,
               (SELECT min(s.claimed_at) FROM streams AS s WHERE s.node = n.node AND s.claimed_at >= n.started_seen_at)
        FROM nodes AS n
        WHERE n.node = %(node)s
        """,
        {"node": node},
    ).fetchone()
    if row is None:
        return None
    state, started_at, last_tick_at, last_tick_age, unclaimed, first_claim_at = row
    return Known(state, started_at, last_tick_at, last_tick_age, msgspec.json.decode(unclaimed), first_claim_at)


def settle(conn: Connection, epoch: int) -> list[Change] | None:
    """End what time alone ends: streams of keys without a right, interrupted ones without successor. None: no lead."""
    (found,) = only(
        conn, "/* reconciliation.settle */ SELECT changes::text FROM settle_v1(%(epoch)s)", {"epoch": epoch}
    )
    return None if found is None else _changes.decode(found)


def awaiting(conn: Connection, *, node: str) -> list[Awaiting]:
    """The active streams of a node that wait for a successor, whether their end was told or not."""
    rows = conn.execute(
        """/* reconciliation.awaiting */
        SELECT s.id, s.source_id, s.protocol, true
        FROM streams AS s
        WHERE s.node = %(node)s AND s.interrupted_at IS NOT NULL AND s.ended_at IS NULL
        UNION ALL
        SELECT s.id, s.source_id, s.protocol, false
        FROM streams AS n
        JOIN streams AS s ON s.id = n.replaces
        WHERE n.node = %(node)s AND n.ended_at IS NULL AND n.started_at IS NULL
          AND s.node = n.node AND s.ended_at IS NULL AND s.started_at IS NOT NULL AND s.interrupted_at IS NULL
        """,
        {"node": node},
    ).fetchall()
    return [Awaiting(*row) for row in rows]


def resume(conn: Connection, epoch: int, stream_ids: Sequence[UUID]) -> None:
    """These are seen live: they were not interrupted after all."""
    conn.execute(
        "/* reconciliation.resume */ SELECT resume_v1(%(epoch)s, %(ids)s::uuid[])",
        {"epoch": epoch, "ids": list(stream_ids)},
    )


def interrupt(conn: Connection, epoch: int, *, snapshot_at: datetime, stream_ids: Sequence[UUID]) -> None:
    """These were not there in that snapshot, and a successor is on its way; those that began after it are left out."""
    conn.execute(
        "/* reconciliation.interrupt */ SELECT interrupt_v1(%(epoch)s, %(snapshot_at)s, %(ids)s::uuid[])",
        {"epoch": epoch, "snapshot_at": snapshot_at, "ids": list(stream_ids)},
    )


def observe(
    conn: Connection,
    epoch: int,
    *,
    node: str,
    sampled_at: datetime,
    source_ids: Sequence[str],
    viewers: Sequence[int],
    received: Sequence[int | None],
    tracks: Sequence[str | None],
) -> list[str]:
    """Statistics of the streams on these connections; `tracks` None: as before.

    Returns the connections of whose stream nothing could be written now, since somebody else holds it.
    """
    unwritten: list[str] | None = only(
        conn,
        """/* reconciliation.observe */
        SELECT observe_v1(%(epoch)s, %(node)s, %(sampled_at)s, lines_v1(%(source_ids)s),
                          lines_v1(%(viewers)s)::integer[], lines_v1(%(received)s)::bigint[], lines_v1(%(tracks)s))
        """,
        {
            "epoch": epoch,
            "node": node,
            "sampled_at": sampled_at,
            "source_ids": _lines(source_ids),
            "viewers": _lines(viewers),
            "received": _lines(received),
            "tracks": _lines(tracks),
        },
    )[0]
    return unwritten or []


def reconcile(
    conn: Connection,
    epoch: int,
    *,
    node: str,
    snapshot_at: datetime,
    present: Sequence[str],
    known: Sequence[str],
    live: Publishers,
    missing_before: Sequence[UUID],
    restarted: bool,
) -> Outcome | None:
    """Set the open streams of a node right by one snapshot; `known`: protocols whose lists answered. None: no lead."""
    changes, count, missing, strangers, stranger_count, more = only(
        conn,
        """/* reconciliation.reconcile */
        SELECT changes::text, change_count, missing, strangers, stranger_count, more
        FROM reconcile_v1(%(epoch)s, %(node)s, %(snapshot_at)s, lines_v1(%(present)s), lines_v1(%(known)s),
                          lines_v1(%(ids)s), lines_v1(%(auth_ids)s), lines_v1(%(paths)s), lines_v1(%(types)s),
                          lines_v1(%(missing_before)s)::uuid[], %(restarted)s)
        """,
        {
            "epoch": epoch,
            "node": node,
            "snapshot_at": snapshot_at,
            "present": _lines(present),
            "known": _lines(known),
            **{name: _lines(column) for name, column in live._asdict().items()},
            "missing_before": _lines(missing_before),
            "restarted": restarted,
        },
    )
    if changes is None:
        return None
    return Outcome(_changes.decode(changes), count, missing or [], strangers, stranger_count, more)


def strangers(
    conn: Connection, *, node: str, snapshot_at: datetime, source_ids: Sequence[str], auth_ids: Sequence[str]
) -> list[Stranger]:
    """What is known of live connections that are no open stream's; those that may be over by now are left out."""
    with conn.cursor(row_factory=class_row(Stranger)) as cursor:
        return cursor.execute(
            """/* reconciliation.strangers */
            SELECT source_id, stream_id, end_reason, is_mistake
            FROM strangers_v1(%(node)s, %(snapshot_at)s, lines_v1(%(source_ids)s), lines_v1(%(auth_ids)s))
            """,
            {"node": node, "snapshot_at": snapshot_at, "source_ids": _lines(source_ids), "auth_ids": _lines(auth_ids)},
        ).fetchall()


def reopen(conn: Connection, epoch: int, stream_id: UUID, *, source_type: str, source_id: str) -> str:
    """Open a stream again that is live; 'reopened', 'open', 'busy', 'not-leading', or why not: then it is closed."""
    return str(
        only(
            conn,
            """/* reconciliation.reopen */
            SELECT reopen_v1(%(epoch)s, %(stream_id)s, %(source_type)s, %(source_id)s)
            """,
            {"epoch": epoch, "stream_id": stream_id, "source_type": source_type, "source_id": source_id},
        )[0]
    )


def request_kicks(conn: Connection, epoch: int, stream_ids: Sequence[UUID]) -> None:
    """The connections of these streams are still live although they ended on purpose: close them."""
    conn.execute(
        "/* reconciliation.request_kicks */ SELECT request_kicks_v1(%(epoch)s, lines_v1(%(stream_ids)s)::uuid[])",
        {"epoch": epoch, "stream_ids": _lines(stream_ids)},
    )


def name_rtsp_session(
    conn: Connection, epoch: int, *, node: str, path: str, source_type: str, source_id: str
) -> UUID | None:
    """The stream to be closed that this live session belongs to, where the server does not tell; None: no such one."""
    found: UUID | None = only(
        conn,
        """/* reconciliation.name_rtsp_session */
        SELECT name_rtsp_session_v1(%(epoch)s, %(node)s, %(path)s, %(source_type)s, %(source_id)s)
        """,
        {"epoch": epoch, "node": node, "path": path, "source_type": source_type, "source_id": source_id},
    )[0]
    return found


def answered(
    conn: Connection,
    epoch: int,
    *,
    node: str,
    version: str | None,
    started_at: datetime | None,
    snapshot_at: datetime,
    is_complete: bool,
) -> None:
    """The media server answered; `is_complete`: every list, so that this snapshot is one to compare with."""
    conn.execute(
        """/* reconciliation.answered */
        SELECT node_answered_v1(%(epoch)s, %(node)s, %(version)s, %(started_at)s::timestamptz, %(snapshot_at)s,
                                %(is_complete)s)
        """,
        {
            "epoch": epoch,
            "node": node,
            "version": version,
            "started_at": started_at and started_at.isoformat(),
            "snapshot_at": snapshot_at,
            "is_complete": is_complete,
        },
    )


def note_unclaimed(conn: Connection, epoch: int, *, node: str, unclaimed: list[dict[str, Any]]) -> None:
    """Who publishes without a claim."""
    conn.execute(
        "/* reconciliation.note_unclaimed */ SELECT node_unclaimed_v1(%(epoch)s, %(node)s, %(unclaimed)s::jsonb)",
        {"epoch": epoch, "node": node, "unclaimed": msgspec.json.encode(unclaimed).decode()},
    )


def failed(conn: Connection, epoch: int, *, node: str, state: str, is_there: bool) -> int | None:
    """The media server gave no usable answer ('refused', 'silent', 'unauthorized'); how many streams were lost with it.

    Nothing is lost when it gave some sign of life (`is_there`). None: no lead.
    """
    lost: int | None = only(
        conn,
        "/* reconciliation.failed */ SELECT node_failed_v1(%(epoch)s, %(node)s, %(state)s, %(is_there)s)",
        {"epoch": epoch, "node": node, "state": state, "is_there": is_there},
    )[0]
    return lost


def _lines(column: Sequence[object]) -> str:
    """A column as one text, a line for each value and an empty one for None; ValueError when a value has lines itself.

    Ten thousand values cost a millisecond so, and ten as an array of psycopg.
    """
    text = "\n".join(["" if value is None else str(value) for value in column])
    if text.count("\n") != max(0, len(column) - 1):
        raise ValueError("a value of the media server with a line break in it")
    return text

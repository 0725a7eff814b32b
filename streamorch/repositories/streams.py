"""Streams: one row per publishing connection, from the claim in auth to its end."""

from collections.abc import Container, Iterable
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int4, Int8

from streamorch.repositories import Connection, Moment, Object, bounded, only


class Claim(NamedTuple):
    """What a claim came to: outcome is 'claimed', 'replay', 'valid' (only checked), or the slug of a problem."""

    outcome: str
    stream_key_id: UUID | None
    stream_id: UUID | None = None
    rival_id: UUID | None = None

    @property
    def is_granted(self) -> bool:
        """May the encoder publish?"""
        return self.outcome in ("claimed", "replay", "valid")


class Start(NamedTuple):
    """What a start came to.

    outcome is 'active', 'replay' (it was), 'not-found' (no claim, or it has ended), or the end_reason of a claim whose
    key lost its right meanwhile. `claim_seconds`: how long ago it was claimed; None of what did not start now.
    """

    outcome: str
    stream_id: UUID | None
    claim_seconds: float | None


# What a stream may be asked for; as a state it is one of the first three.
Status = Literal["pending", "active", "ended", "all"]
EndReason = Literal[
    "never_started",
    "disconnected",
    "superseded",
    "revoked",
    "expired",
    "disabled",
    "stopped",
    "server_restarted",
    "server_lost",
]


Kicked = Literal["pending", "done"]


class Owner(msgspec.Struct, frozen=True):
    """Whose stream it is."""

    id: UUID
    display_name: str


class Listed(msgspec.Struct, frozen=True):
    """A stream as lists show it, its URLs left out."""

    id: UUID
    stream_key_id: UUID
    label: str | None
    broadcaster: Owner  # as the bytes of a jsonb: nobody reads it on its way out
    node: str
    path: str
    status: Literal["pending", "active", "ended"]
    end_reason: EndReason | None
    claimed_at: Moment
    started_at: Moment | None
    ended_at: Moment | None
    duration_seconds: int | None
    interrupted_at: Moment | None
    source_type: str | None
    source_id: str | None
    protocol: str
    metadata: Object
    recording_ref: str | None
    viewers: int | None
    media: Literal["flowing", "stalled"] | None
    replaces: UUID | None
    replaced_by: UUID | None


class Stream(Listed, frozen=True):
    """A stream with what is shown of one asked for by id, and by lists not."""

    remote_address: str | None
    bytes: int | None
    bitrate: int | None
    tracks: str | None
    kick: Kicked | None


class Rival(NamedTuple):
    """The open stream in the way of a claim, and what the reconciler last saw of it; ages in seconds.

    `can_be_seen`: the Control API of its node has answered before.
    """

    id: UUID
    node: str
    path: str
    protocol: str
    connection_id: str
    is_active: bool
    takeover: str
    can_be_seen: bool
    bytes: int | None
    sample_age: float | None
    moved_age: float | None


class Kick(NamedTuple):
    """A connection that is to be closed."""

    stream_id: UUID
    path: str
    protocol: str
    connection_id: str


class Measure(NamedTuple):
    """What was last measured of a live stream, and lists leave out because it changes all the time."""

    id: str
    bitrate: int | None
    tracks: str | None


class Facts(NamedTuple):
    """What is known of the connection of a stream, its key and its broadcaster, beside what the stream itself shows."""

    user_agent: str | None
    key_hint: str
    hint: str
    moved_at: str | None
    is_of_deleted: bool


class LiveItem(NamedTuple):
    """A live stream by its mark: its path, and what lists show of it as a JSON object, the URLs left out."""

    mark: str
    path: str
    encoded: str


class LiveList(NamedTuple):
    """The live list of one moment: its version, a mark for each stream, newest first, and the items asked for.

    A mark begins with the id of the stream, and is another whenever the list shows something else of it.
    """

    version: str
    changed_at: str
    marks: list[str]
    items: list[LiveItem]


_LISTED = """
        s.id,
        s.stream_key_id,
        k.label,
        jsonb_build_object('id', b.id, 'display_name', b.display_name) AS broadcaster,
        s.node,
        s.path,
        CASE
            WHEN s.ended_at IS NOT NULL THEN 'ended'
            WHEN s.started_at IS NOT NULL THEN 'active'
            ELSE 'pending'
        END AS status,
        s.end_reason,
        rfc3339_v1(s.claimed_at) AS claimed_at,
        rfc3339_v1(s.started_at) AS started_at,
        rfc3339_v1(s.ended_at) AS ended_at,
        CASE
            WHEN s.ended_at IS NOT NULL AND s.started_at IS NOT NULL
            THEN greatest(0, floor(extract(epoch FROM s.ended_at - s.started_at)))::bigint
        END AS duration_seconds,
        rfc3339_v1(s.interrupted_at) AS interrupted_at,
        s.source_type,
        coalesce(s.source_id, s.auth_id) AS source_id,
        s.protocol,
        s.metadata,
        s.recording_ref,
        CASE WHEN s.ended_at IS NULL AND s.started_at IS NOT NULL THEN t.viewers END AS viewers,
        CASE WHEN s.ended_at IS NULL AND s.started_at IS NOT NULL THEN t.media END AS media,
        s.replaces,
        s.replaced_by
"""
_SHOWN_ALONE = """
        s.remote_address,
        t.bytes,
        CASE WHEN s.ended_at IS NULL AND t.media IS NOT NULL THEN t.bitrate END AS bitrate,
        t.tracks,
        CASE
            WHEN s.kicked_at IS NOT NULL THEN 'done'
            WHEN s.kick_requested_at IS NOT NULL THEN 'pending'
        END AS kick
"""
_FROM = """
    FROM streams AS s
    JOIN stream_keys AS k ON k.id = s.stream_key_id
    JOIN broadcasters AS b ON b.id = k.broadcaster_id
    LEFT JOIN stream_stats AS t ON t.stream_id = s.id
"""
_SHOWN = "SELECT" + _LISTED + "," + _SHOWN_ALONE + _FROM + " WHERE "
_GET = "/* streams.get */ " + _SHOWN + "s.id = %(id)s"
_SEVERAL = "/* streams.several */ " + _SHOWN + "s.id = ANY (lines_v1(%(ids)s)::uuid[])"
_ACTIVE = "s.ended_at IS NULL AND s.started_at IS NOT NULL"
_NEWEST_STARTED = " ORDER BY s.started_at DESC, s.id DESC"
_LIVE_VERSION = """
    l.epoch || '-' || l.version || '-' || extract(epoch FROM l.changed_at)::numeric::text
"""
_VERSION = "/* streams.version */ SELECT" + _LIVE_VERSION + "FROM live_list AS l"
# The row versions of all that the list shows; of the statistics, which are written every two seconds, the values.
# Sub-selects and no joins: with many keys and few live streams, a wrong estimate would have a join read every key.
_MARK = """
    concat_ws(
        ':', s.id, s.xmin,
        (SELECT k.xmin || ':' || (SELECT b.xmin FROM broadcasters AS b WHERE b.id = k.broadcaster_id)
         FROM stream_keys AS k WHERE k.id = s.stream_key_id),
        (SELECT concat_ws(':', t.viewers, t.media) FROM stream_stats AS t WHERE t.stream_id = s.id))
"""
_LIVE_MARKS = (
    "/* streams.live_marks */ SELECT"  # noqa: S608  # put together from constants of this file alone
    + _LIVE_VERSION
    + ", rfc3339_v1(l.changed_at), (SELECT string_agg("
    + _MARK
    + ", chr(10)"
    + _NEWEST_STARTED
    + ") FROM streams AS s WHERE "
    + _ACTIVE
    + ") FROM live_list AS l"
)
_LIVE_ITEMS = (
    "/* streams.live_items */ SELECT"  # noqa: S608  # the same
    + _MARK
    + ", s.path, (SELECT row_to_json(shown)::text FROM (SELECT"
    + _LISTED
    + ") AS shown)"
    + _FROM
    + " WHERE s.id = ANY (lines_v1(%(ids)s)::uuid[])"
)
_ID_LENGTH = 36
# Why these are separate texts and not `%(x)s IS NULL OR ...`: each combination gets a plan that can use its index.
_FILTERS = {
    "broadcaster_id": " AND k.broadcaster_id = %(broadcaster_id)s",
    "stream_key_id": " AND s.stream_key_id = %(stream_key_id)s",
    "path": " AND s.path = %(path)s",
    "end_reason": " AND s.end_reason = %(end_reason)s",
    "protocol": " AND s.protocol = %(protocol)s",
    "node": " AND s.node = %(node)s",
    "since": " AND s.claimed_at >= %(since)s",
    "until": " AND s.claimed_at < %(until)s",
}
_AFTER = " AND (s.claimed_at, s.id) < (%(after_time)s::timestamptz, %(after_id)s::uuid)"
_STATUSES: dict[Status, str] = {
    "active": _ACTIVE,
    "pending": "s.ended_at IS NULL AND s.started_at IS NULL",
    "ended": "s.ended_at IS NOT NULL",
    "all": "true",
}


def claim(
    conn: Connection,
    *,
    key_hash: bytes,
    node: str,
    path: str,
    connection_id: str,
    protocol: str,
    remote_address: str,
    user_agent: str,
    lease_seconds: int,
    judged_gone: UUID | None = None,
) -> Claim:
    """Claim the path for the publisher of this key: one statement, and the same again gives 'replay'.

    `judged_gone` is the active rival of an earlier 'stream-key-in-use' that gives way: found stalled or gone since.
    """
    return Claim(
        *only(
            conn,
            """/* streams.claim */
        SELECT outcome, key_id, stream_id, rival_id
        FROM claim_v1(%(key_hash)s, %(node)s, %(path)s, %(connection_id)s, %(protocol)s,
                      %(remote_address)s, %(user_agent)s, %(lease_seconds)s, %(judged_gone)s)
        """,
            {
                "key_hash": key_hash,
                "node": node,
                "path": path,
                "connection_id": connection_id,
                "protocol": protocol,
                "remote_address": remote_address,
                "user_agent": user_agent,
                "lease_seconds": Int4(lease_seconds),
                # As text, which has the same parameter type as nothing: one prepared statement for both.
                "judged_gone": judged_gone and str(judged_gone),
            },
        )
    )


def rival(conn: Connection, stream_id: UUID) -> Rival | None:
    """What to look at before a claim that this stream is in the way of is refused; None when it has ended."""
    with conn.cursor(row_factory=class_row(Rival)) as cursor:
        return cursor.execute(
            """/* streams.rival */
            SELECT
                s.id,
                s.node,
                s.path,
                s.protocol,
                coalesce(s.source_id, s.auth_id) AS connection_id,
                s.started_at IS NOT NULL AS is_active,
                k.takeover,
                node_seen_v1(s.node) AS can_be_seen,
                t.bytes,
                extract(epoch FROM statement_timestamp() - t.sampled_at)::float8 AS sample_age,
                extract(epoch FROM statement_timestamp() - t.moved_at)::float8 AS moved_age
            FROM streams AS s
            JOIN stream_keys AS k ON k.id = s.stream_key_id
            LEFT JOIN stream_stats AS t ON t.stream_id = s.id
            WHERE s.id = %(id)s AND s.ended_at IS NULL
            """,
            {"id": stream_id},
        ).fetchone()


def abandon(conn: Connection, stream_id: UUID) -> str:
    """The connection of this claim is gone before it was live: 'ended', or 'late' when it started or ended."""
    return str(only(conn, "/* streams.abandon */ SELECT abandon_claim_v1(%(id)s)", {"id": stream_id})[0])


def check(conn: Connection, *, key_hash: bytes, node: str, path: str) -> Claim:
    """Would this key be let in on this path? Claims nothing: a publish page and OPTIONS have no connection."""
    return Claim(
        *only(
            conn,
            "/* streams.check */ SELECT outcome, key_id FROM check_key_v1(%(key_hash)s, %(node)s, %(path)s)",
            {"key_hash": key_hash, "node": node, "path": path},
        )
    )


def start(conn: Connection, *, node: str, path: str, source_type: str, source_id: str) -> Start:
    """A connection went live: its pending claim becomes active and ends what it replaces."""
    return Start(
        *only(
            conn,
            """/* streams.start */
        SELECT r.outcome, r.stream_id, CASE WHEN r.outcome = 'active' THEN (
            SELECT extract(epoch FROM clock_timestamp() - s.claimed_at)::float8
            FROM streams AS s
            WHERE s.id = r.stream_id
        ) END
        FROM ready_v1(%(node)s, %(path)s, %(source_type)s, %(source_id)s) AS r
        """,
            {"node": node, "path": path, "source_type": source_type, "source_id": source_id},
        )
    )


def end(conn: Connection, *, node: str, path: str, source_type: str, source_id: str) -> tuple[str, UUID | None]:
    """A connection is no longer live: ends the stream of that connection and no other.

    Returns the outcome and the stream: 'ended', 'interrupted' (listed on, until the claim that replaces it is live),
    'late' (it had ended), 'unknown' (remembered for a minute).
    """
    outcome, stream_id = only(
        conn,
        """/* streams.end */
        SELECT outcome, stream_id FROM not_ready_v1(%(node)s, %(path)s, %(source_type)s, %(source_id)s)
        """,
        {"node": node, "path": path, "source_type": source_type, "source_id": source_id},
    )
    return outcome, stream_id


def end_on_path(conn: Connection, *, node: str, path: str, grace_seconds: int) -> tuple[str, UUID | None]:
    """A path is no longer live: 'ended' its active stream, or 'late' when that started within `grace_seconds`."""
    outcome, stream_id = only(
        conn,
        """/* streams.end_on_path */
        SELECT outcome, stream_id FROM not_ready_unnamed_v1(%(node)s, %(path)s, %(grace_seconds)s)
        """,
        {"node": node, "path": path, "grace_seconds": Int4(grace_seconds)},
    )
    return outcome, stream_id


def active_on_path(conn: Connection, *, node: str, path: str) -> tuple[str, str] | None:
    """Protocol and connection id of the stream that is active on a path; None when there is none."""
    return conn.execute(
        """/* streams.active_on_path */
        SELECT s.protocol, s.source_id
        FROM streams AS s
        WHERE s.node = %(node)s AND s.path = %(path)s AND s.ended_at IS NULL AND s.started_at IS NOT NULL
        """,
        {"node": node, "path": path},
    ).fetchone()


def kicks(
    conn: Connection,
    *,
    node: str,
    limit: int,
    stream_id: UUID | None = None,
    stream_key_id: UUID | None = None,
    broadcaster_id: UUID | None = None,
) -> list[Kick]:
    """Connections of a node that are still to be closed, oldest first; all, or those of one stream, key, broadcaster.

    A stream stands for its key: what else was ended with it is to be closed as well. What was let in again since on the
    same connection goes on.
    """
    with conn.cursor(row_factory=class_row(Kick)) as cursor:
        return cursor.execute(
            """/* streams.kicks */
            SELECT s.id AS stream_id, s.path, s.protocol, coalesce(s.source_id, s.auth_id) AS connection_id
            FROM streams AS s
            JOIN stream_keys AS k ON k.id = s.stream_key_id
            WHERE s.node = %(node)s AND s.kick_requested_at IS NOT NULL AND s.kicked_at IS NULL
              AND (%(stream_key_id)s::uuid IS NULL OR s.stream_key_id = %(stream_key_id)s::uuid)
              AND (%(broadcaster_id)s::uuid IS NULL OR k.broadcaster_id = %(broadcaster_id)s::uuid)
              AND (%(stream_id)s::uuid IS NULL
                   OR s.stream_key_id = (SELECT o.stream_key_id FROM streams AS o WHERE o.id = %(stream_id)s::uuid))
              AND NOT EXISTS (SELECT 1 FROM streams AS o
                              WHERE o.node = s.node AND o.ended_at IS NULL
                                AND (o.auth_id = s.auth_id OR o.source_id = s.source_id))
            ORDER BY s.kick_requested_at
            LIMIT %(limit)s
            """,
            {
                "node": node,
                "limit": Int8(limit),
                "stream_id": stream_id and str(stream_id),
                "stream_key_id": stream_key_id and str(stream_key_id),
                "broadcaster_id": broadcaster_id and str(broadcaster_id),
            },
        ).fetchall()


def kicked(conn: Connection, stream_id: UUID) -> None:
    """The media server has the connection of this stream no more. (Who holds its row is not waited for.)"""
    conn.execute(
        """/* streams.kicked */
        UPDATE streams SET kicked_at = clock_timestamp()
        WHERE kick_requested_at IS NOT NULL
          AND id = (SELECT o.id FROM streams AS o WHERE o.id = %(id)s FOR UPDATE SKIP LOCKED)
        """,
        {"id": stream_id},
    )


def stop(conn: Connection, stream_id: UUID, *, hold_seconds: int) -> str:
    """End a stream and hold its key for a while; 'stopped', 'already' or 'not-found'."""
    return str(
        only(
            conn,
            "/* streams.stop */ SELECT stop_stream_v1(%(id)s, %(hold_seconds)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": stream_id, "hold_seconds": Int4(hold_seconds)},
        )[0]
    )


def update(conn: Connection, stream_id: UUID, changes: dict[str, Any]) -> str:
    """Replace metadata or recording_ref; 'updated' or 'not-found'."""
    return str(
        only(
            conn,
            "/* streams.update */ SELECT update_stream_v1(%(id)s, %(changes)s) FROM acting_v1(%(actor)s)",
            {"actor": conn.acting(), "id": stream_id, "changes": Jsonb(changes)},
        )[0]
    )


def get(conn: Connection, stream_id: UUID) -> Stream | None:
    """The stream in whatever state, or None."""
    with conn.cursor(row_factory=class_row(Stream)) as cursor:
        return cursor.execute(_GET, {"id": stream_id}).fetchone()


def several(conn: Connection, stream_ids: Iterable[UUID]) -> list[Stream]:
    """Those of these streams that there are, in no order."""
    with conn.cursor(row_factory=class_row(Stream)) as cursor:
        return cursor.execute(_SEVERAL, {"ids": "\n".join(map(str, stream_ids))}).fetchall()


def version(conn: Connection) -> str:
    """The version of the live list: changes with whatever the list shows."""
    return str(only(conn, _VERSION)[0])


def live(conn: Connection, known: Container[str]) -> LiveList:
    """The live list of one snapshot; its items are those whose marks are not known already."""
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY", prepare=False)
        version, changed_at, text = only(conn, _LIVE_MARKS)
        marks = text.split("\n") if text else []
        ids = [mark[:_ID_LENGTH] for mark in marks if mark not in known]
        rows = conn.execute(_LIVE_ITEMS, {"ids": "\n".join(ids)}).fetchall() if ids else []
    return LiveList(version, changed_at, marks, [LiveItem(*row) for row in rows])


def measures(conn: Connection) -> list[Measure]:
    """What was last measured of each live stream, in no order; those that nobody measures are left out."""
    with conn.cursor(row_factory=class_row(Measure)) as cursor:
        return cursor.execute(
            """/* streams.measures */
            SELECT t.stream_id::text AS id, t.bitrate, t.tracks
            FROM streams AS s
            JOIN stream_stats AS t ON t.stream_id = s.id
            WHERE s.ended_at IS NULL AND s.started_at IS NOT NULL AND t.media IS NOT NULL
            """
        ).fetchall()


def facts(conn: Connection, stream_id: UUID) -> Facts | None:
    """What else is known of a stream in whatever state, or None.

    `key_hint` is of the value that its key has now, `hint` of the one it came in with, which may have been replaced.
    `moved_at`: when bytes last came in; `is_of_deleted`: was its broadcaster deleted?
    """
    with conn.cursor(row_factory=class_row(Facts)) as cursor:
        return cursor.execute(
            """/* streams.facts */
            SELECT s.user_agent, k.hint AS key_hint, coalesce(s.hint, k.hint) AS hint,
                   rfc3339_v1(t.moved_at) AS moved_at, b.deleted_at IS NOT NULL AS is_of_deleted
            FROM streams AS s
            JOIN stream_keys AS k ON k.id = s.stream_key_id
            JOIN broadcasters AS b ON b.id = k.broadcaster_id
            LEFT JOIN stream_stats AS t ON t.stream_id = s.id
            WHERE s.id = %(id)s
            """,
            {"id": stream_id},
        ).fetchone()


def live_filtered(conn: Connection, filters: dict[str, Any]) -> list[Stream]:
    """The active streams that match, newest first, all of them."""
    query = "/* streams.live_filtered */ " + _SHOWN + _ACTIVE + _matching(filters) + _NEWEST_STARTED
    with conn.cursor(row_factory=class_row(Stream)) as cursor:
        return cursor.execute(query.encode(), filters).fetchall()


def page(
    conn: Connection, *, status: Status, filters: dict[str, Any], limit: int, after: tuple[str, str] | None
) -> list[Stream]:
    """History: at most `limit` streams, last claimed first, after (claimed_at, id) of the one before.

    'ended' leaves out what was never live, unless `end_reason` asks. An OperationalError when it takes too long: a
    filter that few streams match may lead through all of them.
    """
    after_time, after_id = after or (None, None)
    started_only = status == "ended" and filters.get("end_reason") is None
    query = (
        "/* streams.page */ "
        + _SHOWN
        + _STATUSES[status]
        + (" AND s.started_at IS NOT NULL" if started_only else "")
        + _matching(filters)
        + (_AFTER if after else "")
        + " ORDER BY s.claimed_at DESC, s.id DESC LIMIT %(limit)s"
    )
    with bounded(conn), conn.cursor(row_factory=class_row(Stream)) as cursor:
        return cursor.execute(
            query.encode(), {**filters, "limit": Int8(limit), "after_time": after_time, "after_id": after_id}
        ).fetchall()


def _matching(filters: dict[str, Any]) -> str:
    return "".join(text for name, text in _FILTERS.items() if filters.get(name) is not None)


def trim(conn: Connection, epoch: int, *, days: int, batch: int) -> int | None:
    """Delete at most `batch` streams that ended longer ago; how many that were, None without the lead."""
    trimmed: int | None = only(
        conn,
        "/* streams.trim */ SELECT trim_history_v1(%(epoch)s::bigint, %(days)s, %(batch)s)",
        {"epoch": epoch, "days": Int4(days), "batch": Int8(batch)},
    )[0]
    return trimmed

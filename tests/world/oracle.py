"""What the service promises, as pure functions: the answer to a claim, and what may become of a stream.

It follows the text of the contract and not the code: the order of the checks, and the reasons for an end.
"""

import enum
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

# A stream that ended so and is live all the same ended by mistake: it is opened again.
MISTAKES = ("disconnected", "server_lost", "server_restarted", "never_started")
GRANTED = ("claimed", "replay")


@dataclass(eq=False)
class Broadcaster:
    """As the API was told; deleting one revokes its keys."""

    id: UUID
    is_disabled: bool = False
    is_deleted: bool = False


@dataclass(eq=False)
class Key:
    """As the API was told. Its times are of the world's clock (see `World.now`)."""

    id: UUID
    value: str
    broadcaster: Broadcaster
    path: str | None
    takeover: str
    expires_at: datetime | None = None
    hold_until: datetime | None = None
    is_disabled: bool = False
    is_revoked: bool = False
    previous_value: str | None = None
    previous_works_until: datetime | None = None

    def lost_right(self, now: datetime) -> set[str]:
        """Every end_reason that is true of it."""
        reasons = {
            "revoked": self.is_revoked,
            "expired": self.expires_at is not None and self.expires_at <= now,
            "disabled": self.is_disabled or self.broadcaster.is_disabled,
        }
        return {reason for reason, is_so in reasons.items() if is_so}

    def is_held(self, now: datetime) -> bool:
        """Is it on hold after a stop?"""
        return self.hold_until is not None and self.hold_until > now

    def is_replaced(self, value: str, now: datetime) -> bool:
        """Is this the value before the last rotation, and out?"""
        return value == self.previous_value and (self.previous_works_until or now) <= now

    def refusal(self, path: str, now: datetime, value: str) -> str | None:
        """The slug for a publish on this path with this value, by what is known of the key alone."""
        if value not in (self.value, self.previous_value):
            return "invalid-stream-key"
        if self.is_revoked or self.is_replaced(value, now):
            return "stream-key-revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "stream-key-expired"
        if self.is_disabled:
            return "stream-key-disabled"
        if self.broadcaster.is_disabled:
            return "broadcaster-disabled"
        if self.is_held(now):
            return "stream-stopped"
        return "path-not-allowed" if self.path is not None and self.path != path else None


class Row(NamedTuple):
    """A stream in the table; times of the world's clock."""

    id: UUID
    stream_key_id: UUID
    path: str
    protocol: str
    auth_id: str
    source_id: str | None
    source_type: str | None
    claimed_at: datetime
    lease_expires_at: datetime
    started_at: datetime | None
    interrupted_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None
    replaces: UUID | None
    replaced_by: UUID | None
    kick_requested_at: datetime | None
    kicked_at: datetime | None

    def __str__(self) -> str:
        said = {name: value for name, value in self._asdict().items() if value is not None}
        return " ".join(
            f"{name}={value:%H:%M:%S.%f}" if isinstance(value, datetime) else f"{name}={str(value)[:12]}"
            for name, value in said.items()
        )

    @property
    def is_open(self) -> bool:
        return self.ended_at is None

    @property
    def is_active(self) -> bool:
        return self.ended_at is None and self.started_at is not None

    @property
    def is_pending(self) -> bool:
        return self.ended_at is None and self.started_at is None


class Seen(enum.Enum):
    """What a look at a connection finds."""

    GONE = "gone"
    STILL = "still"  # listed, its bytes stand
    FLOWING = "flowing"
    UNKNOWN = "unknown"  # the server gives no answer


class Circumstances(NamedTuple):
    """What a claim depends on beside its key: all keys, the table, the media server."""

    keys: Collection[Key]
    rows: Collection[Row]
    is_api_known: bool
    look: Callable[[Row], Seen]


def claim(
    key: Key | None, path: str, connection_id: str, now: datetime, around: Circumstances, value: str | None = None
) -> set[str]:
    """Every outcome that a claim may have: 'claimed', 'replay', or a slug. More than one where time decides.

    By this value of the key; by its newest without.
    """
    if key is None:
        return {"invalid-stream-key"}
    if slug := key.refusal(path, now, value or key.value):
        return {slug}
    open_rows = [row for row in around.rows if row.is_open]
    own = [row for row in open_rows if row.stream_key_id == key.id]
    if any((row.path, row.auth_id) == (path, connection_id) for row in own):
        return {"replay"}

    def counts(row: Row) -> bool:
        return row.is_active or row.lease_expires_at > now

    if any(row.path == path and row.stream_key_id != key.id and counts(row) for row in open_rows):
        return {"path-in-use"}
    if key.path is None and any(other.path == path and not other.lost_right(now) for other in around.keys):
        return {"path-in-use"}
    pending = next((row for row in own if row.is_pending and counts(row)), None)
    if pending and not (around.is_api_known and around.look(pending) is Seen.GONE):
        return {"stream-key-in-use"}
    active = next((row for row in own if row.is_active), None)
    return {"claimed"} if active is None else _takeover(key, active, path, around)


def _takeover(key: Key, active: Row, path: str, around: Circumstances) -> set[str]:
    """May a newcomer of the same key take the place of its active stream?"""
    if not around.is_api_known:  # the newest wins, on the same path
        return {"claimed" if key.takeover != "never" and active.path == path else "stream-key-in-use"}
    if key.takeover == "always":
        return {"claimed"}
    seen = around.look(active)
    if seen is Seen.GONE:
        return {"claimed"}
    if key.takeover == "never" or seen is Seen.FLOWING:
        return {"stream-key-in-use"}
    if seen is Seen.STILL:
        return {"claimed"}
    return {"claimed", "stream-key-in-use"}  # as the last samples were, which are a moment old or more


class Happening(NamedTuple):
    """What one step did, as far as an end of a stream may follow from it.

    `stopped`: streams that were to be stopped. `is_tick`: a reconciler looked. `is_api_lost`: its server was away for
    two ticks, or for long. `is_another_run`: and it has not seen this run of it before. `unnamed`: paths
    whose end was told by a hook without a connection, while nobody could be asked.
    """

    stopped: Collection[UUID] = ()
    is_tick: bool = False
    is_api_lost: bool = False
    is_another_run: bool = False
    unnamed: Collection[str] = ()


class Publishing(NamedTuple):
    """The truth about the connection of a stream."""

    is_connected: bool
    is_live: bool
    was_live: bool


def may_have_ended(
    row: Row, key: Key, of: Publishing, now: datetime, rows: Iterable[Row], happening: Happening
) -> bool:
    """Is the reason of this end one that follows from what happened?"""
    match row.end_reason:
        case "revoked" | "expired" | "disabled" as reason:
            return reason in key.lost_right(now)
        case "stopped":
            return row.id in happening.stopped
        case "superseded":
            by = next((other for other in rows if other.id == row.replaced_by), None)
            return (
                by is not None
                and by.started_at is not None
                and (by.stream_key_id == row.stream_key_id or by.path == row.path)
            )
        case "disconnected":
            return (of.was_live and not of.is_live) or row.path in happening.unnamed
        case "never_started":
            is_lost = happening.is_tick and happening.is_api_lost
            return row.lease_expires_at <= now or not of.is_connected or is_lost
        case "server_restarted":
            return happening.is_tick and happening.is_another_run and not of.is_live
        case "server_lost":
            return happening.is_tick and happening.is_api_lost
    return False


def may_be_closed(row: Row | None, key: Key | None, now: datetime, rows: Collection[Row]) -> bool:
    """May the service close the connection of this stream? `rows` is the table before and after."""
    if row is None or key is None:
        return True  # nobody let it in
    if key.lost_right(now):
        return True
    if row.is_open:
        return False
    if row.end_reason not in MISTAKES or (row.kick_requested_at is not None and row.end_reason == "never_started"):
        return True
    if key.is_held(now) or (key.path is not None and key.path != row.path):
        return True
    # It ended by mistake, and another has its key or its path by now.
    return any(
        other.id != row.id and other.is_open and (other.stream_key_id == row.stream_key_id or other.path == row.path)
        for other in rows
    )


# What may differ in a row that has ended and stays so.
_OF_AFTERWARDS = {"replaced_by", "kick_requested_at", "kicked_at"}
_NEVER_ANOTHER = ("id", "stream_key_id", "path", "protocol", "auth_id", "claimed_at", "lease_expires_at")


def wrong_change(before: Row, after: Row | None, happening: Happening) -> str | None:
    """What is wrong with what became of a row in one step; None when nothing is."""
    if after is None:
        return "it is gone"
    for name in _NEVER_ANOTHER:
        if getattr(before, name) != getattr(after, name):
            return f"its {name} is another"
    if before.started_at is not None and after.started_at != before.started_at:
        return "it started twice"
    if before.is_open:
        return None
    if after.is_open:
        if not happening.is_tick:
            return "it was opened again, and not by the reconciler"
        return None if before.end_reason in MISTAKES else "it ended on purpose and was opened again"
    changed = {name for name, value in after._asdict().items() if value != getattr(before, name)}
    if before.protocol == "rtsp" and before.source_id is None:
        changed -= {"source_id", "source_type"}  # its session was found, see the design on RTSP before v1.19.3
    if before.replaced_by is not None and "replaced_by" in changed:
        return "it was replaced twice"
    return f"it has ended and changed: {sorted(changed - _OF_AFTERWARDS)}" if changed - _OF_AFTERWARDS else None


def wrong_row(row: Row) -> str | None:
    """What is wrong with a row by itself; None when nothing is."""
    if (row.ended_at is None) != (row.end_reason is None):
        return "an end without a reason, or the reverse"
    if row.ended_at is not None and row.ended_at < (row.started_at or row.claimed_at):
        return "it ended before it began"
    if row.started_at is not None and row.started_at < row.claimed_at:
        return "it started before its claim"
    if row.is_active and row.source_id is None:
        return "it is active without a connection"
    return None


def wrong_crowd(rows: Iterable[Row]) -> str | None:
    """Two open streams where there may be one of each kind, or two keys on a path; None when nothing is wrong."""
    taken: set[tuple[Any, bool]] = set()
    holders: dict[str, UUID] = {}
    for row in rows:
        if not row.is_open:
            continue
        if holders.setdefault(row.path, row.stream_key_id) != row.stream_key_id:
            return f"two keys on {row.path}"
        for what in (row.stream_key_id, row.path):
            if (what, row.is_active) in taken:
                return f"two {'active' if row.is_active else 'pending'} streams of {what}"
            taken.add((what, row.is_active))
    return None


def later(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=seconds)

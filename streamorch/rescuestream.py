"""Taking over from rescuestream-api: what its broadcasters, keys and streams become here.

There a path is a key, and keys stand in the clear; here a key is a hash, and no path holds one. What is written is
only ever added, or a key taken back: a second run adds nothing, and one that was broken off goes on.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import msgspec

from streamorch import keys, mediamtx
from streamorch.repositories import Connection, rescuestream, stream_keys
from streamorch.repositories.rescuestream import Old, OldKey, OldStream

_BATCH = 1000
_REDACTED = "sk_[redacted]"
_LONGEST_REF = 512
# Of a shorter value the last four letters would tell too much.
_SHORTEST_HINTED = 12
_PROTOCOLS = {
    source_type: protocol
    for source_type, name in mediamtx.SOURCE_LISTS.items()
    for protocol, names in mediamtx.LISTS.items()
    if name in names
}


class Report(msgspec.Struct):
    """What was copied, or would be: numbers of rows, and what an operator should know of.

    `live_streams` were left out. `same_value`: keys that have the value of another, which stands for them, by their
    ids. `other_value`: ids of keys under which another key is here. `redacted`: streams in which a key was blotted out.
    """

    dry_run: bool
    broadcasters: int = 0
    broadcasters_known: int = 0
    stream_keys: int = 0
    stream_keys_known: int = 0
    stream_keys_revoked: int = 0
    streams: int = 0
    streams_known: int = 0
    streams_orphaned: int = 0
    live_streams: int = 0
    redacted: int = 0
    same_value: dict[UUID, UUID] = msgspec.field(default_factory=dict)
    other_value: list[UUID] = msgspec.field(default_factory=list)


def copy(
    old: Old, conn: Connection, *, dry_run: bool, progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Copy what is missing here; with `dry_run` only say what it would be.

    `progress` hears how many streams are done, and of how many. Any psycopg.Error leaves what was copied before, and
    the next run goes on from there.
    """
    report = Report(dry_run)
    _copy_broadcasters(old, conn, report)
    old_keys = rescuestream.old_keys(old)
    new_ids = _copy_keys(old_keys, conn, report)
    values = frozenset(key.value for key in old_keys)
    total, report.live_streams = rescuestream.count_streams(old)
    done = 0
    for batch in rescuestream.old_streams(old, batch=_BATCH):
        _copy_streams(batch, conn, report, new_ids=new_ids, values=values)
        done += len(batch)
        progress(done, total)
    return report


def _copy_broadcasters(old: Old, conn: Connection, report: Report) -> None:
    known = rescuestream.known_broadcasters(conn)
    found = rescuestream.old_broadcasters(old)
    new = [row for row in found if row["id"] not in known]
    for row in new:
        row["display_name"] = keys.redact(row["display_name"]) or "(no name)"
        row["metadata"] = keys.redact(row["metadata"])
    report.broadcasters = len(new)
    report.broadcasters_known = len(found) - len(new)
    for batch in () if report.dry_run else _batches(new):
        rescuestream.add_broadcasters(conn, batch)


def _copy_keys(found: list[OldKey], conn: Connection, report: Report) -> dict[UUID, UUID]:
    """The ids that the old ones have here; of a key that is left out there is none."""
    known = rescuestream.known_keys(conn)
    # A value that was replaced here since the last run is still the key's own, and nobody else's.
    hashes = {key.id: {key.key_hash, key.previous_key_hash} for key in known}
    ids = {value: key.id for key in known for value in hashes[key.id] if value}
    revoked = {key.id for key in known if key.is_revoked}
    new: list[dict[str, Any]] = []
    new_ids: dict[UUID, UUID] = {}
    for key in found:
        digest = keys.digest(key.value)
        is_revoked = key.status == "revoked" or key.revoked_at is not None
        if digest not in hashes.get(key.id, {digest}):
            report.other_value.append(key.id)
            continue
        same = new_ids[key.id] = ids.setdefault(digest, key.id)
        if same != key.id:
            report.same_value[key.id] = same
        elif key.id in hashes:
            report.stream_keys_known += 1
        else:
            new.append(_new_key(key, digest, is_revoked))
        if is_revoked and same in hashes and same not in revoked:
            # It was taken back there since the last run.
            report.stream_keys_revoked += 1
            revoked.add(same)
            if not report.dry_run:
                stream_keys.revoke(conn, same)
    report.stream_keys = len(new)
    for batch in () if report.dry_run else _batches(new):
        rescuestream.add_keys(conn, batch)
    return new_ids


def _new_key(key: OldKey, digest: bytes, is_revoked: bool) -> dict[str, Any]:
    return {
        "id": key.id,
        "broadcaster_id": key.broadcaster_id,
        "key_hash": digest.hex(),
        "hint": keys.hint(key.value) if len(key.value) >= _SHORTEST_HINTED else "",
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
        "is_expired": key.status == "expired",
        "is_revoked": is_revoked,
    }


def _copy_streams(
    batch: list[OldStream], conn: Connection, report: Report, *, new_ids: dict[UUID, UUID], values: frozenset[str]
) -> None:
    rows = []
    for stream in batch:
        if stream.stream_key_id not in new_ids:
            report.streams_orphaned += 1
            continue
        row = stream._asdict() | {
            "stream_key_id": new_ids[stream.stream_key_id],
            "path": _without_keys(stream.path, values),
            "protocol": _PROTOCOLS.get(stream.source_type or "", "unknown"),
            "source_id": stream.source_id or None,
            "metadata": keys.redact(stream.metadata),
            "recording_ref": stream.recording_ref and _without_keys(stream.recording_ref, values)[:_LONGEST_REF],
        }
        report.redacted += any(row[name] != getattr(stream, name) for name in ("path", "metadata", "recording_ref"))
        rows.append(row)
    if report.dry_run:
        added = len(rows) - rescuestream.count_known_streams(conn, [row["id"] for row in rows])
    else:
        added = rescuestream.add_streams(conn, rows)
    report.streams += added
    report.streams_known += len(rows) - added


def _without_keys(text: str, values: frozenset[str]) -> str:
    """Everything of a key's form is blotted out, and each part of a path that is a key of whatever form."""
    parts = re.split(r"([/\\])", keys.redact(text))
    return "".join(_REDACTED if part in values else part for part in parts)


def _batches(rows: list[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    return (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH))

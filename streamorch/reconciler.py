"""The reconciler: every two seconds the table is held against the media server, and set right.

Hooks are hints and may be lost. What ends here has been seen to be gone; absence of news ends nothing. One thread of
one worker of all instances does it, the leader; every other waits to take over.
"""

import logging
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg

from streamorch import keys, kicks
from streamorch.mediamtx import (
    LISTS,
    RTSP_CONNECTIONS,
    SOURCE_LISTS,
    Connection,
    ControlAPI,
    Info,
    NoAnswer,
    Path,
    Refused,
    Unauthorized,
)
from streamorch.metrics import Metrics
from streamorch.repositories import NODE, PatientConnection, audit, connect, decisions, nodes, reconciliation, streams
from streamorch.repositories.reconciliation import Change, Known, Lead, Publishers
from streamorch.settings import Settings
from streamorch.spans import Tracer, span

T = TypeVar("T")

log = logging.getLogger(__name__)

_LEASE_SECONDS = 4.0
_INFO_SECONDS = 1.0
_LISTS_SECONDS = 2.0
# The list of paths waits while the server waits for an answer of ours, which takes 2.8 s at most.
_PATHS_SECONDS = 3.0
_KICKS_SECONDS = 2.0
_KICKS = 100
_UNKNOWN_KICKS = 5
_DEAF_SECONDS = 60.0
_TRIM_SECONDS = 60.0
_TRIM_ROWS = 1000
_TRIM_STREAMS = 500
_MAX_BYTES = 2**63 - 1
_MAX_ID = 255


@dataclass
class Report:
    """What one tick saw and did."""

    node: str
    api: str = "ok"
    version: str | None = None
    paths: int | None = None
    live: int = 0
    strangers: int = 0
    unclaimed: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    change_count: int = 0
    kicked: int = 0
    lost: int = 0
    seconds: float = 0.0


class LostLead(Exception):
    """Another process leads, or the lease ran out in the middle of a tick: what it saw is void."""


class Reconciler:
    """Ticks as long as it leads. Nothing that it keeps in memory must survive a change of the leader."""

    def __init__(
        self, settings: Settings, api: ControlAPI, metrics: Metrics | None = None, tracer: Tracer | None = None
    ):
        self._settings = settings
        self._api = api
        self._metrics = metrics
        self._tracer = tracer
        self._holder = uuid.uuid4().hex
        self._lease_seconds = max(_LEASE_SECONDS, 2 * settings.reconcile_seconds)
        self._stopping = threading.Event()
        self._is_told_to_stop = False
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._lead: Lead | None = None
        self._leads_until = 0.0
        self._missing: list[uuid.UUID] = []
        self._tracks: dict[str, bytes] = {}
        self._kicks_tried: dict[uuid.UUID, int] = {}
        self._deaf_checked_at = 0.0
        self._trimmed_at = -_TRIM_SECONDS

    def start(self) -> None:
        """Begin to tick in a thread of its own."""
        self._thread.start()

    def begin_to_stop(self) -> None:
        """End after the request that is under way, and let another lead at once; in a signal handler, too."""
        # A second signal in the middle of `set` would wait for the lock that this very thread holds.
        if not self._is_told_to_stop:
            self._is_told_to_stop = True
            self._stopping.set()

    def stop(self) -> None:
        """As `begin_to_stop`, and wait for the end."""
        self.begin_to_stop()
        if self._thread.is_alive():
            self._thread.join(_INFO_SECONDS + _LISTS_SECONDS)

    def _run(self) -> None:
        conn: PatientConnection | None = None
        is_away = False
        while not self._stopping.is_set():
            began = time.monotonic()
            if self._metrics is not None:
                self._metrics.tell_pool()
            result: str | None = None
            try:
                conn = conn or connect(self._settings.database_url)
                report = self.tick(conn)
                is_away = False
                result = None if report is None else report.api
            except LostLead:
                result = "lost-lead"
            except psycopg.OperationalError as error:
                if not is_away:
                    log.error("the reconciler waits for the database", extra={"reason": type(error).__name__})
                is_away = True
                result = "database-unavailable"
            except Exception:
                log.exception("a tick of the reconciler failed")
                result = "failed"
            if self._metrics is not None and result is not None:
                self._metrics.ticked(result, time.monotonic() - began)
            if conn is not None and conn.closed:
                conn = None
            pause = self._settings.reconcile_seconds if self._lead else min(1.0, self._settings.reconcile_seconds)
            self._stopping.wait(max(0.1, pause - (time.monotonic() - began)))
        if conn is not None:
            with suppress(psycopg.Error):
                self.resign(conn)
            conn.close()

    def resign(self, conn: PatientConnection) -> None:
        """Give the lead away."""
        if self._lead is not None:
            reconciliation.resign(conn, self._lead.epoch)
            self._lead = None
            self._tell_lead(0.0)

    def tick(self, conn: PatientConnection, *, force: bool = False) -> Report | None:
        """Hold the table against the media server once; None while another process leads.

        `force` takes the lead from whoever has it. LostLead, psycopg.OperationalError.
        """
        began = time.monotonic()
        lead = self._confirm(conn, force=force)
        if lead is None:
            return None
        with span(self._tracer, "reconcile", node=NODE) as told:
            report = self._round(conn, lead)
            report.seconds = time.monotonic() - began
            told.tell(outcome=report.api, live=report.live, changes=report.change_count, kicked=report.kicked)
        return report

    def _round(self, conn: PatientConnection, lead: Lead) -> Report:
        """What a leader does in a tick."""
        report = Report(NODE)
        report.changes = _led(reconciliation.settle(conn, lead.epoch))
        report.change_count = len(report.changes)
        known = reconciliation.known(conn, NODE)
        is_there = False
        try:
            info = self._api.info(seconds=_INFO_SECONDS)
            is_there = True
            self._compare(conn, known, info, report)
        except NoAnswer as error:
            self._note_failure(conn, known, error, report, is_there=is_there or isinstance(error, Unauthorized))
        if is_there:
            self._carry_out_kicks(conn, report)
        self._note_deafness(conn)
        for change in report.changes:
            log.info("reconciled", extra={"outcome": change.what, "stream_id": change.stream_id, "path": change.path})
        self._trim(conn)
        if self._metrics is not None:
            known_ids = {entry["source_id"] for entry in known.unclaimed} if known else set()
            newcomers = sum(entry["source_id"] not in known_ids for entry in report.unclaimed)
            self._metrics.drifted(report.changes, count=report.change_count, unclaimed=newcomers)
        return report

    def _confirm(self, conn: PatientConnection, *, force: bool = False) -> Lead | None:
        """Take or keep the lead for the length of a lease; in a new epoch nothing is remembered. LostLead."""
        if self._stopping.is_set():
            raise LostLead
        asked_at = time.monotonic()
        lead = reconciliation.lead(conn, holder=self._holder, seconds=self._lease_seconds, force=force)
        if lead is None or self._lead is None or lead.epoch != self._lead.epoch:
            self._missing = []
            self._tracks = {}
            if (lead is None) != (self._lead is None):
                log.info("this process leads" if lead else "another process leads")
        self._lead = lead
        self._leads_until = asked_at + self._lease_seconds
        self._tell_lead(self._leads_until if lead else 0.0)
        return lead

    def _tell_lead(self, until: float) -> None:
        if self._metrics is not None:
            self._metrics.leads(until)

    def _keep(self, conn: PatientConnection) -> Lead:
        """The same lead once more, after the media server took its time. LostLead."""
        before = self._lead
        lead = self._confirm(conn)
        if lead is None or before is None or lead.epoch != before.epoch:
            raise LostLead
        return lead

    # --- one snapshot -----------------------------------------------------------------------------------------

    def _compare(self, conn: PatientConnection, known: Known | None, info: Info, report: Report) -> None:
        """Ask for everything, then let the database draw the conclusions. NoAnswer: no list of paths."""
        snapshot = self._keep(conn).moment
        asked_at = time.monotonic()
        connections, report.unknown = self._connections(info)
        sampled_at = snapshot + timedelta(seconds=time.monotonic() - asked_at)
        self._keep(conn)
        paths = self._api.paths(seconds=_PATHS_SECONDS)
        epoch = self._keep(conn).epoch

        live = [(path, source_id) for path in paths if (source_id := path.publisher_id) is not None]
        started_at = _moment(info.started)
        report.version, report.paths, report.live = info.version, len(paths), len(live)
        publishers = Publishers(
            ids=[source_id for _, source_id in live],
            auth_ids=_auth_ids(live, connections, info),
            paths=[path.name for path, _ in live],
            types=[path.source_type for path, _ in live],
        )
        _check(info, connections, publishers)
        present = {found.id for items in connections.values() for found in items}.union(publishers.ids)
        self._note_interruptions(conn, epoch, snapshot, publishers, present, report)
        restarted = _has_restarted(known, started_at, connections)
        strangers = self._set_right(conn, epoch, snapshot, publishers, list(present), report, restarted=restarted)
        self._observe(conn, epoch, sampled_at, live, connections, strangers)
        reconciliation.answered(
            conn,
            epoch,
            node=NODE,
            version=info.version,
            started_at=started_at,
            snapshot_at=snapshot,
            is_complete=not report.unknown,
        )
        if known is None or known.api_state != "ok":
            log.info("the media server answers", extra={"node": NODE, "version": info.version})
        report.unclaimed = self._judge_strangers(conn, epoch, known, snapshot, strangers, publishers, report)
        if report.unclaimed != (known.unclaimed if known else []):
            reconciliation.note_unclaimed(conn, epoch, node=NODE, unclaimed=report.unclaimed)

    def _connections(self, info: Info) -> tuple[dict[str, list[Connection]], list[str]]:
        """Every list by its name, and the protocols of those that gave no answer: unknown is not empty."""
        found: dict[str, list[Connection]] = {}
        unknown: list[str] = []
        deadline = time.monotonic() + _LISTS_SECONDS
        for protocol, names in LISTS.items():
            if protocol == "rtsp" and not info.names_rtsp_sessions:
                names = (*names, *RTSP_CONNECTIONS)
            for name in names:
                if self._stopping.is_set():  # our own answers to what the server asks back may be over
                    raise LostLead
                try:
                    # When the time is over the rest is hardly asked for at all.
                    seconds = max(0.05, min(1.0, deadline - time.monotonic()))
                    found[name] = self._api.connections(name, seconds=seconds)
                except NoAnswer:
                    unknown.append(protocol)
                    break
        return found, unknown

    def _note_interruptions(
        self,
        conn: PatientConnection,
        epoch: int,
        snapshot: datetime,
        publishers: Publishers,
        present: set[str],
        report: Report,
    ) -> None:
        """Of streams whose successor is on its way: what is live goes on, whatever was told, and what is gone does not.

        Nothing of an end that was no end stays, so that the stream does not end with its successor. And one that is
        gone waits for those that were on their way by then, and not for whoever tries next.
        """
        live = set(publishers.ids)
        awaiting = reconciliation.awaiting(conn, node=NODE)
        if resumed := [stream.id for stream in awaiting if stream.is_interrupted and stream.source_id in live]:
            reconciliation.resume(conn, epoch, resumed)
        gone = [
            stream.id
            for stream in awaiting
            if not stream.is_interrupted and stream.source_id not in present and stream.protocol not in report.unknown
        ]
        if gone:
            reconciliation.interrupt(conn, epoch, snapshot_at=snapshot, stream_ids=gone)

    def _set_right(
        self,
        conn: PatientConnection,
        epoch: int,
        snapshot: datetime,
        publishers: Publishers,
        present: list[str],
        report: Report,
        *,
        restarted: bool,
    ) -> list[str]:
        """Start and end streams; returns the live ids that are no open stream's."""
        more = True
        while more:
            outcome = _led(
                reconciliation.reconcile(
                    conn,
                    epoch,
                    node=NODE,
                    snapshot_at=snapshot,
                    present=present,
                    known=[protocol for protocol in LISTS if protocol not in report.unknown],
                    live=publishers,
                    missing_before=self._missing,
                    restarted=restarted,
                )
            )
            report.changes += outcome.changes
            report.change_count += outcome.change_count
            # What could not be had because somebody else held it would come back for ever.
            more = outcome.more and outcome.change_count > 0
            self._keep(conn)
        self._missing = outcome.missing
        report.strangers = outcome.stranger_count
        return outcome.strangers

    def _observe(
        self,
        conn: PatientConnection,
        epoch: int,
        sampled_at: datetime,
        live: list[tuple[Path, str]],
        connections: dict[str, list[Connection]],
        strangers: list[str],
    ) -> None:
        """Write down viewers, bytes and tracks; tracks only where they are not what was written last."""
        received = {found.id: found.received for name in SOURCE_LISTS.values() for found in connections.get(name, ())}
        # JSON holds no line break but between its parts.
        tracks = {source_id: path.described_tracks.replace(b"\n", b" ") for path, source_id in live}
        before, self._tracks = self._tracks, {}  # nothing, should the statement fail
        unwritten = reconciliation.observe(
            conn,
            epoch,
            node=NODE,
            sampled_at=sampled_at,
            source_ids=[source_id for _, source_id in live],
            viewers=[path.viewers for path, _ in live],
            received=[_storable(received.get(source_id)) for _, source_id in live],
            tracks=[None if before.get(of) == described else described.decode() for of, described in tracks.items()],
        )
        for source_id in {*strangers, *unwritten}:
            tracks.pop(source_id, None)
        self._tracks = tracks

    # --- what is live and should not be, or is not listed and should be ---------------------------------------

    def _judge_strangers(
        self,
        conn: PatientConnection,
        epoch: int,
        known: Known | None,
        snapshot: datetime,
        strangers: list[str],
        publishers: Publishers,
        report: Report,
    ) -> list[dict[str, Any]]:
        """Reopen what ended by mistake, close what ended on purpose; returns what nobody ever claimed."""
        wanted = set(strangers)
        rows = [row for row in zip(*publishers, strict=True) if row[0] in wanted]
        by_id = {source_id: (auth_id, path, kind) for source_id, auth_id, path, kind in rows}
        found = reconciliation.strangers(
            conn,
            node=NODE,
            snapshot_at=snapshot,
            source_ids=list(by_id),
            auth_ids=[auth_id or source_id for source_id, (auth_id, _, _) in by_id.items()],
        )
        closing = []
        for number, stranger in enumerate(found):
            if stranger.stream_id is None:
                continue
            if number % 100 == 99:  # each is a transaction of its own
                self._keep(conn)
            if not stranger.is_mistake:
                closing.append(stranger.stream_id)
                continue
            _, path, kind = by_id[stranger.source_id]
            outcome = reconciliation.reopen(
                conn, epoch, stranger.stream_id, source_type=kind, source_id=stranger.source_id
            )
            if outcome == "not-leading":
                raise LostLead
            if outcome == "busy":  # until the next tick
                continue
            report.changes.append(Change(outcome, stranger.stream_id, path))
            report.change_count += 1
        if closing:
            reconciliation.request_kicks(conn, epoch, closing)

        before = {entry["source_id"]: entry for entry in known.unclaimed} if known else {}
        unclaimed = []
        for stranger in found:
            if stranger.stream_id is not None:
                continue
            auth_id, path, kind = by_id[stranger.source_id]
            if auth_id is None and reconciliation.name_rtsp_session(
                conn, epoch, node=NODE, path=path, source_type=kind, source_id=stranger.source_id
            ):
                continue  # it is closed with the others
            entry = before.get(stranger.source_id)
            if entry is None:
                entry = {
                    "path": keys.redact(path),  # where the path was the key, it is not shown
                    "source_type": kind,
                    "source_id": stranger.source_id,
                    "since": _text(snapshot),
                    "is_newcomer": auth_id is not None and self._is_watched(known),
                }
                log.warning("a live publisher that nobody claimed", extra=entry)
            unclaimed.append(entry)
        if 2 * report.strangers <= report.live:
            self._kick_unclaimed(unclaimed, {of: path for of, (_, path, _) in by_id.items()})
        elif any(entry["is_newcomer"] for entry in unclaimed) and self._settings.unknown_publishers == "kick":
            log.error("most live publishers are unknown: none is kicked", extra={"count": report.strangers})
        return unclaimed

    def _is_watched(self, known: Known | None) -> bool:
        """Would a publisher that was there before our first answer in this run of the server have been seen before?

        Only what comes under our eyes may be called unauthorised: a database that was emptied or restored knows nothing
        of those who are rightfully live.
        """
        return (
            known is not None
            and known.last_tick_at is not None
            and known.last_tick_age is not None
            and known.last_tick_age <= max(10.0, 5 * self._settings.reconcile_seconds)
            and known.first_claim_at is not None
            and known.first_claim_at < known.last_tick_at
        )

    def _kick_unclaimed(self, unclaimed: list[dict[str, Any]], paths: dict[str, str]) -> None:
        newcomers = [entry for entry in unclaimed if entry["is_newcomer"]]
        if self._settings.unknown_publishers != "kick" or not newcomers:
            return
        for entry in newcomers[:_UNKNOWN_KICKS]:
            if time.monotonic() >= self._leads_until:
                return
            protocol = next(of for of, names in LISTS.items() if SOURCE_LISTS[entry["source_type"]] in names)
            log.warning("kicking a publisher that nobody claimed", extra=entry)
            try:
                self._api.close(protocol, entry["source_id"], paths[entry["source_id"]], seconds=_INFO_SECONDS)
            except NoAnswer as error:
                log.warning("kick without an answer", extra=entry | {"reason": str(error)})
                return

    def _carry_out_kicks(self, conn: PatientConnection, report: Report) -> None:
        """Close what was ended on purpose, as long as this process leads for sure."""
        until = min(self._leads_until, time.monotonic() + _KICKS_SECONDS)
        wanted = streams.kicks(conn, node=NODE, limit=_KICKS)
        if time.monotonic() > until:
            return
        # Those that did not work before wait until the others had their turn.
        tried = {kick.stream_id: self._kicks_tried.get(kick.stream_id, 0) for kick in wanted}
        wanted.sort(key=lambda kick: tried[kick.stream_id])
        for kick, is_gone in kicks.carry_out(self._api, wanted, self._metrics, self._tracer):
            tried[kick.stream_id] += 1
            if is_gone:
                streams.kicked(conn, kick.stream_id)
                report.kicked += 1
            if time.monotonic() > until or self._stopping.is_set():
                break
        self._kicks_tried = tried

    # --- no news ----------------------------------------------------------------------------------------------

    def _note_failure(
        self, conn: PatientConnection, known: Known | None, error: NoAnswer, report: Report, *, is_there: bool
    ) -> None:
        """Write down that the media server cannot be asked; its streams are lost when it was there and stays away."""
        report.api = (
            "refused" if isinstance(error, Refused) else "unauthorized" if isinstance(error, Unauthorized) else "silent"
        )
        epoch = self._keep(conn).epoch
        report.lost = _led(reconciliation.failed(conn, epoch, node=NODE, state=report.api, is_there=is_there))
        if known is None or known.api_state != report.api:
            log.warning(
                "the Control API of the media server cannot be asked",
                extra={"node": NODE, "reason": f"{report.api}: {error}"},
            )
        if report.lost:
            log.error("the media server is lost", extra={"node": NODE, "count": report.lost})

    def _trim(self, conn: PatientConnection) -> None:
        """Let go of what is too old or too much, once a minute, and at each tick while there is more."""
        if time.monotonic() - self._trimmed_at < _TRIM_SECONDS:
            return
        epoch = self._keep(conn).epoch
        days, rows = self._settings.decision_days, self._settings.decision_rows
        is_more = _led(decisions.trim(conn, epoch, days=days, rows=rows, batch=_TRIM_ROWS)) == _TRIM_ROWS
        if days := self._settings.audit_days:
            is_more |= _led(audit.trim(conn, epoch, days=days, batch=_TRIM_ROWS)) == _TRIM_ROWS
        if days := self._settings.history_days:
            is_more |= _led(streams.trim(conn, epoch, days=days, batch=_TRIM_STREAMS)) == _TRIM_STREAMS
        if not is_more:
            self._trimmed_at = time.monotonic()

    def _note_deafness(self, conn: PatientConnection) -> None:
        """Say once a minute that streams can never become live: no hook comes, and nobody can be asked."""
        if time.monotonic() - self._deaf_checked_at < _DEAF_SECONDS:
            return
        self._deaf_checked_at = time.monotonic()
        for node in nodes.every(conn, default=NODE):
            if node.is_deaf:
                log.error(
                    "claims, but neither hooks nor a Control API: streams of this node never become live",
                    extra={"node": node.name},
                )


def _auth_ids(
    live: Iterable[tuple[Path, str]], connections: dict[str, list[Connection]], info: Info
) -> list[str | None]:
    """The id by which auth knows each publisher: that of the lists, but for RTSP before v1.19.3.

    There it is the connection's, which v1.11 and later give with the session; None in what is older.
    """
    by_session = {
        found.session: found.id for name in RTSP_CONNECTIONS for found in connections.get(name, ()) if found.session
    }
    if info.names_rtsp_sessions:
        return [source_id for _, source_id in live]
    return [
        by_session.get(source_id) if SOURCE_LISTS[path.source_type] in LISTS["rtsp"] else source_id
        for path, source_id in live
    ]


def _has_restarted(known: Known | None, started_at: datetime | None, connections: dict[str, list[Connection]]) -> bool:
    """Is it another run of the server than at the last tick that saw everything?

    Before v1.15.2 it does not tell: one that was refused at the tick before, and has no connection now.
    """
    if known is None:
        return False
    if started_at is None:
        return known.api_state == "refused" and not any(connections.values())
    return known.started_at is not None and known.started_at != started_at


def _led(found: T | None) -> T:
    """What a statement of the leader gave; LostLead when it gave nothing."""
    if found is None:
        raise LostLead
    return found


def _storable(number: int | None) -> int | None:
    return None if number is None else min(number, _MAX_BYTES)


def _check(info: Info, connections: dict[str, list[Connection]], publishers: Publishers) -> None:
    """NoAnswer when the server contradicts itself, or uses words that no MediaMTX uses and no table can hold."""
    ids = [found.id for items in connections.values() for found in items]
    ids += publishers.ids
    # Names go to the database as lines.
    names = [*ids, *publishers.paths, *publishers.types]
    if any("\x00" in name or "\n" in name for name in names) or "\x00" in (info.version or ""):
        raise NoAnswer("a name that is none")
    if max(map(len, ids), default=0) > _MAX_ID or len(set(publishers.ids)) < len(publishers.ids):
        raise NoAnswer("an id that is none, or of two publishers")


def _moment(text: str | None) -> datetime | None:
    """A time of MediaMTX, which has nanoseconds; None when it cannot be read."""
    try:
        found = datetime.fromisoformat(text or "")
        return found.astimezone(UTC) if found.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

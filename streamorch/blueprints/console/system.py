"""System: is all well, with which settings, what does the doctor say, and who changed what."""

import re
import statistics
import textwrap
import threading
import time
from typing import Any, NamedTuple
from uuid import UUID

import flask
import msgspec
import psycopg

from streamorch import __version__, doctor
from streamorch.blueprints import Cursor, Service, Word, after, one_page, query, service
from streamorch.blueprints.console import data, operator, page, room, stream_url
from streamorch.blueprints.console.words import shown
from streamorch.contract import aside
from streamorch.doctor.facts import Finding, Health
from streamorch.doctor.verdicts import shown as without_credentials
from streamorch.objects import MediaServer, media_server
from streamorch.problems import Problem
from streamorch.repositories import NODE, Connection, audit, diagnosis, gauges, migrate, nodes, ping, reconciliation
from streamorch.repositories.audit import Change
from streamorch.repositories.diagnosis import State
from streamorch.repositories.gauges import NodeState
from streamorch.repositories.reconciliation import Leader
from streamorch.settings import Settings

bp = room("system")

_STARTED = time.time()
_ROUND_TRIPS = 3
_CHANGES = 20
_DOCTOR_SECONDS = 10
_AT_WORK = threading.Lock()
_WORST_FIRST: tuple[Health, ...] = ("wrong", "unknown", "warning", "skipped", "ok")
# Where each of the lines that mend begins, in what a finding says.
_MENDS = re.compile(r"^(?:or )?(?=in mediamtx\.yml:|in the environment: |run: )", re.MULTILINE)


class Database(NamedTuple):
    """What is known of the database; `place` is None when it does not answer, `not_applied` the migrations it lacks."""

    place: str | None
    milliseconds: float = 0.0
    state: State | None = None
    not_applied: tuple[str, ...] = ()
    schema_error: str | None = None


class Watched(NamedTuple):
    """A media server, and what is open on it."""

    node: MediaServer
    open: NodeState | None


class Mend(NamedTuple):
    """Lines that mend something, and where they belong."""

    where: str
    lines: str


class WhichChanges(msgspec.Struct, frozen=True):
    """The query of the changes."""

    kind: audit.Kind | None = None
    subject_id: UUID | None = None
    who: Word | None = None
    cursor: Cursor | None = None


@bp.get("/system")
@aside
def index() -> flask.Response:
    """The page; without a database as well."""
    told = _state(service())
    if operator().may_administer:
        wanted = query(WhichChanges)
        filters: dict[str, Any] = {name: getattr(wanted, name) for name in ("kind", "subject_id", "who")}
        last = after(wanted.cursor, filters)
        told |= {"wanted": wanted, "changes": None, "cursor": None, "is_filtered": any(filters.values())}
        if told["is_current"]:
            try:
                with service().database.connection() as conn:
                    found = audit.page(conn, filters=filters, limit=_CHANGES + 1, after=last)
            except psycopg.OperationalError:
                found = None
            if found is not None:
                told["changes"], told["cursor"] = one_page(
                    found, _CHANGES, filters, lambda change: (change.changed_at, change.id)
                )
    of = service().settings
    told |= {"settings": _settings(of), "advice": of.advice(), "has_hands": of.workers * of.threads > 1}
    return page("system.html", **told, members=members, subject_url=_subject_url)


@bp.get("/system/state")
@aside
def state() -> flask.Response:
    """The part of the page that changes by itself, for its script."""
    return data({"html": flask.render_template("console/system_state.html", **_state(service()))})


@bp.get("/system/doctor")
@aside
def examine() -> flask.Response:
    """Have the doctor look, within ten seconds: it changes nothing, but asks everybody. For who may operate.

    A page; for the script of the system's page the findings alone.
    """
    of = service()
    if not operator().may_operate:
        raise Problem("forbidden", "this needs the scope operate: the doctor asks others in the name of the service")
    if of.settings.workers * of.settings.threads < 2:
        raise Problem("conflict", "a service with one thread cannot answer its doctor: run streamorch doctor")
    if not _AT_WORK.acquire(blocking=False):
        raise Problem("rate-limited", "the doctor is at work already", retry_after=_DOCTOR_SECONDS)
    try:
        findings = doctor.examine_running(of.settings)
    finally:
        _AT_WORK.release()
    findings.sort(key=lambda finding: _WORST_FIRST.index(finding.state))
    count = sum(finding.state == "wrong" for finding in findings)
    told: dict[str, Any] = {"findings": findings, "mends": mends, "count": count}
    if "json" in flask.request.headers.get("Accept", ""):
        return data({"html": flask.render_template("console/system_findings.html", **told)})
    return page("doctor.html", **told)


# --- what is known ----------------------------------------------------------------------------------------


def _state(of: Service) -> dict[str, Any]:
    """What system_state.html shows."""
    database = Database(None)
    leader: Leader | None = None
    watched: list[Watched] = []
    try:
        with of.database.connection() as conn:
            database = _database(conn)
            if not database.not_applied and database.schema_error is None:
                leader, watched = _watched(conn)
    except psycopg.OperationalError:
        pass  # which `database` tells, as far as it was asked
    return {
        "database": database,
        "is_current": database.place is not None and not database.not_applied and database.schema_error is None,
        "pool": of.database.pool_state(),
        "leader": leader,
        "watched": watched,
        "version": __version__,
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_STARTED)),
        "protocols": _protocols(of.settings),
    }


def _database(conn: Connection) -> Database:
    trips = []
    for _ in range(_ROUND_TRIPS):
        before = time.perf_counter()
        ping(conn)
        trips.append(time.perf_counter() - before)
    info = conn.info
    found = Database(
        f"{info.dbname} on {info.host}:{info.port}", statistics.median(trips) * 1000, diagnosis.state(conn)
    )
    try:
        return found._replace(not_applied=tuple(migrate.not_applied(conn)))
    except migrate.SchemaError as error:
        return found._replace(schema_error=str(error))


def _watched(conn: Connection) -> tuple[Leader, list[Watched]]:
    counted = {node.node: node for node in gauges.read(conn, default=NODE)}
    found = [media_server(node) for node in nodes.every(conn, default=NODE)]
    return reconciliation.leader(conn), [Watched(node, counted.get(node.name)) for node in found]


def _protocols(of: Settings) -> list[tuple[str, str | None]]:
    urls = of.media_urls
    named = {"HLS": urls.hls, "WebRTC": urls.webrtc, "RTMP": urls.rtmp, "RTSP": urls.rtsp, "SRT": urls.srt}
    return [(name, url and without_credentials(url)) for name, url in named.items()]


def _settings(of: Settings) -> list[tuple[str, str]]:
    """Those that matter. What may be secret is told by whether it is set."""
    metrics = f"on port {of.metrics_port}" if of.metrics_port else "on the port of the API"
    told: dict[str, object] = {
        "API_HOST, API_PORT": f"{of.api_host}:{of.api_port}",
        "API_SECRET": _set(*of.api_secrets),
        "CALLBACK_URL": without_credentials(of.callback_url),
        "MEDIAMTX_CALLBACK_SECRET": _set(*of.callback_secrets),
        "MEDIAMTX_API_URL": without_credentials(of.mediamtx_api_url),
        "READ_POLICY": of.read_policy,
        "READ_SECRET": _set(of.read_secret),
        "UNKNOWN_PUBLISHERS": of.unknown_publishers,
        "RECONCILE_SECONDS": f"{of.reconcile_seconds:g}",
        "LEASE_SECONDS": of.lease_seconds,
        "DECISION_DAYS": of.decision_days,
        "HISTORY_DAYS": of.history_days or "0, which is for ever",
        "AUDIT_DAYS": of.audit_days or "0, which is for ever",
        "REFUSALS_PER_MINUTE": of.refusals_per_minute or "0, which is no limit",
        "API_WRITES_PER_MINUTE": of.api_writes_per_minute or "0, which is no limit",
        "METRICS_ENABLED": metrics if of.metrics_enabled else "off",
        "METRICS_SECRET": _set(of.metrics_secret),
        "TRACING_ENABLED": f"one request in {1 / of.trace_ratio:g}" if of.tracing and of.trace_ratio else "off",
        "TRUSTED_PROXIES": ", ".join(map(str, of.trusted_proxies)) or "none",
        "CORS_ORIGINS": ", ".join(of.cors_origins) or "none",
        "WEB_CONCURRENCY, API_THREADS": f"{of.workers}, {of.threads}",
        "LOG_LEVEL": of.log_level,
    }
    return [(name, str(value)) for name, value in told.items()]


def _set(*secrets: str | None) -> str:
    count = sum(bool(secret) for secret in secrets)
    return f"{count} are set" if count > 1 else "set" if count else "not set"


# --- what is said -----------------------------------------------------------------------------------------


def mends(finding: Finding) -> list[Mend]:
    """What mends a finding, each with the place where it belongs, ready to be copied."""
    return [_mend(part) for part in _MENDS.split(finding.mend) if part.strip()]


def _mend(text: str) -> Mend:
    where, mark, lines = text.partition("in mediamtx.yml:\n")
    if mark and not where:
        return Mend("In mediamtx.yml", textwrap.dedent(lines).strip("\n"))
    for begins, place in (("in the environment: ", "In the environment"), ("run: ", "Run")):
        if text.startswith(begins):
            return Mend(place, text.removeprefix(begins).strip())
    return Mend("", text.strip())


def members(change: Change) -> list[tuple[str, str | None, str | None]]:
    """What a change was about: each member, what it was and what it became; None where it was or is not there.

    Of what was made, only what it was given.
    """
    before, after_it = msgspec.json.decode(bytes(change.before)), msgspec.json.decode(bytes(change.after))
    return [
        (name, shown(before[name]) if name in before else None, shown(after_it[name]) if name in after_it else None)
        for name in {**before, **after_it}
        if name in before or after_it[name]
    ]


def _subject_url(change: Change) -> str | None:
    """Where the page of what was changed is, if it has one."""
    match change.kind:
        case "stream":
            return stream_url(change.subject_id)
        case "stream_key":
            return flask.url_for("console_keys.show", stream_key_id=change.subject_id)
        case "broadcaster":
            return flask.url_for("console_broadcasters.show", broadcaster_id=change.subject_id)
        case _:
            return None

"""What is judged of our own side: settings, database, the running service. Pure."""

from collections.abc import Iterator

from streamorch import __version__
from streamorch.doctor.facts import Absent, Facts, Instance, Verdict
from streamorch.doctor.verdicts import (
    OLDEST_POSTGRES,
    database_of,
    is_loopback,
    ok,
    run,
    setting,
    settings_of,
    shown,
    unknown,
    warning,
    worst,
    wrong,
)
from streamorch.settings import Settings

_LISTS = ("API_SECRET", "MEDIAMTX_CALLBACK_SECRET")  # settings that hold several, so that one changes without a gap
# A claim takes one or two round trips, and MediaMTX asks one question at a time.
_SLOW_SECONDS, _TOO_SLOW_SECONDS = 0.010, 0.200
# Leases, holds and expiry go by the database's clock; times in logs and signed requests by this machine's.
_SKEW_SECONDS, _TOO_SKEW_SECONDS = 2.0, 30.0


def settings(facts: Facts) -> Verdict:
    """Can they be read, and are they for a port that others reach?"""
    found = facts.settings
    if isinstance(found, Absent):
        return wrong(found.reason, setting(f"correct {found.reason.split()[0].rstrip(':')}"))
    return worst(_doubts(found), ok(f"they can be read; READ_POLICY is {found.read_policy}"))


def _doubts(found: Settings) -> Iterator[Verdict]:
    """What lets in more than is meant: an open door, or a secret that can be guessed."""
    is_open = not is_loopback(found.api_host)
    if is_open and found.callback_secret is None:
        yield warning(
            f"MEDIAMTX_CALLBACK_SECRET is not set: whoever reaches {found.api_host}:{found.api_port} may play the media"
            " server",
            setting("MEDIAMTX_CALLBACK_SECRET=… ; then `streamorch mediamtx-config` prints MediaMTX's lines with it"),
        )
    if is_open and found.metrics_enabled and found.metrics_port is not None and found.metrics_secret is None:
        yield warning(
            f"METRICS_SECRET is not set: whoever reaches {found.api_host}:{found.metrics_port} reads the metrics",
            setting("METRICS_SECRET=… , which the scraper sends as Bearer"),
        )
    for name in found.short_secrets:
        longer = "a new one before the old: NEW,OLD" if name in _LISTS else "a longer one"
        yield warning(f"{name} is short enough to be guessed", setting(f"{name}=… , {longer}"))


# --- the database ----------------------------------------------------------------------------------------------


def database(facts: Facts) -> Verdict:
    """Does it answer, and is it new enough?"""
    found = facts.database
    if isinstance(found, Absent):
        mend = "DATABASE_URL=postgresql://USER:SECRET@HOST/DATABASE of a PostgreSQL that runs"
        told = found.reason if found.kind == "unasked" else f"it does not answer: {found.reason}"
        return wrong(told, setting(mend))
    if found.version < OLDEST_POSTGRES or found.state is None:
        return wrong(
            f"it is PostgreSQL {found.version // 10000}; streamorch needs 14 or newer",
            setting("DATABASE_URL=… of a PostgreSQL 14 or newer"),
        )
    return ok(f"PostgreSQL {found.state.version}")


def database_schema(facts: Facts) -> Verdict:
    """Is the schema that of this release?"""
    found = database_of(facts)
    if found.schema_error:
        return wrong(found.schema_error, setting("DATABASE_URL=… of a database for this release of streamorch"))
    if found.not_applied:
        return wrong(f"the schema is old: {', '.join(found.not_applied)} not applied yet", run("streamorch migrate"))
    return ok("the schema is that of this release")


def database_writable(facts: Facts) -> Verdict:
    """May anything be written?"""
    state = database_of(facts).state
    if state is None:
        return unknown("it is too old to be asked")
    if state.is_standby:
        return wrong(
            "it is a standby, on which nothing can be written",
            setting("DATABASE_URL=… of the primary, or with ?target_session_attrs=read-write and all hosts in it"),
        )
    if state.is_read_only:
        return wrong(
            "transactions are read-only by default",
            "in psql: ALTER ROLE … RESET default_transaction_read_only; the same for DATABASE and SYSTEM",
        )
    return ok("it takes writes")


def database_connections(facts: Facts) -> Verdict:
    """Is there room for the pool of one instance?"""
    state, ours = database_of(facts).state, settings_of(facts)
    if state is None:
        return unknown("it is too old to be asked")
    # And two more of each worker: to reconcile with, and for refusals.
    needed = ours.workers * (ours.pool_max_size + 2)
    foreign = state.open_connections - state.own_connections
    told = f"an instance needs up to {needed} connections; {state.most_connections} are allowed, others use {foreign}"
    mend = f"in postgresql.conf: max_connections = {max(100, 2 * (needed + foreign))}"
    if needed > state.most_connections:
        return wrong(told, mend)
    if needed + foreign > state.most_connections:
        return warning(told, mend)
    return ok(told)


def database_latency(facts: Facts) -> Verdict:
    """Is it near?"""
    seconds = database_of(facts).round_trip
    told = f"a round trip takes {seconds * 1000:.1f} ms"
    mend = "run PostgreSQL nearer to streamorch: on the same machine, or in the same data center"
    if seconds >= _TOO_SLOW_SECONDS:
        return wrong(f"{told}: claims come too late", mend)
    return warning(f"{told}: each publish waits for it", mend) if seconds >= _SLOW_SECONDS else ok(told)


def database_clock(facts: Facts) -> Verdict:
    """Does it agree with this machine on the time?"""
    return clock(database_of(facts).skew, "the database's")


def clock(skew: float, whose: str) -> Verdict:
    """A clock beside this machine's; `skew` is how far it is ahead."""
    if abs(skew) <= _SKEW_SECONDS:
        return ok(f"{whose} clock and this machine's agree")
    told = f"{whose} clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    mend = f"{run('timedatectl set-ntp true')} (on the one that is not right)"
    return wrong(told, mend) if abs(skew) > _TOO_SKEW_SECONDS else warning(told, mend)


# --- the service -----------------------------------------------------------------------------------------------


def service(facts: Facts) -> Verdict:
    """Does it run here, in this version, and is it ready?"""
    ours = settings_of(facts)
    where = f"{ours.api_host}:{ours.api_port}"
    found = facts.service
    if isinstance(found, Absent):
        elsewhere = facts.callback
        if not isinstance(elsewhere, Absent) and elsewhere.version:
            return ok(f"it runs elsewhere, at {shown(ours.callback_url)}")
        return wrong(f"it does not answer on {where}: {found.reason}", run("streamorch serve"))
    return _judged(found, where)


def _judged(found: Instance, where: str) -> Verdict:
    if found.version is None:
        return wrong(
            f"something else than streamorch answers on {where}, with status {found.status}",
            setting("API_PORT=… of a port that is free"),
        )
    if found.version != __version__:
        return wrong(
            f"streamorch {found.version} runs on {where}, and this is {__version__}",
            "restart the service, so that it runs this release",
        )
    if found.schema == "old":
        return wrong(f"it runs on {where} and is not ready: its schema is old", run("streamorch migrate"))
    if found.status != 200:
        return wrong(
            f"it runs on {where} and is not ready: its database is {found.database or 'not ready'}",
            setting("DATABASE_URL=… of a PostgreSQL that the service reaches"),
        )
    return ok(f"streamorch {found.version} is ready on {where}")


def callback(facts: Facts) -> Verdict:
    """Is CALLBACK_URL a way to the service, and does it know the secrets that we know?"""
    ours = settings_of(facts)
    where, found = shown(ours.callback_url), facts.callback
    right = setting(f"CALLBACK_URL=http://HOST:{ours.api_port} by which MediaMTX reaches streamorch")
    if isinstance(found, Absent):
        told = f"nobody answers at CALLBACK_URL ({where}): {found.reason}"
        runs_here = not isinstance(facts.service, Absent)
        if found.kind == "unknown-host" and runs_here:
            return warning(f"{told}; see that MediaMTX's machine knows it", right)
        return wrong(told, right if runs_here else run("streamorch serve"))
    redirected = found.location or (None if isinstance(facts.question, Absent) else facts.question.location)
    if redirected is not None:
        to = redirected.partition("/readyz")[0].partition("/auth")[0]
        return wrong(
            f"CALLBACK_URL ({where}) is redirected, and MediaMTX does not ask again with the question",
            setting(f"CALLBACK_URL={shown(to).rstrip('/')}, and the lines of `streamorch mediamtx-config` for it"),
        )
    if found.version is None:
        return wrong(
            f"something else than streamorch answers at CALLBACK_URL ({where}), {_status(found.status)}", right
        )
    if found.version != __version__:
        return wrong(
            f"streamorch {found.version} answers at CALLBACK_URL ({where}), and this is {__version__}",
            "restart that service with this release, or run the doctor of that one",
        )
    return _judged_question(facts, where)


def _judged_question(facts: Facts, where: str) -> Verdict:
    if isinstance(facts.question, Absent):
        return unknown(f"{where}/auth does not answer: {facts.question.reason}")
    status = facts.question.status
    if status == 200:
        return ok(f"{where} is streamorch, and knows our secrets")
    if status == 401:
        return wrong(
            f"{where} is streamorch with other secrets than those that the doctor was given",
            setting(
                "the same API_SECRET, MEDIAMTX_CALLBACK_SECRET, MEDIAMTX_API_USER and MEDIAMTX_API_PASSWORD for both"
            ),
        )
    return unknown(f"{where}/auth answers {_status(status)}")


def _status(status: int) -> str:
    return f"with status {status}"


# --- what MediaMTX told it -------------------------------------------------------------------------------------


def heard(facts: Facts) -> Verdict:
    """Does the service hear of its media server, by hooks or by the Control API?"""
    node = database_of(facts).node
    if node is None:
        return unknown("the schema is not current, so nobody wrote it down")
    problems = []
    if node.is_deaf:
        problems.append(
            wrong(
                "publishers are let in, but neither a hook nor the Control API tells what became of them",
                "mend what control-api and hooks say",
            )
        )
    elif node.api not in ("ok", "never"):
        problems.append(
            warning(
                f"the running service sees the Control API as {node.api!r}", "mend what service and control-api say"
            )
        )
    if bytes(node.unclaimed) != b"[]":
        problems.append(
            warning(
                "somebody publishes whom nobody let in",
                f"{setting('UNKNOWN_PUBLISHERS=kick')} (GET /nodes names them)",
            )
        )
    return worst(problems, ok(f"its last hook came at {node.last_hook_at}" if node.last_hook_at else "no hook yet"))

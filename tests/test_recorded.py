"""Every request that real MediaMTX servers made (tests/recorded), replayed in order and in its own time.

The answers must follow the rules of POST /auth and of the hooks, the live list must say after each hook what the
hooks have told so far, and in the end each stream must be where its recording left it.
"""

import hashlib
import http.client
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import flask
import psycopg
import pytest
from psycopg import sql

from streamorch.repositories import Connection, migrate
from tests.conftest import API_SECRET

RECORDED = Path(__file__).parent / "recorded"

# The recorder let the first two in; the third is the wrong key of all scenarios.
FIRST_KEY = "sk_7Hj2kL9mN4pQ8rS1tU6vW3xY5zA0bC2dE4fG6hI8jK0"
SECOND_KEY = "sk_9Zq1wX8eC7rV6tB5yN4uM3iK2oL1pJ0aH9sG8dF7fD6"
UNKNOWN_KEY = "sk_0000000000000000000000000000000000000000000"
_KEY = re.compile(r"sk_[A-Za-z0-9]{43}")

# The recorder's own rules, as settings. It let readers in by stream key; with that key as the one secret of all
# readers, every recorded read has the same answer here. (The other policies: test_reads_follow_the_policy.)
SETTINGS = {
    "WEB_CONCURRENCY": "5",  # a small pool: requests come one at a time
    "MEDIAMTX_API_USER": "streamorch",
    "MEDIAMTX_API_PASSWORD": "api-secret",
    "READ_POLICY": "secret",
    "READ_SECRET": FIRST_KEY,
}
SECRETS = (FIRST_KEY, SECOND_KEY, UNKNOWN_KEY, "api-secret", "node-secret", "hook-secret-1")

LEASE_SECONDS = 20
GRACE_SECONDS = 5
# A hook's post arrives a little after the server's own list has changed.
HOOK_SECONDS = 0.1


# --- what the recordings hold -----------------------------------------------------------------------------

Event = dict[str, Any]

# What was counted when they were made: scenarios, questions to /auth, hooks.
COUNTED = {
    "v1.9.3": (15, 137, 142),
    "v1.12.3": (16, 151, 182),
    "v1.15.6": (15, 134, 138),
    "v1.18.0": (15, 117, 144),
    "v1.20.1": (53, 396, 772),
}
VERSIONS = tuple(COUNTED)

# Hooks that none of our lines hangs on: connections without a path, readers, segments, a command telling of its end.
NOT_OURS = frozenset(
    {
        "runOnConnect",
        "runOnDisconnect",
        "runOnRead",
        "runOnUnread",
        "runOnRecordSegmentCreate",
        "runOnRecordSegmentComplete",
        "start-hold got SIGINT",
    }
)

PUBLISHERS = ("rtmpConn", "rtspSession", "srtConn", "webRTCSession")


class Wiring(NamedTuple):
    """Which recorded hooks run our two lines."""

    name: str
    start: frozenset[str]
    end: frozenset[str]
    is_plain: bool = False  # the end hook names the path alone
    untold: frozenset[str] = frozenset()  # paths of whose publishers these hooks do not tell


# runOnReady up to v1.19.2, runOnAvailable from then on, and what scenarios called the hooks in their place.
# On a path that is always available ("filler") it runs once, when the server starts, and tells of no publisher.
AVAILABLE = Wiring(
    "available",
    frozenset({"runOnReady", "runOnAvailable", "argv", "start-hold", "heartbeat"}),
    frozenset({"runOnNotReady", "runOnUnavailable", "argv-end"}),
    untold=frozenset({"filler"}),
)
# From v1.19.3 on: tells of every publisher.
ONLINE = Wiring("online", frozenset({"runOnOnline"}), frozenset({"runOnOffline"}))
# Both wired: every hook comes twice, in any order.
BOTH = Wiring("both", AVAILABLE.start | ONLINE.start, AVAILABLE.end | ONLINE.end)
# The lines of rescuestream-api: three members at the start, the path alone at the end.
PLAIN = AVAILABLE._replace(name="plain", is_plain=True)


@cache
def recording(version: str, scenario: str) -> tuple[Event, ...]:
    return tuple(json.loads((RECORDED / version / f"{scenario}.json").read_text())["events"])


def scenarios(version: str) -> list[str]:
    return sorted(path.stem for path in (RECORDED / version).glob("*.json"))


def all_events() -> Iterator[Event]:
    for version in VERSIONS:
        for scenario in scenarios(version):
            yield from recording(version, scenario)


def question(event: Event) -> dict[str, Any]:
    """What an auth event asks; empty for a redirect that was followed without its body."""
    asked: dict[str, Any] = json.loads(event["raw"]) if event["kind"] == "auth" and event["raw"] else {}
    return asked


def is_publish(event: Event) -> bool:
    return question(event).get("action") == "publish"


def was_let_in(event: Event) -> bool:
    """By any 2xx; 307 sent the question on, and its second answer was 200."""
    return event["status"] in (200, 204, 307)


# --- how they are replayed --------------------------------------------------------------------------------


class Variant(NamedTuple):
    """One way to replay a scenario: what of the recording is put differently, and what the keys are."""

    name: str = ""
    rewrite: Callable[[Event], Event] = lambda event: event
    keys: str = "valid"  # or "unknown", "revoked"
    settings: tuple[tuple[str, str], ...] = ()


def key_of_path(path: str) -> str:
    return f"sk_{hashlib.sha256(path.encode()).hexdigest()[:43]}"


def key_for_each_path(event: Event) -> Event:
    if not is_publish(event):
        return event
    return event | {"raw": event["raw"].replace(FIRST_KEY, key_of_path(question(event)["path"]))}


def first_key_for_both(event: Event) -> Event:
    return event | {"raw": event["raw"].replace(SECOND_KEY, FIRST_KEY)} if is_publish(event) else event


def unknown_key_where_refused(event: Event) -> Event:
    if not is_publish(event) or was_let_in(event):
        return event
    return event | {"raw": event["raw"].replace(FIRST_KEY, UNKNOWN_KEY)}


def as_the_only_node(event: Event) -> Event:
    """The same server, wired for us: no node name, one callback secret, and the names of our members."""
    if event["kind"] == "auth":
        return event | {"target": event["target"].replace("?node=a", "")}
    if event["kind"] == "hook" and "raw" in event:
        raw = event["raw"].replace('"type":', '"source_type":').replace('"id":', '"source_id":')
        return event | {"raw": raw, "headers": event["headers"] | {"Authorization": "Bearer node-secret"}}
    return event


AS_RECORDED = Variant()
KEY_FOR_EACH_PATH = Variant("key-for-each-path", key_for_each_path)
ONE_KEY = Variant("one-key", first_key_for_both)

# What is not replayed just as it was recorded, or not only so.
VARIANTS = {
    "auth-endpoint-failures": [AS_RECORDED, Variant("unknown-key-where-refused", unknown_key_where_refused)],
    "auth-hang-20s": [AS_RECORDED, KEY_FOR_EACH_PATH],
    "claim-a-serial-auth": [AS_RECORDED, KEY_FOR_EACH_PATH],
    "claim-b-api-inside-auth": [AS_RECORDED, KEY_FOR_EACH_PATH],
    # Here the recorder refused a good key by script. (The good key: test_every_way_to_write_the_key_is_understood.)
    "credential-forms": [Variant("unknown-key", keys="unknown"), Variant("revoked-key", keys="revoked")],
    "lists-and-errors": [AS_RECORDED, KEY_FOR_EACH_PATH],
    "node-identity": [
        AS_RECORDED,
        Variant("as-the-only-node", as_the_only_node, settings=(("MEDIAMTX_CALLBACK_SECRET", "node-secret"),)),
    ],
    "second-publisher-overrides": [AS_RECORDED, ONE_KEY],
    "second-publisher-refused": [AS_RECORDED, ONE_KEY],
    "slow-auth-and-end-hooks": [AS_RECORDED, KEY_FOR_EACH_PATH],
    "static-and-always-available": [AS_RECORDED, KEY_FOR_EACH_PATH],
}


class Differs(NamedTuple):
    """Where our answers to publishers are not the recorder's: refusals where it let in, by slug, or the reverse."""

    why: str
    refused: dict[str, int]
    let_in: int = 0


# Every other question is answered as the recorder answered it. What a refusal here prevents did not happen: the
# hooks of that connection get 404, change nothing, and the publisher before it stays live until its own end.
# By scenario and variant; of one version alone where it is named.
DIFFERENCES = {
    ("auth-endpoint-failures", ""): Differs(
        "the recorder answered 500, 403, 302 and nothing at all to a good key; the first of these is a claim to us, "
        "and until its lease lapses nobody can know that its connection is gone (the Control API is not asked yet)",
        {"stream-key-in-use": 4},
        let_in=1,
    ),
    ("auth-hang-20s", "", "v1.20.1"): Differs(
        "the recorder hung at a good key, which is on another path already when it comes again",
        {"stream-key-in-use": 1},
        let_in=1,
    ),
    ("auth-hang-20s", "key-for-each-path", "v1.20.1"): Differs("the recorder hung at a good key", {}, let_in=1),
    ("claim-a-serial-auth", ""): Differs("one key on five paths at once", {"stream-key-in-use": 4}),
    ("claim-b-api-inside-auth", ""): Differs(
        "one key on three paths at once; the first stays live nearly to the end", {"stream-key-in-use": 12}
    ),
    ("claim-b-api-inside-auth", "key-for-each-path"): Differs(
        "MediaMTX gave up on an answer that came too late, and the client came again within the lease",
        {"stream-key-in-use": 1},
    ),
    ("claim-c-connections", "", "v1.12.3"): Differs(
        "let in, gone before it was live, and back within the lease", {"stream-key-in-use": 1}
    ),
    ("claim-c-connections", "", "v1.20.1"): Differs("the same", {"stream-key-in-use": 1}),
    ("lists-and-errors", ""): Differs("one key on three paths at once", {"stream-key-in-use": 2}),
    ("node-identity", ""): Differs("the callbacks name a node that is not configured", {"unauthorized": 2}),
    ("second-publisher-overrides", ""): Differs(
        "the second publisher has a key of its own: the path belongs to the first", {"path-in-use": 4}
    ),
    ("second-publisher-refused", ""): Differs("the same; MediaMTX itself dropped this one", {"path-in-use": 1}),
    ("short-sessions", ""): Differs(
        "ten times let in and gone before it was live, within one lease", {"stream-key-in-use": 9}
    ),
    ("slow-auth-and-end-hooks", ""): Differs("one key on two paths at once", {"stream-key-in-use": 1}),
    ("static-and-always-available", ""): Differs("one key on two paths at once", {"stream-key-in-use": 1}),
}


def differences(version: str, scenario: str, variant: Variant) -> Differs:
    found = DIFFERENCES.get((scenario, variant.name)) or DIFFERENCES.get((scenario, variant.name, version))
    return found or Differs("", {})


class Answer(NamedTuple):
    status: int
    content_type: str
    body: str

    @property
    def slug(self) -> str:
        """Of a problem; empty when this is none."""
        if self.status < 400:
            return ""
        assert self.content_type == "application/problem+json"
        kind: str = json.loads(self.body)["type"]
        return kind.removeprefix("/errors/")


class Send(Protocol):
    """Sends one request as it is given."""

    def __call__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer: ...


@dataclass
class Publisher:
    """A connection that we let in, and what the recording has told of it so far."""

    key: str
    path: str
    protocol: str
    claimed_at: float
    state: str = "pending"
    started_at: float = 0.0


class Replay:
    """Plays recordings to the service, and holds it to what they tell."""

    def __init__(self, send: Send, api_secret: str, conn: Connection, wiring: Wiring):
        self.send = send
        self.api_headers = {"Authorization": f"Bearer {api_secret}"}
        self.conn = conn
        self.wiring = wiring
        self.now = 0.0
        self.publishers: dict[str, Publisher] = {}  # by the id that auth named
        self.auth_ids: dict[str, str] = {}  # by the id of hooks and lists, where that is another one
        self.live: dict[str, str] = {}  # path to the id of hooks and lists
        self.doubtful: set[str] = set()  # paths where the server has gone another way than the recorded one
        self.snapshots: list[tuple[float, Event]] = []  # not yet seen to agree, with the time until when they may
        self.refused: Counter[str] = Counter()
        self.let_in = 0
        self.counted: Counter[str] = Counter()
        self.answers: list[Answer] = []

    def play(self, events: Iterable[Event]) -> None:
        """All of them, each at its time, and the state compared after each."""
        self.now = 0.0
        for event in events:
            pass_time(self.conn, event["t"] - self.now)
            self.now = event["t"]
            self.counted[event["kind"]] += 1
            if event["kind"] == "auth":
                self.ask(event)
            elif event["kind"] == "hook":
                self.tell(event)
            elif event["kind"] == "snapshot":
                self.snapshots.append((event["t"] + HOOK_SECONDS, event))
            elif "revoked" in event["text"]:
                self.revoke()
            elif "SIGKILL" in event["text"]:  # no hook will tell of what ended now
                self.doubtful.update(self.live)
            self.compare()
        self.now = float("inf")
        self.compare()
        assert self.states() == {auth_id: publisher.state for auth_id, publisher in self.publishers.items()}

    def post(self, target: str, headers: dict[str, str], body: str, method: str = "POST") -> Answer:
        answer = self.send(method, target, headers, body.encode())
        self.answers.append(answer)
        self.counted["requests"] += 1
        return answer

    def get(self, target: str) -> Any:
        answer = self.send("GET", target, self.api_headers, b"")
        self.answers.append(answer)
        assert answer.status == 200
        return json.loads(answer.body)

    # --- questions ---

    def ask(self, event: Event) -> None:
        asked = question(event)
        if not asked:
            answer = self.post(event["target"], event["headers"], "", event["method"])
            assert answer.slug == "not-found"
            return
        # To the recorder a second address of its endpoint, for redirects: we have one.
        target = event["target"].replace("/auth-target", "/auth")
        answer = self.post(target, event["headers"], event["raw"])
        if answer.status == 200:
            assert answer.body == ""
            if not was_let_in(event):
                assert is_publish(event)
                self.let_in += 1
            if is_publish(event) and asked["id"] and asked["id"] not in self.publishers:
                self.claimed(asked)
        else:
            assert answer.status == 401, answer
            assert answer.slug
            if was_let_in(event):
                self.refused[answer.slug] += 1
                self.doubtful.add(asked["path"])

    def claimed(self, asked: dict[str, Any]) -> None:
        found = _KEY.search(asked["password"] or asked.get("token") or asked["query"])
        assert found
        new = Publisher(found[0], asked["path"], asked["protocol"], self.now)
        for other in self.publishers.values():
            if other.state == "pending" and (other.key == new.key or other.path == new.path):
                assert self.now - other.claimed_at >= LEASE_SECONDS
                other.state = "never_started"
                self.doubtful.add(other.path)
        self.publishers[asked["id"]] = new

    # --- hooks ---

    def tell(self, event: Event) -> None:
        name, env = event["event"], event.get("env", {})
        if name in ("/webhook/ready", "/webhook/not-ready"):
            self.hook(name, event["headers"], event["raw"])
        elif "raw" in event:  # an address of the scenario's own
            assert self.post(name, event["headers"], event["raw"]).slug == "not-found"
        elif name in self.wiring.start | self.wiring.end:
            line = '{"path":"$MTX_PATH","source_type":"$MTX_SOURCE_TYPE","source_id":"$MTX_SOURCE_ID"}'
            if self.wiring.is_plain and name in self.wiring.end:
                line = '{"path":"$MTX_PATH"}'
            body = re.sub(r"\$(\w+)", lambda name: str(env.get(name[1], "")), line)
            target = "/webhook/ready" if name in self.wiring.start else "/webhook/not-ready"
            # `curl -d` labels its body so, and the documented lines leave it at that.
            self.hook(target, {"Content-Type": "application/x-www-form-urlencoded"}, body)
        else:
            assert name in NOT_OURS | BOTH.start | BOTH.end
            self.counted["hooks not wired"] += 1

    def hook(self, target: str, headers: dict[str, str], body: str) -> None:
        told = json.loads(body)
        path, source_type, source_id = told["path"], told.get("source_type", ""), told.get("source_id")
        if target == "/webhook/ready":
            wanted = self.started(path, source_type, source_id)
        elif source_id is None:
            wanted = self.over_on(path)
        else:
            wanted = self.over(source_id)
        answer = self.post(target, headers, body)
        assert (answer.status, answer.slug) == wanted
        assert self.live_list() == self.live

    def started(self, path: str, source_type: str, source_id: str | None) -> tuple[int, str]:
        """What a start hook changes, and its answer."""
        if not source_id:  # a static source, an always-available path
            return 204, ""
        if source_type == "rtspSession" and self.publisher_of(source_id) is None:
            self.auth_ids[source_id] = next(self.pending_rtsp(path), source_id)
        publisher = self.publisher_of(source_id)
        if publisher is None or publisher.state not in ("pending", "active"):
            return 404, "stream-not-found"
        if publisher.state == "pending":
            if path in self.live:
                self.end(self.live[path], "superseded")
            publisher.state, publisher.started_at = "active", self.now
            self.live[path] = source_id
            self.doubtful.discard(path)
        return 204, ""

    def pending_rtsp(self, path: str) -> Iterator[str]:
        """Before v1.19.3 auth named the connection and hooks the session: whom can a hook of this path mean?"""
        wanted = (path, "rtsp", "pending")
        return (auth_id for auth_id, p in self.publishers.items() if (p.path, p.protocol, p.state) == wanted)

    def over(self, source_id: str) -> tuple[int, str]:
        """What an end hook changes: the stream of that connection, no other."""
        publisher = self.publisher_of(source_id)
        if publisher is not None and publisher.state in ("pending", "active"):
            self.end(source_id, "disconnected")
        return 204, ""

    def over_on(self, path: str) -> tuple[int, str]:
        """What an end hook changes that names no connection: nothing just after a start."""
        publisher = self.publisher_of(self.live.get(path, ""))
        if publisher is not None and self.now - publisher.started_at > GRACE_SECONDS:
            self.end(self.live[path], "disconnected")
        return 204, ""

    def publisher_of(self, source_id: str) -> Publisher | None:
        return self.publishers.get(self.auth_ids.get(source_id, source_id))

    def end(self, source_id: str, reason: str) -> None:
        publisher = self.publisher_of(source_id)
        assert publisher is not None
        publisher.state = reason
        if self.live.get(publisher.path) == source_id:
            del self.live[publisher.path]

    def revoke(self) -> None:
        for key in self.get("/stream-keys")["stream_keys"]:
            assert self.send("DELETE", f"/stream-keys/{key['id']}", self.api_headers, b"").status == 204
        self.doubtful.update(self.live)  # over for us, live on the server until the kick
        for source_id in list(self.live.values()):
            self.end(source_id, "revoked")
        assert self.live_list() == self.live

    # --- the state ---

    def live_list(self) -> dict[str, str]:
        return {stream["path"]: stream["source_id"] for stream in self.get("/streams")["streams"]}

    def compare(self) -> None:
        """The server's own list of paths against our live list; a hook may be on its way."""
        waiting = []
        for until, snapshot in self.snapshots:
            apart = self.doubtful | self.wiring.untold
            wanted = {
                path: source_id
                for path, (source_type, source_id) in snapshot["live"].items()
                if source_type in PUBLISHERS and path not in apart
            }
            shown = {
                path: source_id
                for path, source_id in self.live_list().items()
                if path == snapshot.get("path", path) and path not in apart
            }
            if shown != wanted:
                assert self.now < until, (shown, wanted)
                waiting.append((until, snapshot))
        self.snapshots = waiting

    def states(self) -> dict[str, str]:
        """Of every stream in the database, by the id that auth named."""
        rows = self.conn.execute(
            """
            SELECT auth_id, CASE WHEN ended_at IS NOT NULL THEN end_reason
                                 WHEN started_at IS NOT NULL THEN 'active' ELSE 'pending' END
            FROM streams
            """
        )
        return dict(rows.fetchall())


def pass_time(conn: Connection, seconds: float) -> None:
    """Let time pass in the database without waiting for it: all that was written moves into the past."""
    conn.execute(
        """
        WITH past AS (SELECT make_interval(secs => %(seconds)s) AS time),
        departed AS (UPDATE departures SET departed_at = departed_at - past.time FROM past)
        UPDATE streams
        SET claimed_at = claimed_at - past.time, lease_expires_at = lease_expires_at - past.time,
            started_at = started_at - past.time, ended_at = ended_at - past.time
        FROM past
        """,
        {"seconds": seconds},
    )


def in_process(app: flask.Flask) -> Send:
    client = app.test_client(use_cookies=False)

    def send(method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = client.open(target, method=method, headers=headers, data=body)
        return Answer(answer.status_code, answer.headers.get("Content-Type", ""), answer.get_data(as_text=True))

    return send


def await_database(send: Send) -> None:
    """A service that has just started answers 503 until its pool has a connection."""
    deadline = time.monotonic() + 20
    while send("GET", "/readyz", {}, b"").status != 200:
        assert time.monotonic() < deadline


@pytest.fixture(scope="module")
def shared_database_url(embedded):
    """One database for all replays: to make one takes longer than to replay a recording."""
    server = f"host={embedded.host} port={embedded.port} user={embedded.user}"
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE recorded")
        connection.execute("ALTER DATABASE recorded SET synchronous_commit = off")
    migrate.apply(f"{server} dbname=recorded")
    return f"postgresql://{embedded.user}@/recorded?host={embedded.host}&port={embedded.port}"


@pytest.fixture
def database_url(shared_database_url):
    """That database, emptied, instead of one of its own for every test."""
    with psycopg.connect(shared_database_url, autocommit=True) as connection:
        for table in ("streams", "stream_keys", "broadcasters", "departures", "nodes"):
            connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
    return shared_database_url


@pytest.fixture
def start_replay(make_app, make_key, conn, caplog):
    """A replay to a fresh application which knows the keys of these events."""

    def start(events: Iterable[Event], variant: Variant = AS_RECORDED, wiring: Wiring = AVAILABLE) -> Replay:
        app = make_app(**SETTINGS, **dict(variant.settings))
        send = in_process(app)
        await_database(send)
        caplog.set_level(logging.DEBUG, logger="streamorch")
        make_keys(events, variant, make_key)
        return Replay(send, API_SECRET, conn, wiring)

    return start


def make_keys(events: Iterable[Event], variant: Variant, make_key: Any) -> None:
    """All that the publishers of these events use, but for the one that no recorder knew."""
    if variant.keys == "unknown":
        return
    revoked = {"revoked_at": "2026-01-01T00:00:00Z"} if variant.keys == "revoked" else {}
    used = {FIRST_KEY, SECOND_KEY} | {
        key for event in events if is_publish(event) for key in _KEY.findall(event["raw"])
    }
    for key in used - {UNKNOWN_KEY}:
        make_key(key, **revoked)


def everything_stored(conn: Connection) -> str:
    """Every row of every table, as text."""
    tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    rows = [
        str(row)
        for (table,) in tables
        for (row,) in conn.execute(sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(table)))
    ]
    return "\n".join(rows)


def cases() -> Iterator[Any]:
    for version in VERSIONS:
        for scenario in scenarios(version):
            hooks = {event.get("event") for event in recording(version, scenario)}
            wirings = [AVAILABLE, ONLINE, BOTH] if hooks & ONLINE.end else [AVAILABLE]
            for variant in VARIANTS.get(scenario, [AS_RECORDED]):
                for wiring in wirings:
                    names = [version, scenario, variant.name, wiring.name if len(wirings) > 1 else ""]
                    yield pytest.param(version, scenario, variant, wiring, id="/".join(filter(None, names)))


@pytest.mark.parametrize(("version", "scenario", "variant", "wiring"), list(cases()))
def test_a_recording_ends_as_it_did(version, scenario, variant, wiring, start_replay, conn, capsys, caplog):
    events = [variant.rewrite(event) for event in recording(version, scenario)]
    replay = start_replay(events, variant, wiring)
    replay.play(events)
    expected = differences(version, scenario, variant)
    assert (dict(replay.refused), replay.let_in) == (expected.refused, expected.let_in)
    counted = replay.counted
    assert counted["requests"] == counted["auth"] + counted["hook"] - counted["hooks not wired"]

    logged = [str(vars(record)) for record in caplog.records if record.name.startswith("streamorch")]
    written = capsys.readouterr().err
    assert len(written.splitlines()) >= len(logged) >= counted["auth"]
    shown = [*(answer.body for answer in replay.answers), written, everything_stored(conn)]
    keys = {*SECRETS, *(key_of_path(publisher.path) for publisher in replay.publishers.values())}
    assert [key for key in keys for text in shown + logged if key in text] == []


def test_nothing_recorded_is_left_out():
    replayed: dict[tuple[str, str], list[Wiring]] = {}
    for case in cases():
        version, scenario, _, wiring = case.values
        replayed.setdefault((version, scenario), []).append(wiring)
    assert {scenario for scenario, *_ in DIFFERENCES} | set(VARIANTS) <= {scenario for _, scenario in replayed}
    for version, counted in COUNTED.items():
        kinds = Counter(event["kind"] for scenario in scenarios(version) for event in recording(version, scenario))
        assert (len(scenarios(version)), kinds["auth"], kinds["hook"]) == counted
        for scenario in scenarios(version):
            wired = {name for wiring in replayed[version, scenario] for name in wiring.start | wiring.end}
            for event in recording(version, scenario):
                # Questions and curl lines are sent whatever they are; see Replay.ask and Replay.tell.
                assert event["kind"] != "hook" or "raw" in event or event["event"] in wired | NOT_OURS


# --- single rules, on recorded requests -------------------------------------------------------------------


def test_every_way_to_write_the_key_is_understood(start_replay, conn):
    """The same questions as in the replay of credential-forms, now with the key that they name."""
    questions = [event for event in recording("v1.20.1", "credential-forms") if event["kind"] == "auth"]
    replay = start_replay(questions)
    answers = []
    for event in questions:
        answer = replay.post(event["target"], event["headers"], event["raw"])
        answers.append(answer.slug or "let in")
        pass_time(conn, LEASE_SECONDS)
    assert answers == [
        "let in",  # rtmp ?user=U&pass=KEY
        "let in",  # rtmp ?pass=KEY
        "let in",  # rtmp ?token=KEY
        "let in",  # rtmp ?jwt=KEY
        "path-not-allowed",  # rtmp, the key as the last part of the path
        "let in",  # rtmp, a path of one part
        "let in",  # rtmp, a path of four parts
        "invalid-stream-key",  # rtmp, another password, percent-encoded
        "unauthorized",  # rtmp, user info in the URL: FFmpeg drops it
        "let in",  # rtmp, application and stream key apart, as encoders have them
        "let in",  # srt publish:PATH:USER:KEY
        "let in",  # srt publish:PATH::KEY
        "let in",  # srt publish:PATH:USER:KEY:QUERY
        "let in",  # srt #!::m=publish,r=PATH,u=USER,s=KEY
        "unauthorized",  # rtsp, user info in the URL: the first try has no credentials
        "let in",  # … and the second has
        "unauthorized",  # rtsp, user info without a password
        "unauthorized",
        "let in",  # rtsp ?token=KEY
        "let in",  # rtsp ?key=KEY: MediaMTX sees no credentials in it, we do
        "let in",  # … and again, since the recorder refused it
        "let in",  # rtsp ?user=U&pass=KEY: the same
        "let in",
    ]


@pytest.mark.parametrize(("policy", "status"), [("public", 200), ("deny", 401)])
def test_reads_follow_the_policy_without_a_database(policy, status, make_app):
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    send = in_process(make_app(DATABASE_URL=nowhere, READ_POLICY=policy))
    asked = {event["raw"] for event in all_events() if question(event).get("action") in ("read", "playback")}
    assert len(asked) > 50
    headers = {"Content-Type": "application/json"}
    assert {send("POST", "/auth", headers, raw.encode()).status for raw in asked} == {status}


@pytest.mark.parametrize(
    ("version", "scenario"),
    [
        ("v1.12.3", "claim-c-connections"),
        ("v1.12.3", "rtmp-refused-on-the-wire"),
        ("v1.20.1", "auth-hang-20s"),
        ("v1.20.1", "claim-c-connections"),
        ("v1.20.1", "kick-before-live"),
        ("v1.20.1", "rtmp-refused-on-the-wire"),
        ("v1.20.1", "short-sessions"),
    ],
)
def test_a_publisher_that_never_went_live_gives_way_when_its_lease_lapses(version, scenario, start_replay, conn):
    events = recording(version, scenario)
    replay = start_replay(events)
    replay.play(events)
    (waiting,) = [auth_id for auth_id, state in replay.states().items() if state == "pending"]
    (claim,) = [event for event in events if is_publish(event) and was_its(event, waiting)]
    newcomer = str(uuid.uuid4())
    again = claim["raw"].replace(waiting, newcomer)

    passed = events[-1]["t"] - claim["t"]
    pass_time(conn, max(0.0, LEASE_SECONDS - 3 - passed))
    assert replay.post("/auth", claim["headers"], again).slug == ("stream-key-in-use" if passed < LEASE_SECONDS else "")
    pass_time(conn, 3)
    assert replay.post("/auth", claim["headers"], again).status == 200
    states = replay.states()
    assert (states[waiting], states[newcomer]) == ("never_started", "pending")


def was_its(event: Event, auth_id: str) -> bool:
    """Is this the question of that connection which held a key?"""
    return question(event)["id"] == auth_id and _KEY.search(event["raw"]) is not None


SIMPLE = [
    pytest.param(version, scenario, id=f"{version}/{scenario}")
    for version in VERSIONS
    for scenario in ("rtmp-publish-ok", "rtsp-publish-ok", "srt-publish-ok")
]


def told(version: str, scenario: str) -> tuple[list[Event], list[Event], list[Event]]:
    """The questions of a recording of one publisher, its start hook, its end hook."""
    events = recording(version, scenario)
    return (
        [event for event in events if event["kind"] == "auth"],
        [event for event in events if event.get("event") in AVAILABLE.start],
        [event for event in events if event.get("event") in AVAILABLE.end],
    )


def names_another_id(version: str, scenario: str) -> bool:
    """Before v1.19.3 the hooks of RTSP name the session, and auth the connection."""
    return scenario == "rtsp-publish-ok" and version != "v1.20.1"


@pytest.mark.parametrize(("version", "scenario"), SIMPLE)
def test_a_lost_start_hook_leaves_it_pending(version, scenario, start_replay):
    questions, _, end = told(version, scenario)
    replay = start_replay(questions)
    replay.play(questions)
    assert list(replay.states().values()) == ["pending"]
    # Its end hook then tells that it was live; one that nobody can match is of no use.
    replay.play(end)
    assert list(replay.states().values()) == ["pending" if names_another_id(version, scenario) else "disconnected"]


@pytest.mark.parametrize(("version", "scenario"), SIMPLE)
def test_a_lost_end_hook_is_made_good_by_the_same_publisher(version, scenario, start_replay):
    """Without a Control API the newest connection of a key wins on its path: nothing blocks a key for ever."""
    questions, start, _ = told(version, scenario)
    replay = start_replay(questions)
    replay.play(questions + start)
    ids = {event["env"]["MTX_SOURCE_ID"] for event in start} | {question(e)["id"] for e in questions if is_publish(e)}
    for gone in ids:
        questions, start = renamed(questions, gone), renamed(start, gone)
    replay.play(questions + start)
    assert sorted(replay.states().values()) == ["active", "superseded"]


def renamed(events: list[Event], name: str) -> list[Event]:
    """The same of another connection."""
    other = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
    changed: list[Event] = json.loads(json.dumps(events).replace(name, other))
    return changed


@pytest.mark.parametrize(("version", "scenario"), SIMPLE)
def test_an_end_that_overtakes_its_start_ends_it(version, scenario, start_replay):
    questions, (start,), (end,) = told(version, scenario)
    replay = start_replay(questions)
    replay.play(questions)
    assert replay.post("/webhook/not-ready", {}, as_line(end)).status == 204
    assert replay.post("/webhook/ready", {}, as_line(start)).slug == "stream-not-found"
    assert replay.live_list() == {}
    assert list(replay.states().values()) == ["disconnected"]


@pytest.mark.parametrize("version", [version for version in VERSIONS if names_another_id(version, "rtsp-publish-ok")])
def test_an_end_that_nobody_could_match_is_forgotten_after_a_minute(version, start_replay, conn):
    questions, (start,), (end,) = told(version, "rtsp-publish-ok")
    replay = start_replay(questions)
    replay.play(questions)
    assert replay.post("/webhook/not-ready", {}, as_line(end)).status == 204
    pass_time(conn, 61)
    assert replay.post("/webhook/ready", {}, as_line(start)).status == 204
    assert list(replay.states().values()) == ["active"]


def as_line(event: Event) -> str:
    """The body that our hook line makes of this hook."""
    names = {"path": "MTX_PATH", "source_type": "MTX_SOURCE_TYPE", "source_id": "MTX_SOURCE_ID"}
    return json.dumps({member: event["env"].get(name, "") for member, name in names.items()})


@pytest.mark.parametrize("version", VERSIONS)
def test_doubled_hooks_change_nothing(version, start_replay):
    events = [first_key_for_both(event) for event in recording(version, "second-publisher-overrides")]
    twice = [event for event in events for _ in range(2 if event["kind"] == "hook" else 1)]
    replay = start_replay(events, ONE_KEY)
    replay.play(twice)
    assert sum(replay.refused.values()) == 0


PLAINLY_TOLD = [
    *((version, scenario, AS_RECORDED) for version in VERSIONS for scenario in ("rtmp-publish-ok", "hls-read")),
    *((version, "second-publisher-overrides", ONE_KEY) for version in VERSIONS),
    *(("v1.20.1", scenario, AS_RECORDED) for scenario in ("stall-rtmp", "stall-other-protocols", "vanish-rtmp")),
    ("v1.20.1", "stall-then-takeover", AS_RECORDED),
    ("v1.20.1", "static-and-always-available", AS_RECORDED),
]


@pytest.mark.parametrize(
    ("version", "scenario", "variant"), [pytest.param(*case, id="/".join(case[:2])) for case in PLAINLY_TOLD]
)
def test_the_hook_lines_of_rescuestream_api_do(version, scenario, variant, start_replay, conn):
    """Their end hook names the path alone: it ends what is live there, but for the first five seconds."""
    events = [variant.rewrite(event) for event in recording(version, scenario) if event["kind"] != "snapshot"]
    replay = start_replay(events, variant, PLAIN)
    replay.play(events)
    assert dict(replay.refused) == differences(version, scenario, variant).refused
    # What ended sooner stays listed until somebody tells again, or a look at the connection does.
    pass_time(conn, GRACE_SECONDS + 1)
    for path in replay.live:
        label = {"Content-Type": "application/x-www-form-urlencoded"}
        assert replay.post("/webhook/not-ready", label, json.dumps({"path": path})).status == 204
    assert replay.live_list() == {}


@pytest.mark.parametrize("wiring", [AVAILABLE, ONLINE, BOTH], ids=lambda wiring: wiring.name)
def test_only_online_hooks_tell_of_publishers_on_an_always_available_path(wiring, start_replay):
    events = [key_for_each_path(event) for event in recording("v1.20.1", "static-and-always-available")]
    replay = start_replay(events, KEY_FOR_EACH_PATH, wiring)
    replay.play(events)
    states = {publisher.path: publisher.state for publisher in replay.publishers.values()}
    # "pulled", which has a static source, is nobody's stream.
    assert states == {"live/cam7": "disconnected", "filler": "pending" if wiring is AVAILABLE else "disconnected"}


def test_callbacks_without_the_secret_are_refused(make_app, make_key, conn):
    """Recorded: auth with the secret of a node that is not configured, hooks with another secret."""
    events = recording("v1.20.1", "node-identity")
    make_keys(events, AS_RECORDED, make_key)
    replay = Replay(in_process(make_app(MEDIAMTX_CALLBACK_SECRET="node-secret")), "", conn, AVAILABLE)
    for event in events:
        if event["kind"] == "auth":
            assert replay.post(event["target"], event["headers"], event["raw"]).slug == "unauthorized"
            assert replay.post("/auth", {}, event["raw"]).slug == "unauthorized"
        elif "raw" in event:
            assert replay.post(event["event"], event["headers"], event["raw"]).slug == "unauthorized"
    assert replay.states() == {}


# --- the service as it runs -------------------------------------------------------------------------------


def test_a_running_service_answers_the_same(database_url, make_key, conn):
    """Some of the recordings over real connections, a new one for each request as MediaMTX does, to two workers."""
    chosen = [
        ("v1.9.3", "rtsp-publish-ok", AS_RECORDED),
        ("v1.12.3", "hook-curl-line", AS_RECORDED),
        ("v1.15.6", "second-publisher-overrides", ONE_KEY),
        ("v1.18.0", "hls-read", AS_RECORDED),
        ("v1.20.1", "whip-publish-ok", AS_RECORDED),
        ("v1.20.1", "server-restart", AS_RECORDED),
    ]
    make_keys([], AS_RECORDED, make_key)
    with running_service(database_url) as (send, logged):
        replay = Replay(send, API_SECRET, conn, AVAILABLE)
        for version, scenario, variant in chosen:
            replay.play([variant.rewrite(event) for event in recording(version, scenario)])
    assert not replay.refused
    log = "\n".join(logged)
    assert "publish granted" in log
    assert [secret for secret in SECRETS if secret in log] == []


@contextmanager
def running_service(database_url: str) -> Iterator[tuple[Send, list[str]]]:
    """The service under gunicorn, as a process of its own; and the lines of its log."""
    port = free_port()
    environ = {
        **os.environ,
        **SETTINGS,
        "DATABASE_URL": database_url,
        "API_SECRET": API_SECRET,
        "API_PORT": str(port),
        "WEB_CONCURRENCY": "2",
        "LOG_LEVEL": "debug",
    }
    command = [sys.executable, "-m", "streamorch", "serve"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as service:
        logged: list[str] = []
        listening = threading.Event()
        reader = threading.Thread(target=read_log, args=(service, logged, listening))
        reader.start()
        try:
            assert listening.wait(20), logged

            def send(method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
                try:
                    connection.request(method, target, body, {"Connection": "close", **headers})
                    answer = connection.getresponse()
                    content_type = answer.headers.get("Content-Type", "")
                    return Answer(answer.status, content_type, answer.read().decode())
                finally:
                    connection.close()

            await_database(send)
            yield send, logged
        finally:
            service.terminate()
            service.wait(20)
            reader.join(20)


def read_log(service: "subprocess.Popen[str]", into: list[str], listening: threading.Event) -> None:
    assert service.stderr is not None
    for line in service.stderr:
        into.append(line)
        if "Listening at" in line:
            listening.set()


def free_port() -> int:
    for port in range(18300, 18320):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")

"""Secrets are planted, put through a whole life of the service, and then searched for in all that it left behind.

The service itself under gunicorn, everything at debug level, a PostgreSQL that logs each statement with its
parameters, a media server that wants its password; every refusal, an outage, a traceback. Then every byte of logs,
answers, tables, process titles and called URLs is searched, for each secret in each form that it may take.
"""

import ast
import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import requests

from streamorch import keys, signing
from tests.fake_mediamtx import FakeMediaMTX
from tests.running import ROOT, Service

# Of characters that every encoding writes in another way.
MARK = 'p1anted+%/="&'
API_SECRET = f"4bd1-api-{MARK}-4bd1"
PLANTED = {
    "API_SECRET": API_SECRET,
    "MEDIAMTX_CALLBACK_SECRET": f"77aa-callback-{MARK}-77aa",
    "the callback secret before": f"0b0b-callback-{MARK}-0b0b",
    "READ_SECRET": f"c0de-read-{MARK}-c0de",
    "METRICS_SECRET": f"91f3-metrics-{MARK}-91f3",
    "MEDIAMTX_API_PASSWORD": f"5e5e-media-{MARK}-5e5e",
    "the database's password": f"d00d-database-{MARK}-d00d",
}
# A key that nobody has: it goes where no key belongs.
STRAY = "sk_" + "StrayKeyOfTheTestsThatBelongsNowhere012345678"[:43]
STRAY_SECRET = "sc_" + "StraySecretOfTheTestsThatNoClientHas9876543210"[:43]


def forms(secret: str) -> dict[str, bytes]:
    """The secret in each form in which it could be written down, and what is left of it when a text is cut."""
    raw = secret.encode()
    # Inside of base64 a text looks different by where it begins; the outer characters depend on its neighbours.
    inside = {
        f"base64 at {offset}": base64.b64encode(b"x" * offset + raw)[offset + 1 : -4].rstrip(b"=")
        for offset in range(3)
    }
    found = {
        "as it is": raw,
        "its beginning": raw[: len(raw) // 3],
        "percent": quote(secret, safe="").encode(),
        "percent, but for slashes": quote(secret).encode(),
        "as a form": urllib.parse.quote_plus(secret).encode(),
        "JSON": json.dumps(secret)[1:-1].encode(),
        "JSON in JSON": json.dumps(json.dumps(secret)[1:-1])[1:-1].encode(),
        "HTML": secret.replace("&", "&amp;").replace('"', "&quot;").encode(),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "every byte in percent": "".join(f"%{byte:02X}" for byte in raw).encode(),
        "base64 for URLs": base64.urlsafe_b64encode(raw).rstrip(b"="),
        "backwards": raw[::-1],
    } | inside
    return found


def hits(haystack: bytes, secrets: dict[str, str]) -> set[tuple[str, str]]:
    """Which secrets stand in there, and in which form."""
    return {
        (name, form) for name, secret in secrets.items() for form, needle in forms(secret).items() if needle in haystack
    }


# --- the life ---


@dataclass
class Life:
    """What was left behind, by where; `key` is a real key, `client` a client's secret: each stood in one 201."""

    service: Service
    fake: FakeMediaMTX
    key: str = ""
    replaced_key: str = ""  # its value before, which works on beside it
    client: str = ""
    console_client: str = ""  # the same, made in the console
    is_broken: bool = False  # on purpose: 503 is right
    answers: list[bytes] = field(default_factory=list)
    printed: list[bytes] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)
    slugs: set[str] = field(default_factory=set)
    left: dict[str, bytes] = field(default_factory=dict)

    @property
    def secrets(self) -> dict[str, str]:
        clients = {"a client's secret": self.client, "one made in the console": self.console_client}
        strays = {"a stray key": STRAY, "a stray secret": STRAY_SECRET}
        return PLANTED | {"a key": self.key, "a replaced key": self.replaced_key} | clients | strays

    def call(self, method: str, path: str, *, is_secret: bool = False, **more: Any) -> requests.Response:
        """One request; its answer is kept, head and body, unless it is the one that tells a key.

        Asked again while it is 503 and should not be: a busy machine misses a deadline of the service.
        """
        headers = {"Authorization": f"Bearer {API_SECRET}"} | more.pop("headers", {})
        for _ in range(1 if self.is_broken else 20):
            answer = requests.request(method, self.service.url + path, headers=headers, timeout=10, **more)
            if not is_secret:
                self.answers.append(f"{answer.status_code} {dict(answer.headers)} ".encode() + answer.content)
            self.statuses.add(answer.status_code)
            if answer.status_code != 503:
                break
            time.sleep(0.5)
        if answer.headers.get("Content-Type") == "application/problem+json":
            self.slugs.add(answer.json()["type"].removeprefix("/errors/"))
        return answer

    def made(self, room: str, **members: Any) -> dict[str, Any]:
        answer = self.call("POST", room, json=members, is_secret=True)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def back(self, path: str, body: Any, **more: Any) -> int:
        """As MediaMTX calls back."""
        more["headers"] = {"Authorization": basic("mediamtx", PLANTED["MEDIAMTX_CALLBACK_SECRET"])} | more.get(
            "headers", {}
        )
        return self.call("POST", path, json=body, **more).status_code

    def ask(self, key: str, path: str = "live/cam7", **members: Any) -> int:
        question = {"action": "publish", "path": path, "protocol": "rtmp", "id": str(uuid.uuid4()), "ip": "192.0.2.7"}
        question |= {"user": "", "password": key, "token": key, "query": f"user=&pass={key}", "userAgent": "FMLE/3.0"}
        return self.back("/auth", question | members)

    def sql(self, statement: LiteralString, *values: object) -> list[Any]:
        """By the test itself, which logs no parameter of its own."""
        with psycopg.connect(self.service.database_url, autocommit=True) as conn:
            conn.execute("SET log_statement = 'none'")
            conn.execute("SET log_min_duration_statement = -1")
            cursor = conn.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def raw(self, sent: bytes) -> None:
        """Bytes that no client would send."""
        parts = urlsplit(self.service.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as client:
            client.sendall(sent)
            reply = http.client.HTTPResponse(client)
            reply.begin()
            self.answers.append(str(reply.getheaders()).encode() + reply.read())

    def command(self, *arguments: str, fails: bool = False, is_secret: bool = False, **environ: str) -> bytes:
        """What `streamorch` prints."""
        done = self.run(*arguments, **environ)
        assert (done.returncode != 0) == fails, done.stderr.decode()
        if not is_secret:
            self.printed += [done.stdout, done.stderr]
        return done.stdout

    def run(self, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [sys.executable, "-m", "streamorch", *arguments],
            cwd=ROOT,
            env={**self.service.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    folder = Path(tempfile.mkdtemp(prefix="streamorch-secrets-"))
    with FakeMediaMTX(user="streamorch", password=PLANTED["MEDIAMTX_API_PASSWORD"]) as fake:
        settings = {name: value for name, value in PLANTED.items() if name.isupper()}
        settings["MEDIAMTX_CALLBACK_SECRET"] += f",{PLANTED['the callback secret before']}"
        service = Service(
            folder,
            **settings,
            MEDIAMTX_API_URL=fake.url,
            READ_POLICY="secret",
            LOG_LEVEL="debug",
            RECONCILE_SECONDS="0.3",
            CORS_ORIGINS="https://viewer.example.org",
            STREAMORCH_HOME=str(folder / "home"),
        )
        try:
            service.stop()
            log_all_statements(service.database_url)
            service.environ["DATABASE_URL"] = with_password(service.database_url)
            service.start()
            found = Life(service, fake)
            live(found)
            collect(found)
            yield found
        finally:
            service.close()
            shutil.rmtree(folder, ignore_errors=True)


def with_password(url: str) -> str:
    """The same database by a URL with a password, which a local server does not look at."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.partition("@")
    password = quote(PLANTED["the database's password"], safe="")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{password}@{host}").geturl()


def log_all_statements(url: str) -> None:
    """With their parameters, with everything that an error may quote."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET log_statement = 'all'")
        conn.execute("ALTER SYSTEM SET log_min_duration_statement = 0")
        conn.execute("ALTER SYSTEM SET log_parameter_max_length = -1")
        conn.execute("ALTER SYSTEM SET log_parameter_max_length_on_error = -1")
        conn.execute("ALTER SYSTEM SET log_error_verbosity = 'verbose'")
        conn.execute("ALTER SYSTEM SET log_connections = on")
        conn.execute("SELECT pg_reload_conf()")


def live(life: Life) -> None:
    """Everything that can happen to a key and to the other secrets."""
    broadcaster = life.made("/broadcasters", display_name="Team 7")["id"]
    made = life.made("/stream-keys", broadcaster_id=broadcaster, label="camera", path="live/cam7")
    life.replaced_key = made["key_value"]
    assert life.ask(life.replaced_key, id=None) == 200
    life.key = life.made(f"/stream-keys/{made['id']}/rotate", overlap_seconds=3600)["key_value"]
    client = life.made("/api-clients", name="Stage", scope="operate")
    life.client = client["secret"]
    use_a_client(life, client["id"])
    publish_and_take_over(life)
    refuse_for_each_reason(life, broadcaster)
    put_keys_where_none_belongs(life)
    use_the_other_secrets(life)
    send_what_is_malformed(life)
    break_what_can_break(life, broadcaster)
    start_wrongly(life, broadcaster)
    assert life.ask(life.replaced_key, id=None) == 200
    life.call("PATCH", f"/stream-keys/{made['id']}", json={"previous_works_until": None})
    assert life.ask(life.replaced_key) == 401
    life.call("GET", "/audit")
    life.call("GET", "/decisions")
    look_at_the_console(life, made["id"], broadcaster)
    life.call("DELETE", f"/stream-keys/{made['id']}")
    assert life.ask(life.key) == 401
    life.call("DELETE", f"/api-clients/{client['id']}")
    until(lambda: life.call("GET", "/nodes", headers={"Authorization": f"Bearer {life.client}"}).status_code == 401)


def look_at_the_console(life: Life, stream_key_id: str, broadcaster_id: str) -> None:
    """Every page of it; wrong secrets at its door, and secrets where none belongs."""
    for secret, status in ((life.key, 401), (STRAY_SECRET, 401), (life.client, 303), (API_SECRET, 303)):
        door = life.call("GET", "/console/sign-in")
        token = re.search(r'name="token" value="(\w+)"', door.text)
        assert token
        form = {"secret": secret, "token": token[1], "next": f"/console?told={life.key}"}
        cookie = {"Cookie": door.headers["Set-Cookie"].partition(";")[0]}
        entered = life.call("POST", "/console/sign-in", headers=cookie, data=form, allow_redirects=False)
        assert entered.status_code == status
    cookie = {"Cookie": entered.headers["Set-Cookie"].partition(";")[0]}
    stream_id = life.call("GET", f"/streams?status=all&stream_key_id={stream_key_id}").json()["streams"][0]["id"]
    pages = (
        "",
        "/live",
        "/measures",
        "/keys",
        "/keys/new",
        "/broadcasters",
        "/history",
        "/refusals",
        "/clients",
        "/clients/new",
        "/system",
        "/none",
    )
    details = (f"/keys/{stream_key_id}", f"/broadcasters/{broadcaster_id}", f"/streams/{stream_id}")
    for page in (*pages, *details, "/history.csv", f"/keys/{life.key}", f"/history?path={life.key}"):
        life.call("GET", f"/console{page}", headers=cookie)
    shown = life.call("GET", f"/console/keys/{stream_key_id}", headers=cookie)
    token = re.search(r'name="token" value="(\w+)"', shown.text)
    assert token
    for fields in ({"label": life.key}, {"path": life.key}, {"expires_at": life.key}, {"secret": life.key}):
        life.call("POST", "/console/keys/new", headers=cookie, data={"token": token[1], **fields})
    make_a_client_in_the_console(life, {"headers": cookie}, token[1])


def make_a_client_in_the_console(life: Life, session: dict[str, Any], token: str) -> None:
    """Its secret is in one answer; the same form again, its page, and what it is asked with a secret in a field."""
    form = {"token": token, "id": str(uuid.uuid4()), "name": "Wall", "scope": "read"}
    made = life.call("POST", "/console/clients/new", is_secret=True, data=form, **session)
    shown = re.search(r'<code id="secret"[^>]*>(sc_\w{43})<', made.text)
    assert shown
    life.console_client = shown[1]
    assert life.call("GET", "/streams", headers={"Authorization": f"Bearer {life.console_client}"}).status_code == 200
    assert life.call("POST", "/console/clients/new", data=form, **session).status_code == 409
    for name in ("name", "scope", "expires_at", "id"):
        odd = form | {name: life.console_client}
        assert life.call("POST", "/console/clients/new", data=odd, **session).status_code in (400, 409)
    for path in ("/console/clients", "/console/system", "/api-clients", "/audit"):
        life.call("GET", path, **(session if path.startswith("/console") else {}))
    revoke = f"/console/clients/{form['id']}/revoke"
    assert life.call("POST", revoke, data={"token": token}, allow_redirects=False, **session).status_code == 303


def use_a_client(life: Life, client_id: str) -> None:
    """All that its scope includes, and what it does not; the same with a secret that nobody has."""
    for name, value in (("Authorization", f"Bearer {life.client}"), ("X-API-Key", life.client)):
        own = {"Authorization": "", name: value}
        assert life.call("GET", "/streams", headers=own).status_code == 200
        assert life.call("POST", "/broadcasters", headers=own, json={"display_name": "Team 5"}).status_code == 201
        for path in ("/audit", "/api-clients", f"/api-clients/{client_id}"):
            assert life.call("GET", path, headers=own).status_code == 403
        assert (
            life.call("GET", "/streams", headers={**own, name: value.replace(life.client, STRAY_SECRET)}).status_code
            == 401
        )
    for asked in ("/audit", "/api-clients", f"/api-clients/{client_id}"):
        assert life.call("GET", asked).status_code == 200
    life.call("PATCH", f"/api-clients/{client_id}", json={"name": "Stage left"})
    life.call("POST", "/api-clients", json={"name": STRAY_SECRET, "scope": "read"})
    life.call("POST", "/api-clients", json={"name": "x", "scope": life.client})
    life.call("POST", "/api-clients", json={"id": client_id, "name": "x", "scope": "read"})


def publish_and_take_over(life: Life) -> None:
    first = life.fake.publish("live/cam7", live=False, query=f"user=&pass={life.key}")
    assert life.ask(life.key, id=first.auth_id) == 200
    assert life.ask(life.key, id=first.auth_id) == 200
    life.fake.go_live(first)
    told = {"path": "live/cam7", "source_type": "rtmpConn", "source_id": first.source_id}
    assert life.back("/webhook/ready", told | {"query": f"pass={life.key}"}) == 204
    life.fake.flow(first, 1e6)
    assert life.ask(life.key) == 401  # in use
    life.fake.freeze(first)
    second = life.fake.publish("live/cam7", live=False)
    until(lambda: life.ask(life.key, id=second.auth_id) == 200)
    life.fake.go_live(second)
    assert life.back("/webhook/ready", told | {"source_id": second.source_id}) == 204
    life.back("/webhook/not-ready", told)
    (stream,) = life.call("GET", "/streams").json()["streams"]
    life.call("DELETE", f"/streams/{stream['id']}?hold_seconds=3600")
    until(lambda: life.call("GET", f"/streams/{stream['id']}").json()["kick"] == "done")
    assert life.ask(life.key) == 401  # on hold
    life.call("PATCH", f"/stream-keys/{stream['stream_key_id']}", json={"hold_until": None})
    for path in ("/streams?status=all", "/stream-keys", "/broadcasters", "/nodes", "/readyz", "/health", "/livez"):
        assert life.call("GET", path).status_code == 200


def refuse_for_each_reason(life: Life, broadcaster: str) -> None:
    assert life.ask(STRAY) == 401
    assert life.ask("") == 401
    assert life.ask(life.key, "live/other") == 401
    off = life.made("/broadcasters", display_name="Team 8")["id"]
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"disabled": True}, broadcaster),
        ({"expires_at": "2020-01-01T00:00:00Z"}, broadcaster),
        ({"metadata": {"a": 1}}, off),
    )
    for change, of in changes:
        other = life.made("/stream-keys", broadcaster_id=of)
        life.call("PATCH", f"/stream-keys/{other['id']}", json=change)
        life.call("PATCH", f"/broadcasters/{off}", json={"disabled": True})
        assert life.ask(other["key_value"], "live/more") == 401
        life.call("DELETE", f"/stream-keys/{other['id']}")
        assert life.ask(other["key_value"], "live/more") == 401
    free = life.made("/stream-keys", broadcaster_id=broadcaster)["key_value"]
    assert life.ask(free) == 401  # the path is another's
    for _ in range(2):
        life.call("POST", "/broadcasters", json={"display_name": "Team 9", "id": off[:-4] + "0000"})
    assert (
        life.call("POST", "/stream-keys", json={"broadcaster_id": broadcaster, "path": f"a/{STRAY}"}).status_code == 400
    )


def put_keys_where_none_belongs(life: Life) -> None:
    for key in (life.key, STRAY, life.client, STRAY_SECRET):
        cut = "x" * 20 + key  # so that it stands across the places where texts are cut
        for member in ("path", "user", "userAgent", "ip", "protocol", "id", "action", "query"):
            for text in (key, f"live/{key}", cut, "x" * 230 + key, "x" * 490 + key):
                life.ask(life.key, **{member: text})
                life.ask("", **{member: text})
        for member in ("path", "source_type", "source_id", "other"):
            for text in (key, cut, "x" * 230 + key):
                for hook in ("ready", "not-ready"):
                    body = {"path": "live/cam7", "source_type": "rtmpConn", "source_id": "c1", member: text}
                    life.back(f"/webhook/{hook}", body)
        for path in (f"/{key}", f"/streams/{key}", f"/stream-keys/{key}", f"/errors/{key}", f"/{'x' * 495}{key}"):
            for method in ("GET", "DELETE", "PATCH", "BREW"):
                life.call(method, path, json={})
        for name in ("path", "cursor", "status", "since", "limit", "broadcaster_id", "node", key):
            life.call("GET", f"/streams?{name}={key}")
        life.back(f"/auth?node={key}", {"action": "read"})
        life.back(f"/auth?node={'x' * 40}{key}", {"action": "read"})
        life.back(f"/auth?{key}=1", {"action": "read", "path": key})
        for name, value in (
            ("X-Request-ID", key),
            ("X-API-Key", key),
            ("Authorization", f"Bearer {key}"),
            ("Authorization", f"Digest username={key}"),
            ("Authorization", basic(key, key)),
            ("Authorization", key),
            ("X-Signature", key),
            ("Cookie", f"key={key}"),
            ("Referer", f"https://x/?{key}"),
            ("Origin", f"https://{key}"),
            ("User-Agent", key),
            ("If-None-Match", f'"{key}"'),
            ("Host", key),
            (key, "x"),
        ):
            for path in ("/streams", "/nodes", "/nowhere"):
                life.call("GET", path, headers={name: value})
            life.call("POST", "/auth", headers={name: value}, json={"action": "publish", "password": key})
        for text in (key, f'"{key}"', f'{{"{key}": ', f'{{"action": {{"{key}": 1}}}}', f'["{key}"]'):
            for path in ("/auth", "/webhook/ready"):
                headers = {"Authorization": basic("x", PLANTED["MEDIAMTX_CALLBACK_SECRET"])}
                life.call("POST", path, data=text, headers=headers)
            life.call("POST", "/broadcasters", data=text, headers={"Content-Type": "application/json"})
            life.call("POST", "/broadcasters", data=text, headers={"Content-Type": f"text/{key}"})
        refused = {"broadcaster_id": key, "takeover": key, "expires_at": key, "id": key, "path": key, "disabled": key}
        life.call("POST", "/stream-keys", json=refused)


def use_the_other_secrets(life: Life) -> None:
    read, metrics, media = (PLANTED[name] for name in ("READ_SECRET", "METRICS_SECRET", "MEDIAMTX_API_PASSWORD"))
    questions: tuple[tuple[dict[str, str], int], ...] = (
        ({"action": "read", "password": read}, 200),
        ({"action": "read", "token": read}, 200),
        ({"action": "read", "query": quote(read, safe="")}, 401),
        ({"action": "playback", "query": f"token={quote(read, safe='')}"}, 200),
        ({"action": "read", "user": read, "password": "x"}, 401),
        ({"action": "metrics", "password": metrics}, 200),
        ({"action": "pprof", "token": metrics}, 200),
        ({"action": "api", "password": metrics}, 401),
        ({"action": "api", "user": "streamorch", "password": media}, 200),
        ({"action": "publish", "path": "a", "id": "x", "password": media}, 401),
        ({"action": "publish", "path": "a", "id": "y", "token": API_SECRET}, 401),
    )
    for given, status in questions:
        assert life.back("/auth", given) == status, given
    before = basic("mediamtx", PLANTED["the callback secret before"])
    assert life.back("/auth", {"action": "read", "password": read}, headers={"Authorization": before}) == 200
    wrong: tuple[dict[str, str], ...] = (
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {API_SECRET}"},
        {"Authorization": f"bearer  {API_SECRET} "},
        {"Authorization": "", "X-API-Key": API_SECRET},
        {"X-API-Key": "x", "X-Timestamp": str(int(time.time())), "X-Signature": API_SECRET},
        {"X-API-Key": API_SECRET, "X-Timestamp": "0", "X-Signature": "x"},
        {"X-Request-ID": API_SECRET},
    )
    for headers in wrong:
        life.call("GET", "/streams", headers=headers)
        life.call("GET", "/nodes", headers=headers)
        life.call("POST", "/webhook/ready", headers=headers, json={"path": "a"})


def send_what_is_malformed(life: Life) -> None:
    bearer = f"Bearer {API_SECRET}"
    for line in (
        f"Authorization {bearer}",
        f"Authorization : {bearer}",
        f"{bearer}: x",
        f"Authorization: {bearer}\x00",
        f"Authorization: {bearer}{'x' * 9000}",
        f"X: 1\r\n {bearer}",
        f"Expect: {bearer}",
        f"Transfer-Encoding: {bearer}",
        f"Content-Length: {bearer}",
        f"Host: {bearer}",
    ):
        life.raw(f"GET /streams HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
    for line in (
        f"GET /streams?key={life.key} {bearer} HTTP/1.1",
        f"{life.key} / HTTP/1.1",
        f"GET {life.key} HTTP/1.1",
    ):
        life.raw(f"{line}\r\nHost: x\r\n\r\n".encode())
    head = f"POST /nodes HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\r\nTransfer-Encoding: chunked\r\n\r\n"
    for body in (f"{life.key}\r\n", f"5;{life.key}=\x01\r\nhello\r\n0\r\n\r\n", f"0\r\n{bearer}\r\n\r\n"):
        life.raw((head + body).replace("/nodes", "/broadcasters").encode())
    with socket.create_connection((urlsplit(life.service.url).hostname, urlsplit(life.service.url).port)) as client:
        client.sendall((head + "5\r\n" + life.key).encode())  # and away, in the middle of it


def break_what_can_break(life: Life, broadcaster: str) -> None:
    """A traceback, a lock, a database that is gone, a media server that refuses us."""
    life.sql("ALTER FUNCTION claim_v1 RENAME TO claim_v1_away")
    assert life.ask(life.key) == 500
    assert life.call("GET", "/streams?status=all&path=x", headers={"X-Request-ID": "traceback"}).status_code == 200
    life.sql("ALTER FUNCTION claim_v1_away RENAME TO claim_v1")
    assert "Traceback" in life.service.log.read_text()
    made = life.made("/stream-keys", broadcaster_id=broadcaster)
    key_id, key = made["id"], made["key_value"]
    life.sql("ALTER TABLE stream_keys ADD CONSTRAINT broken CHECK (label <> 'broken')")
    assert life.call("PATCH", f"/stream-keys/{key_id}", json={"label": "broken"}).status_code == 500
    life.sql("ALTER TABLE stream_keys DROP CONSTRAINT broken")
    life.is_broken = True
    with psycopg.connect(life.service.database_url) as holder:
        holder.execute("SELECT 1 FROM stream_keys FOR UPDATE")
        assert life.ask(key, "live/locked") == 503
        assert life.call("DELETE", f"/stream-keys/{key_id}").status_code == 503
    life.is_broken = False
    password, life.fake.password = life.fake.password, "another"
    until(lambda: life.call("GET", "/nodes").json()["nodes"][0]["api"] == "unauthorized")
    life.fake.answer(500, b"x" * 1000)
    time.sleep(0.5)
    life.fake.heal()
    life.fake.password = password
    until(lambda: life.call("GET", "/nodes").json()["nodes"][0]["api"] == "ok")
    life.is_broken = True
    os.kill(life.service.postmaster(), signal.SIGINT)
    until(lambda: life.ask(key, "live/locked") == 503)
    life.call("GET", "/stream-keys")
    life.call("GET", "/health")
    until(lambda: not (life.service.folder / "data" / "postmaster.pid").exists())
    life.service.start_database()
    until(lambda: life.call("GET", "/health").status_code == 200)
    life.is_broken = False


def start_wrongly(life: Life, broadcaster: str) -> None:
    """The commands, and starts with settings that are wrong."""
    life.command("migrate")
    life.command("broadcasters", "list")
    life.command("keys", "list")
    life.command("keys", "create", broadcaster, is_secret=True)
    life.command("keys", "create", broadcaster, "--path", f"live/{STRAY}", fails=True)
    life.command("clients", "list")
    life.command("clients", "create", "Deck", is_secret=True)
    life.command("clients", "create", STRAY_SECRET, fails=True)
    life.command("reconcile", "--once")
    life.command("serve", fails=True)  # the port is taken
    secret = PLANTED["the database's password"]
    for wrong in (
        {"DATABASE_URL": f"postgresql://u:{secret}@[::1/x"},
        {"DATABASE_URL": f"postgresql://u:{quote(secret, safe='')}@127.0.0.1:1/x"},
        {"DATABASE_URL": f"postgresql://u:{quote(secret, safe='')}@127.0.0.1:1/x?nonsense=1"},
        {"DATABASE_URL": f"mysql://u:{quote(secret, safe='')}@h/x"},
        {"DATABASE_URL": f"host=127.0.0.1 port=1 password='{secret}'"},
        {"MEDIAMTX_API_URL": f"http://u:{PLANTED['MEDIAMTX_API_PASSWORD']}@h:99999"},
        {"CALLBACK_URL": f"ftp://u:{PLANTED['MEDIAMTX_CALLBACK_SECRET']}@h"},
        {"API_SECRET_FILE": "/nowhere"},
        {"API_SECRET": f"{API_SECRET}\x07"},
        {"MEDIAMTX_CALLBACK_SECRET": f"{PLANTED['MEDIAMTX_CALLBACK_SECRET']}ü"},
        {"READ_POLICY": "secret", "READ_SECRET": ""},
    ):
        for command in (["serve"], ["reconcile", "--once"])[: 1 + ("DATABASE_URL" in wrong)]:
            done = life.run(*command, **wrong)
            assert done.returncode, wrong
            life.printed += [done.stdout, done.stderr]
    life.command("migrate", fails=True, DATABASE_URL=f"postgresql://u:{secret}@[::1/x")


def collect(life: Life) -> None:
    """What is left, by where it was found."""
    service = life.service
    processes = [service.process.pid, *service.workers(), *service.backends()]
    assert len(processes) > 5
    titles = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes]
    tables = []
    with psycopg.connect(service.database_url) as conn:
        conn.execute("SET log_statement = 'none'")
        conn.execute("SET log_min_duration_statement = -1")
        names = conn.execute(
            "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for name in [*(name for (name,) in names), "pg_stat_activity", "pg_prepared_statements", "pg_stat_user_tables"]:
            copy = psycopg.sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(psycopg.sql.Identifier(name))
            with conn.cursor().copy(copy) as rows:
                tables.append(b"".join(bytes(row) for row in rows))
    life.left = {
        "the log of the service": service.log.read_bytes(),
        "the log of PostgreSQL": service.server.log.read_bytes(),
        "the tables": b"\n".join(tables),
        "the titles of processes": b"\n".join(titles),
        "the URLs that were called": "\n".join(call.target for call in life.fake.calls).encode(),
        "the answers": b"\n".join(life.answers),
        "what commands print": b"\n".join(life.printed),
        "the files of the home": b"\n".join(
            file.read_bytes() for file in (service.folder / "home").rglob("*") if file.is_file()
        ),
    }


# --- the search ---

pytestmark = pytest.mark.slow
PLACES = [
    "the log of the service",
    "the log of PostgreSQL",
    "the tables",
    "the titles of processes",
    "the URLs that were called",
    "the answers",
    "what commands print",
    "the files of the home",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_left(place, life):
    assert hits(life.left[place], life.secrets) == set()


def test_the_life_was_a_full_one(life):
    """What is searched holds what it should: each refusal, an outage, tracebacks, statements with their parameters."""
    assert {200, 201, 204, 400, 401, 403, 404, 405, 409, 415, 500, 503} <= life.statuses
    assert life.slugs >= {
        "broadcaster-disabled",
        "database-unavailable",
        "forbidden",
        "internal-error",
        "invalid-request",
        "invalid-stream-key",
        "method-not-allowed",
        "not-found",
        "path-in-use",
        "path-not-allowed",
        "stream-key-disabled",
        "stream-key-expired",
        "stream-key-in-use",
        "stream-key-revoked",
        "stream-not-found",
        "stream-stopped",
        "unauthorized",
        "unsupported-media-type",
    }
    log = life.left["the log of the service"].decode()
    for said in ("Traceback", "kicked", "urllib3", '"level":"debug"', "the database is away", "no request of HTTP"):
        assert said in log, said
    # Statements with what was bound to them: of a key that is its hash, and nothing else.
    statements = life.left["the log of PostgreSQL"].decode()
    assert "claim_v1" in statements
    assert keys.digest(life.key).hex() in statements
    assert keys.digest(life.key).hex() in life.left["the tables"].decode()
    assert keys.digest(life.client).hex() in life.left["the tables"].decode()
    assert life.left["the URLs that were called"].count(b"/v3/") > 20
    assert b"gunicorn" in life.left["the titles of processes"]
    assert b"postgres" in life.left["the titles of processes"]


def test_each_secret_would_be_found(life):
    """The search itself: planted in a copy of the log, each in each form, once."""
    for name, secret in life.secrets.items():
        for form, needle in forms(secret).items():
            assert (name, form) in hits(life.left["the log of the service"] + needle + b"\n", life.secrets)
    assert ("API_SECRET", "base64 at 1") in hits(base64.b64encode(b"u:" + API_SECRET.encode() + b"x"), PLANTED) | hits(
        base64.b64encode(b"u" + API_SECRET.encode() + b"xyz"), PLANTED
    )
    line = json.dumps({"message": f"got {API_SECRET}"}).encode()
    assert ("API_SECRET", "JSON") in hits(line, PLANTED)


def test_the_one_place_that_shows_the_callback_secret_is_asked_for(life):
    """`mediamtx-config` prints it, since MediaMTX has to send it; of the other secrets nothing."""
    shown = life.command("mediamtx-config", is_secret=True)
    assert {name for name, _ in hits(shown, life.secrets)} == {"MEDIAMTX_CALLBACK_SECRET"}


def test_metadata_is_the_operators_own(life):
    """Whoever writes a key into it has it in the database and in answers; the log blots it out even so."""
    made = life.made("/broadcasters", display_name="Team 9", metadata={"note": STRAY})
    assert life.call("GET", f"/broadcasters/{made['id']}", is_secret=True).json()["metadata"] == {"note": STRAY}
    assert hits(life.service.log.read_bytes(), {"a stray key": STRAY}) == set()
    life.call("DELETE", f"/broadcasters/{made['id']}")


# --- compared in constant time ---


# Compared with == or in, and nobody's guess: two hashes of databases that an operator imports from and into.
INNOCENT = ["rescuestream.py: digest not in hashes.get(key.id, {digest})"]


def test_secrets_are_compared_by_one_function_alone():
    """`signing.matches`, which compares with every secret; nothing that is called a secret stands beside == or in."""
    words = ("secret", "password", "token", "signature", "credential", "authorization", "digest", "hash", "api_key")
    found = []
    for file in sorted((ROOT / "streamorch").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
                names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                names |= {name.attr for name in ast.walk(node) if isinstance(name, ast.Attribute)}
                if any(word in words for name in names for word in (name, name.rstrip("s"), name.rpartition("_")[2])):
                    found.append(f"{file.name}: {ast.unparse(node)}")
    assert found == INNOCENT


def test_every_secret_is_compared(monkeypatch):
    """Also when the first one matches: how long it takes tells nobody which it was."""
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    for given, expected in (("a", True), ("b", True), ("c", True), ("d", False)):
        compared.clear()
        assert signing.matches(given, ("a", "b", "c")) is expected
        assert compared == [b"a", b"b", b"c"]

"""The application as it is, its log kept, and what must be true after each request to it."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import flask.testing
import psycopg
import pytest
from werkzeug.test import TestResponse

from streamorch import keys, logs, problems
from streamorch.app import create_app
from streamorch.settings import Settings
from tests.conftest import API_SECRET, NO_MEDIA_SERVER, empty
from tests.fuzz import KEY, PART

TABLES = ("streams", "stream_keys", "broadcasters", "departures")  # of nodes the reconciler writes as time passes
OPERATORS = ["metadata", "recording_ref", "label", "display_name"]


class Heard(logging.Handler):
    """What the service says, as its own formatter would write it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logs.JSONFormatter().format(record))


class Subject:
    """The application, and a judge of its answers."""

    def __init__(self, client: flask.testing.FlaskClient, conn: psycopg.Connection, heard: Heard):
        self.client = client
        self.conn = conn
        self.heard = heard
        self.ids: dict[str, str] = {}

    def ask(self, method: str, path: str, *, statuses: set[int], **more: Any) -> TestResponse:
        """One answer: of the described statuses, an error a problem, nothing unforeseen, and no key in it."""
        self.heard.lines.clear()
        answer = self.client.open(path, method=method, **more)
        assert answer.status_code in statuses, (answer.status_code, answer.text, self.heard.lines)
        if answer.status_code >= 400 and method != "HEAD":
            assert answer.content_type == "application/problem+json"
            told = json.loads(answer.data)
            assert told["type"].removeprefix("/errors/") in problems.TABLE
            assert told["status"] == answer.status_code
            assert answer.status_code != 400 or told["errors"], told  # which name a field
        said = "".join(self.heard.lines)
        assert PART not in said, said
        # What the operator writes into metadata is his; everywhere else no key comes back.
        assert answer.status_code < 400 or PART not in answer.text
        assert "unforeseen" not in said, said
        assert "was not stored" not in said, said
        return answer

    def everything(self) -> str:
        """All that is stored, but for what an operator writes: that is his, and other tests here are operators."""
        every = psycopg.sql.SQL("SELECT (to_jsonb(t) - {}::text[])::text FROM {} AS t ORDER BY 1")
        return str(
            [
                self.conn.execute(
                    every.format(psycopg.sql.Literal(OPERATORS), psycopg.sql.Identifier(table))
                ).fetchall()
                for table in TABLES
            ]
        )


@pytest.fixture(scope="module")
def heard() -> Iterator[Heard]:
    handler = Heard()
    logging.getLogger("streamorch").addHandler(handler)
    yield handler
    logging.getLogger("streamorch").removeHandler(handler)


@pytest.fixture(scope="module")
def subject(shared_url: str, heard: Heard) -> Iterator[Subject]:
    """One for all examples of a module, with a broadcaster, a key and a live stream."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    settings = {"DATABASE_URL": shared_url, "API_SECRET": API_SECRET, "MEDIAMTX_API_URL": NO_MEDIA_SERVER}
    app = create_app(
        Settings.from_env(settings | {"MEDIAMTX_CALLBACK_SECRET": "callback", "TRUSTED_PROXIES": "127.0.0.1"})
    )
    root.handlers = handlers
    service = app.extensions["streamorch"]
    service.database.await_connection(10)
    with psycopg.connect(shared_url, autocommit=True) as conn:
        subject = Subject(app.test_client(), conn, heard)
        fill(subject)
        yield subject
    service.kicker.close()
    service.refusals.close()
    service.callers.close()
    service.database.close()
    empty(shared_url)
    root.handlers, root.level = handlers, level


def fill(subject: Subject) -> None:
    bearer = {"Authorization": f"Bearer {API_SECRET}"}
    callback = {"Authorization": "Bearer callback"}

    def made(path: str, **members: str) -> str:
        return str(json.loads(subject.client.post(path, json=members, headers=bearer).data)["id"])

    broadcaster_id = made("/broadcasters", display_name="Team 7")
    key_id = made("/stream-keys", broadcaster_id=broadcaster_id)
    subject.conn.execute(
        "UPDATE stream_keys SET key_hash = %s, hint = %s WHERE id = %s", [keys.digest(KEY), keys.hint(KEY), key_id]
    )
    question = {"action": "publish", "path": "live/cam7", "protocol": "rtmp", "id": "c1", "password": KEY}
    assert subject.client.post("/auth", json=question, headers=callback).status_code == 200
    hook = {"path": "live/cam7", "source_type": "rtmpConn", "source_id": "c1"}
    assert subject.client.post("/webhook/ready", json=hook, headers=callback).status_code == 204
    (stream,) = json.loads(subject.client.get("/streams", headers=bearer).data)["streams"]
    subject.ids = {"broadcasters": broadcaster_id, "stream-keys": key_id, "streams": stream["id"]}

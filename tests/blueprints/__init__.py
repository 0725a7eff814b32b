"""The API through its client: each test looks at the answer and at the rows."""

import datetime
import json
import logging
from collections.abc import Callable
from typing import Any, LiteralString

import flask
import pytest
from psycopg.rows import dict_row
from werkzeug.test import TestResponse

from streamorch.repositories import Connection

NOW = datetime.datetime.now(datetime.UTC)
PAST = NOW - datetime.timedelta(hours=1)
FUTURE = NOW + datetime.timedelta(hours=1)
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


def text_of(moment):
    """A moment as the API writes it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def problem(answer: TestResponse, slug: str, status: int) -> dict[str, Any]:
    """The body of the problem that this answer must be."""
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = json.loads(answer.data)
    assert body.keys() - {"errors"} == {"type", "title", "status", "detail", "instance"}
    assert (body["type"], body["status"]) == (f"/errors/{slug}", status)
    assert body["title"]
    assert body["detail"]
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
    assert ("Retry-After" in answer.headers) == (status in (429, 503))
    assert ("errors" in body) == (status == 400)
    return body


def fields(answer: TestResponse) -> set[str]:
    """The fields that an invalid-request names."""
    return {error["field"] for error in problem(answer, "invalid-request", 400)["errors"]}


def rows(conn: Connection, query: LiteralString, *params: object) -> list[dict[str, Any]]:
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, params).fetchall()


def only(conn: Connection, query: LiteralString, *params: object) -> dict[str, Any]:
    """The one row there is."""
    (found,) = rows(conn, query, *params)
    return found


def debugging(make_app: Callable[..., flask.Flask]) -> flask.Flask:
    """An application that logs at debug, but for its pool: whose threads may outlive what the test listens with."""
    app = make_app(LOG_LEVEL="debug")
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    return app


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The lines of the log since the last look; the application must have been made after capsys."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


class WithAMediaServer:
    """For classes of tests whose application has a media server, `fake`."""

    @pytest.fixture
    def app(self, make_app, fake):
        return make_app(MEDIAMTX_API_URL=fake.url)

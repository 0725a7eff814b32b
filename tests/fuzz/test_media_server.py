"""What a Control API answers: a broken or hostile one is as good as silent, whatever it says."""

import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamorch import tracks
from streamorch.mediamtx import LISTS, ControlAPI, NoAnswer
from streamorch.reconciler import Reconciler
from streamorch.repositories import PatientConnection, connect
from streamorch.settings import Settings
from tests.conftest import API_SECRET, NO_MEDIA_SERVER
from tests.fuzz import VALUES, budget, changed, control_api, nearly, written

CALLS: dict[str, tuple[str, Callable[[ControlAPI], Any]]] = {
    "info": ("info", lambda api: api.info(seconds=1).names_rtsp_sessions),
    "paths": ("paths", lambda api: [(each.publisher_id, each.viewers) for each in api.paths(seconds=1)]),
    "connections": ("connections", lambda api: [each.received for each in api.connections("rtmpconns", seconds=1)]),
    "connection": ("connection", lambda api: api.connection("rtmp", "x/..", seconds=1)),
    "close rtsp": ("entry", lambda api: api.close("rtsp", "x", "live/cam7", seconds=1)),
    "close rtmp": ("connection", lambda api: api.close("rtmp", "x", "live/cam7", seconds=1)),
}


class Hostile:
    """Answers each request with the bytes of the moment, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(2)
                try:
                    client.recv(65536)
                    client.sendall(self.answer)
                except OSError:
                    pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


@pytest.fixture(scope="module")
def hostile() -> Iterator[Hostile]:
    server = Hostile()
    yield server
    server.close()


STATUS_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK"] * 6
    + [
        b"HTTP/1.1 404 Not Found",
        b"HTTP/1.1 401 Unauthorized",
        b"HTTP/1.1 400 Bad Request",
        b"HTTP/1.1 500 Oops",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 302 Found",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 999 x",
        b"HTTP/1.1 20 OK",
        b"HTTP/9.9 200 OK",
        b"ICY 200 OK",
        b"",
        b"\x00",
        b"x" * 70_000,
    ]
)
HEADERS = st.lists(
    st.sampled_from(
        [
            b"Content-Type: application/json",
            b"Content-Type: text/plain",
            b"Content-Type: \xff",
            b"Content-Encoding: gzip",
            b"Content-Encoding: deflate, br",
            b"Transfer-Encoding: chunked",
            b"Content-Length: 5",
            b"Content-Length: 99999999",
            b"Content-Length: -1",
            b"Content-Length: x",
            b"Location: file:///etc/passwd",
            b"Set-Cookie: \xff=\x00",
            b"WWW-Authenticate: Digest qop=x",
            b"no colon",
            b" folded",
            b"X: " + b"y" * 70_000,
        ]
        + [b"X-%d: y" % number for number in range(3)]
    ),
    max_size=4,
)


@budget(150)
@given(st.sampled_from(list(CALLS.values())), STATUS_LINES, HEADERS, st.data())
def test_any_answer_is_an_answer_or_none(hostile, call, status, headers, data):
    what, ask = call
    body = data.draw(nearly(control_api()[what]))
    hostile.answer = b"\r\n".join([status, *headers, b"", b""]) + body
    with suppress(NoAnswer):
        ask(ControlAPI(hostile.url, user="streamorch", password="secret"))


@budget(50)
@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1))
def test_any_secret_can_be_sent(hostile, secret):
    hostile.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    assert ControlAPI(hostile.url, user=secret, password=secret).info(seconds=1).version is None


@budget(300)
@given(st.one_of(VALUES, st.lists(VALUES)))
def test_tracks_of_any_form_are_a_list(value):
    described = json.dumps(value)
    found = tracks.in_one_form(described)
    assert all(each.keys() == {"codec", "properties"} for each in found)


class Told(ControlAPI):
    """One that is told by the test what was answered: status 200 each time."""

    def __init__(self) -> None:
        super().__init__(NO_MEDIA_SERVER, user="streamorch", password="secret")
        self.told: dict[str, bytes] = {}

    def _call(self, method: str, path: str, seconds: float, body: object = None) -> bytes | None:
        return self.told.get(path.split("/")[2], b"{}")


@pytest.fixture(scope="module")
def patient(shared_url: str) -> Iterator[PatientConnection]:
    with connect(shared_url) as conn:
        yield conn


def items(data: st.DataObject, of: str, **given_members: Any) -> Any:
    """A list as it was recorded, with the publisher of the test in it, changed."""
    recorded = data.draw(st.sampled_from(control_api()[of]))
    ours = [item | given_members for item in recorded["items"] if set(given_members) <= item.keys()][:1]
    return data.draw(changed(recorded | {"items": [*ours, *recorded["items"]]}))


INFO = st.fixed_dictionaries(
    {},
    optional={
        "started": st.sampled_from(
            ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-31", "now", "1e9"]
        ),
        "version": st.sampled_from(
            ["v1.19.\xb2", "v" + "9" * 5000 + ".1.1", "1.20.1-rc1", "v", "v1..2", "\x00", "x\ny"]
        ),
    },
)


@budget(50)
@given(st.data())
def test_a_tick_survives_whatever_it_sees(subject, patient, data):
    """It sees all, something or nothing of it; and what it wrote can be shown."""
    api = Told()
    source = {"type": "rtmpConn", "id": "c1"}
    info = data.draw(st.sampled_from(control_api()["info"])) | data.draw(INFO)
    api.told["info"] = data.draw(written(data.draw(changed(info))))
    api.told["paths"] = data.draw(written(items(data, "paths", name="live/cam7", source=source)))
    for name in data.draw(st.sets(st.sampled_from([name for names in LISTS.values() for name in names]), max_size=3)):
        api.told[name] = data.draw(written(items(data, "connections", id="c1", path="live/cam7")))
    settings = {"DATABASE_URL": "postgresql:///unused", "API_SECRET": API_SECRET, "UNKNOWN_PUBLISHERS": "kick"}
    report = Reconciler(Settings.from_env(settings), api).tick(patient, force=True)
    assert report is not None
    bearer = {"Authorization": f"Bearer {API_SECRET}"}
    for path in ("/nodes", "/streams", "/streams?status=all", f"/streams/{subject.ids['streams']}"):
        subject.ask("GET", path, statuses={200}, headers=bearer)
    subject.conn.execute(
        "UPDATE streams SET ended_at = NULL, end_reason = NULL, kick_requested_at = NULL WHERE id = %s",
        [uuid.UUID(subject.ids["streams"])],
    )
    assert patient.info.transaction_status == psycopg.pq.TransactionStatus.IDLE

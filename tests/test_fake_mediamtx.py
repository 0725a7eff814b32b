"""The fake server says what real ones said, and fails as it is told."""

import base64
import http.client
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from streamorch import mediamtx_config
from streamorch.settings import Settings
from tests.fake_mediamtx import (
    CONNECTIONS,
    JSON,
    LISTS,
    RECORDED,
    VERSIONS,
    Answer,
    FakeMediaMTX,
    Publisher,
    recording,
)

ENCRYPTED = ("rtmpsconns", "rtspsconns", "rtspssessions")
NOBODY = "00000000-0000-4000-8000-000000000000"

each_version = pytest.mark.parametrize("version", VERSIONS)


def call(
    fake: FakeMediaMTX,
    target: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    seconds: float = 5,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=seconds)
    try:
        connection.request(method, target, body, headers or {})
        reply = connection.getresponse()
        content = reply.read()
        names = ("WWW-Authenticate", "Location")
        return Answer(reply.status, reply.headers["Content-Type"], content, *(reply.headers[name] for name in names))
    finally:
        connection.close()


def got(fake: FakeMediaMTX, target: str) -> Any:
    answer = call(fake, target)
    assert (answer.status, answer.content_type) == (200, JSON), answer
    return json.loads(answer.body)


def items(fake: FakeMediaMTX, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = got(fake, f"/v3/{name}/list?itemsPerPage=100000")["items"]
    return found


def names(fake: FakeMediaMTX) -> list[str]:
    return [path["name"] for path in items(fake, "paths")]


def recorded(version: str, name: str) -> Answer:
    found = recording(version)["answers"][name]
    return Answer(found["status"], found["content_type"], found["body"].encode(), found.get("www_authenticate"))


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version[1:].split("."))


@pytest.fixture(params=VERSIONS)
def any_version(request: pytest.FixtureRequest) -> Iterator[FakeMediaMTX]:
    with FakeMediaMTX(request.param) as server:
        server.switch_on(*ENCRYPTED)
        yield server


def protocols(version: str) -> list[str]:
    return [protocol for protocol, name in LISTS.items() if name in recording(version)["lists"]]


# --- what it answers --------------------------------------------------------------------------------------


def test_publishers_have_the_members_that_were_recorded(any_version):
    for protocol in protocols(any_version.version):
        publisher = any_version.publish(f"live/{protocol}", protocol)
        lists = recording(any_version.version)["lists"]
        for name, item_id in listed_as(publisher):
            (item,) = items(any_version, name)
            assert list(item) == list(lists[name]["publish"])
            assert (item["id"], item.get("state", "publish")) == (item_id, "publish")
            assert item.get("path", publisher.path) == publisher.path
            assert got(any_version, f"/v3/{name}/get/{item_id}") == item
        path = got(any_version, f"/v3/paths/get/live/{protocol}")
        model = recording(any_version.version)["paths"][protocol]
        assert list(path) == list(model)
        assert path["source"] == {"type": model["source"]["type"], "id": publisher.source_id}
        assert path["source"]["type"] == publisher.source_type
        assert (path["ready"], path["confName"]) == (True, "all_others")
        any_version.leave(publisher)


def listed_as(publisher: Publisher) -> list[tuple[str, str]]:
    """The lists that show it, and by which id."""
    found = [(LISTS[publisher.protocol], publisher.source_id)]
    if publisher.protocol in CONNECTIONS:
        found.append((CONNECTIONS[publisher.protocol], publisher.connection_id))
    return found


def test_who_waits_is_listed_as_was_recorded_and_on_no_path(any_version):
    for protocol in protocols(any_version.version):
        publisher = any_version.publish(f"live/{protocol}", protocol, live=False)
        for name, item_id in listed_as(publisher):
            (item,) = items(any_version, name)
            model = recording(any_version.version)["lists"][name]
            assert list(item) == list(model.get("waiting", model["publish"]))
            assert item["id"] == item_id
            if "state" in item:
                is_webrtc = protocol == "webrtc"
                assert item["state"] == ("publish" if is_webrtc else "idle")
                assert item["path"] == (publisher.path if is_webrtc else "")
        assert names(any_version) == []
        any_version.go_live(publisher)
        assert names(any_version) == [publisher.path]
        any_version.leave(publisher)
        assert [items(any_version, name) for name, _ in listed_as(publisher)] == [[] for _ in listed_as(publisher)]


def test_auth_names_an_rtsp_publisher_by_its_connection_before_1_19_3(any_version):
    chosen = str(uuid.uuid4())
    publisher = any_version.publish("live/cam7", "rtsp", chosen)
    assert publisher.auth_id == chosen
    assert publisher.source_id != publisher.connection_id
    is_old = number(any_version.version) < (1, 19, 3)
    assert chosen == (publisher.connection_id if is_old else publisher.source_id)
    (connection,) = items(any_version, "rtspconns")
    (session,) = items(any_version, "rtspsessions")
    assert connection.get("session") == (publisher.source_id if any_version.version != "v1.9.3" else None)
    assert session.get("conns", [connection["id"]]) == [connection["id"]]


def test_other_publishers_have_one_id(any_version):
    for protocol in set(protocols(any_version.version)) - set(CONNECTIONS):
        publisher = any_version.publish("live/cam7", protocol)
        assert publisher.auth_id == publisher.source_id == publisher.connection_id


def test_paths_without_a_publisher_are_as_recorded(any_version):
    models = recording(any_version.version)["paths"]
    any_version.idle_path("idle")
    any_version.static("pulled")
    any_version.static("waiting", "hlsSource", available=False)
    shown = {path["name"]: path for path in items(any_version, "paths")}
    assert list(shown) == ["idle", "pulled", "waiting"]
    assert shown["idle"] == models["idle"]
    assert shown["pulled"] == models["static"]
    source = {"type": "hlsSource", "id": ""}
    assert shown["waiting"] == models["static, waiting"] | {"name": "waiting", "confName": "waiting", "source": source}


@each_version
def test_an_always_available_path_is_online_while_somebody_publishes(version):
    with FakeMediaMTX(version) as fake:
        if number(version) < (1, 16):
            with pytest.raises(ValueError, match="no path that is always available"):
                fake.always_available("filler")
            return
        fake.always_available("filler")
        assert items(fake, "paths") == [recording(version)["paths"]["always available"]]
        publisher = fake.publish("filler")
        (path,) = items(fake, "paths")
        assert (path["available"], path["online"], path["source"]["id"]) == (True, True, publisher.source_id)
        fake.leave(publisher)
        assert items(fake, "paths") == [recording(version)["paths"]["always available"]]


ANSWERS = [
    ("GET", "/v3/nosuchroute", "no route"),
    ("GET", "/v2/paths/list", "no route"),
    ("DELETE", "/v3/paths/get/live/cam1", "no route"),
    ("POST", "/v3/paths/list", "no route"),
    ("GET", f"/v3/rtmpconns/kick/{NOBODY}", "no route"),
    ("POST", f"/v3/rtspconns/kick/{NOBODY}", "no route"),
    ("GET", "/v3/rtmpconns/get/", "no route"),
    ("GET", "/v3/rtmpconns/get", "no route"),
    ("GET", "/v3/config/paths/add/live/d", "no route"),
    ("POST", "/v3/config/paths/delete/live/d", "no route"),
    ("GET", f"/v3/rtmpsconns/get/{NOBODY}", "no route"),
    ("GET", f"/v3/rtmpconns/get/{NOBODY}", "connection not found"),
    ("GET", f"/v3/rtmpconns/get/{NOBODY.replace('-', '')}", "connection not found"),
    ("POST", f"/v3/rtmpconns/kick/{NOBODY}", "connection not found"),
    ("POST", f"/v3/srtconns/kick/{NOBODY}", "connection not found"),
    ("GET", f"/v3/rtspconns/get/{NOBODY}", "connection not found"),
    ("POST", f"/v3/rtspsessions/kick/{NOBODY}", "session not found"),
    ("GET", f"/v3/webrtcsessions/get/{NOBODY}", "session not found"),
    ("GET", "/v3/hlsmuxers/get/nosuch", "muxer not found"),
    ("GET", "/v3/paths/get/live/unknown", "path not found"),
    ("GET", "/v3/paths/get/bad~name!", "path not found"),
    ("GET", "/v3/paths/get/", "invalid name"),
    ("GET", "/v3/rtmpconns/get/not-a-uuid", "invalid length"),
    ("POST", "/v3/rtmpconns/kick/not-a-uuid", "invalid length"),
    ("GET", f"/v3/rtmpconns/get/zzzzzzzz{NOBODY[8:]}", "invalid format"),
    ("GET", "/v3/paths/list?itemsPerPage=0", "invalid page"),
    ("GET", "/v3/rtmpconns/list?itemsPerPage=abc", "invalid number"),
    ("GET", "/v3/paths/list?itemsPerPage=1&page=2147483648", "out of range"),
    ("GET", "/v3/config/paths/get/nosuch", "entry not found"),
    ("DELETE", "/v3/config/paths/delete/nosuch", "no such entry"),
    ("PATCH", "/v3/config/paths/patch/nosuch", "no such entry"),
    ("POST", "/v3/config/paths/add/live/a", "entry exists"),
    ("POST", "/v3/config/paths/add/live/new", "written"),
]


@each_version
def test_what_it_says_is_what_was_recorded(version):
    with FakeMediaMTX(version) as fake:
        fake.idle_path("live/a")
        for method, target, name in ANSWERS:
            body = b'{"maxReaders":7}' if method in ("POST", "PATCH") else None
            assert call(fake, target, method, body) == recorded(version, name), target
        assert call(fake, "/v3/config/paths/add/live/b", "POST", b"") == recorded(version, "no body")
        unknown = call(fake, "/v3/config/paths/add/live/b", "POST", b'{"noSuchField":1}')
        assert unknown == recorded(version, "unknown field")
        publisher = fake.publish("live/cam7")
        assert call(fake, f"/v3/rtmpconns/kick/{publisher.source_id}", "POST") == recorded(version, "kicked")
        assert call(fake, "/v3/paths/list", "OPTIONS").status == 204


def test_a_wrong_id_is_named_by_its_length(fake):
    assert json.loads(call(fake, "/v3/rtmpconns/get/abc").body)["error"] == "invalid UUID length: 3"
    assert json.loads(call(fake, "/v3/paths/list?page=-1").body)["error"].startswith('strconv.ParseUint: parsing "-1"')


@each_version
def test_it_has_the_calls_of_its_version(version):
    with FakeMediaMTX(version) as fake:
        known = {
            name
            for name in ("info", "hlssessions/list", "moqsessions/list")
            if call(fake, f"/v3/{name}") != recorded(version, "no route")
        }
    since = {"info": (1, 15, 2), "hlssessions/list": (1, 18), "moqsessions/list": (1, 19)}
    assert known == {name for name, first in since.items() if number(version) >= first}


def test_info_names_version_and_start(any_version):
    if recording(any_version.version)["info"]:
        assert got(any_version, "/v3/info") == {"version": any_version.version, "started": any_version.started}
    started = any_version.started
    any_version.restart()
    assert any_version.started > started


def test_lists_can_be_switched_off_and_on(fake):
    publisher = fake.publish("live/cam7", "srt")
    fake.switch_off("srtconns")
    for target in ("list", f"get/{publisher.source_id}"):
        assert call(fake, f"/v3/srtconns/{target}") == recorded(fake.version, "no route")
    with pytest.raises(ValueError, match="srtconns is off"):
        fake.publish("live/cam8", "srt")
    fake.switch_on("srtconns")
    assert len(items(fake, "srtconns")) == 1


def test_only_its_versions_protocols_publish():
    with FakeMediaMTX("v1.18.0") as fake, pytest.raises(ValueError, match="has no moqsessions"):
        fake.publish("live/cam7", "moq")


def test_a_page_has_100_items_unless_the_request_says_otherwise(fake):
    fake.publish_many(250)
    page = got(fake, "/v3/paths/list")
    assert (page["itemCount"], page["pageCount"], len(page["items"])) == (250, 3, 100)
    assert page["items"][0]["name"] == "live/cam00000"
    page = got(fake, "/v3/rtmpconns/list?itemsPerPage=60&page=4")
    assert (page["itemCount"], page["pageCount"], len(page["items"])) == (250, 5, 10)
    assert page["items"][9]["path"] == "live/cam00249"
    page = got(fake, "/v3/paths/list?itemsPerPage=&page=7")
    assert (page["itemCount"], page["pageCount"], page["items"]) == (250, 3, [])
    assert len(got(fake, "/v3/paths/list?itemsPerPage=1000000")["items"]) == 250


def test_paths_are_sorted_by_name_and_connections_by_age(fake):
    for path in ("live/b", "live/c", "live/a"):
        fake.publish(path)
    assert names(fake) == ["live/a", "live/b", "live/c"]
    assert [item["path"] for item in items(fake, "rtmpconns")] == ["live/b", "live/c", "live/a"]


def test_many_paths_are_listed_quickly(fake):
    fake.publish_many(2000, bytes_per_second=1_000_000)
    first = got(fake, "/v3/paths/list?itemsPerPage=1000000")
    started = time.process_time()
    second = call(fake, "/v3/paths/list?itemsPerPage=1000000")
    assert time.process_time() - started < 0.1  # 0.006 measured
    grown = json.loads(second.body)
    counters = [[path["inboundBytes"] for path in page["items"]] for page in (first, grown)]
    assert all(old < new for old, new in zip(*counters, strict=True))


# --- who publishes, who reads -----------------------------------------------------------------------------


def counters(fake: FakeMediaMTX, publisher: Publisher) -> tuple[int, int]:
    """Of its connection and of its path."""
    name = "inboundBytes" if number(fake.version) >= (1, 17) else "bytesReceived"
    connection = got(fake, f"/v3/{LISTS[publisher.protocol]}/get/{publisher.source_id}")
    path = got(fake, f"/v3/paths/get/{publisher.path}")
    assert path["bytesReceived"] == path[name]
    return connection.get(name, connection["bytesReceived"]), path[name]


def test_bytes_that_are_sent_are_counted_twice_and_differently(any_version):
    for protocol in set(protocols(any_version.version)) - {"moq"}:
        publisher = any_version.publish("live/cam7", protocol)
        assert counters(any_version, publisher) == (0, 0)
        any_version.send(publisher, 16_000)
        assert counters(any_version, publisher) == (16_000, 15_000)


def test_counters_flow_until_they_freeze(fake):
    publisher = fake.publish("live/cam7", bytes_per_second=1_000_000)
    time.sleep(0.01)
    before = counters(fake, publisher)
    assert before[0] >= 10_000
    time.sleep(0.01)
    assert counters(fake, publisher)[0] >= before[0] + 10_000
    fake.freeze(publisher)
    assert counters(fake, publisher) == counters(fake, publisher)
    assert names(fake) == ["live/cam7"]
    fake.flow(publisher, 1_000_000)
    assert counters(fake, publisher) < counters(fake, publisher)


def test_the_newest_publisher_has_the_path(any_version):
    old = any_version.publish("live/cam7")
    new = any_version.publish("live/cam7", "srt")
    (path,) = items(any_version, "paths")
    assert path["source"]["id"] == new.source_id
    assert items(any_version, "rtmpconns") == []
    assert (old.is_live, new.is_live) == (False, True)
    any_version.leave(old)  # again: nothing is left to do
    assert names(any_version) == ["live/cam7"]


def test_readers_are_on_the_path_and_in_their_list(any_version):
    webrtc = recording(any_version.version)["paths"]["webrtc"]["source"]["type"]
    any_version.publish("live/cam7")
    (reader,) = any_version.read("live/cam7")
    (session,) = items(any_version, "webrtcsessions")
    assert (session["id"], session["state"], session["path"]) == (reader, "read", "live/cam7")
    if number(any_version.version) >= (1, 18):
        ids = any_version.read("live/cam7", "hlsSession", 2)
        assert [item["id"] for item in items(any_version, "hlssessions")] == ids
        hls = [{"type": "hlsSession", "id": reader_id} for reader_id in ids]
    else:
        any_version.read("live/cam7", "hlsMuxer")
        hls = [{"type": "hlsMuxer", "id": ""}]
    assert [muxer["path"] for muxer in items(any_version, "hlsmuxers")] == ["live/cam7"]
    (path,) = items(any_version, "paths")
    assert path["readers"] == [{"type": webrtc, "id": reader}, *hls]
    assert call(any_version, f"/v3/webrtcsessions/kick/{reader}", "POST").status == 200
    (path,) = items(any_version, "paths")
    assert path["readers"] == hls
    any_version.unread("live/cam7")
    (path,) = items(any_version, "paths")
    assert path["readers"] == items(any_version, "webrtcsessions") == items(any_version, "hlsmuxers") == []


def test_the_readers_leave_with_the_publisher(fake):
    publisher = fake.publish("live/cam7")
    fake.read("live/cam7", "srtConn", 3)
    assert len(items(fake, "srtconns")) == 3
    fake.leave(publisher)
    assert items(fake, "srtconns") == items(fake, "paths") == []


def kick(fake: FakeMediaMTX, publisher: Publisher) -> Answer:
    return call(fake, f"/v3/{LISTS[publisher.protocol]}/kick/{publisher.source_id}", "POST")


def test_a_kick_ends_a_publisher_live_or_not(any_version):
    for protocol in protocols(any_version.version):
        for live in (True, False):
            publisher = any_version.publish("live/cam7", protocol, live=live)
            assert kick(any_version, publisher) == recorded(any_version.version, "kicked")
            assert kick(any_version, publisher).status == 404
            assert any_version.kicks.pop() == publisher.source_id
            assert items(any_version, LISTS[protocol]) == items(any_version, "paths") == []
    assert any_version.kicks == []


def test_a_kick_may_come_too_late(fake):
    publisher = fake.publish("live/cam7")
    fake.vanish_before_kick(publisher)
    assert len(items(fake, "rtmpconns")) == 1
    assert kick(fake, publisher) == recorded(fake.version, "connection not found")
    assert (items(fake, "rtmpconns"), items(fake, "paths"), fake.kicks) == ([], [], [])


def test_a_kick_may_be_ignored(fake):
    publisher = fake.publish("live/cam7")
    fake.ignore_kicks(publisher)
    assert kick(fake, publisher).status == 200
    assert fake.kicks == [publisher.source_id]
    assert names(fake) == ["live/cam7"]


def test_the_first_kick_may_be_ignored_alone(fake):
    publisher = fake.publish("live/cam7")
    fake.ignore_kicks(publisher, times=1)
    assert kick(fake, publisher).status == 200
    assert fake.is_connected(publisher)
    assert kick(fake, publisher).status == 200
    assert not fake.is_connected(publisher)


def test_nobody_is_live_after_a_restart(fake):
    publisher = fake.publish("live/cam7")
    assert len(fake.read("live/cam7", n=2)) == fake.readers("live/cam7")
    fake.restart()
    assert (publisher.is_live, fake.is_connected(publisher), fake.readers("live/cam7")) == (False, False, 0)


def test_a_kick_of_a_live_rtsp_session_may_crash_the_server(fake):
    fake.crash_on_rtsp_kick = True
    waiting = fake.publish("live/cam6", "rtsp", live=False)
    publisher = fake.publish("live/cam7", "rtsp")
    assert kick(fake, waiting).status == 200
    with pytest.raises(http.client.RemoteDisconnected):
        kick(fake, publisher)
    with pytest.raises(ConnectionRefusedError):
        call(fake, "/v3/info")


def test_a_restart_forgets_everything_but_its_port(fake):
    publisher = fake.publish("live/cam7", "rtsp")
    fake.idle_path("idle")
    connection = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=5)
    connection.request("GET", "/v3/info")
    before = json.loads(connection.getresponse().read())
    port = fake.port
    fake.restart()
    assert fake.port == port
    assert connection.sock.recv(1) == b""
    connection.close()
    assert got(fake, "/v3/info")["started"] > before["started"]
    assert [items(fake, name) for name, _ in listed_as(publisher)] == [[], []]
    assert items(fake, "paths") == []
    assert fake.config_paths == set()


# --- entries of the configuration -------------------------------------------------------------------------


def write(fake: FakeMediaMTX, action: str, name: str, settings: str = '{"maxReaders":7}') -> int:
    method = {"patch": "PATCH", "delete": "DELETE"}.get(action, "POST")
    body = None if action == "delete" else settings.encode()
    return call(fake, f"/v3/config/paths/{action}/{name}", method, body).status


@pytest.mark.parametrize("protocol", ["rtmp", "rtsp"])
def test_an_entry_that_comes_or_goes_cuts_off_who_publishes_there(any_version, protocol):
    """But v1.9.3 leaves a path alone that was there first."""
    other = any_version.publish("live/cam8", protocol)
    publisher = any_version.publish("live/cam7", protocol)
    assert write(any_version, "add", "live/cam7") == 200
    assert any_version.config_paths == {"live/cam7"}
    assert publisher.is_live == (any_version.version == "v1.9.3")
    assert "live/cam7" in names(any_version)
    assert write(any_version, "delete", "live/cam7") == 200
    assert publisher.is_live == (any_version.version == "v1.9.3")
    any_version.leave(publisher)
    assert names(any_version) == ["live/cam8"]
    assert other.is_live


@pytest.mark.parametrize("action", ["patch", "replace", "delete"])
def test_an_entry_that_changes_cuts_off_who_publishes_there(any_version, action):
    write(any_version, "add", "live/cam7")
    publisher = any_version.publish("live/cam7")
    assert items(any_version, "paths")[0]["confName"] == "live/cam7"
    assert write(any_version, action, "live/cam7") == 200
    assert not publisher.is_live
    assert items(any_version, "rtmpconns") == []


def test_an_entry_may_take_its_time(fake):
    fake.apply_seconds = 0.3
    publisher = fake.publish("live/cam7", "rtsp")
    write(fake, "add", "live/cam7")
    write(fake, "delete", "live/cam7")
    assert len(items(fake, "rtspsessions")) == 1
    deadline = time.monotonic() + 5
    while publisher.is_live and time.monotonic() < deadline:
        time.sleep(0.01)
    assert items(fake, "rtspsessions") == items(fake, "paths") == []
    assert not publisher.is_live


def test_entries_hold_what_was_set(any_version):
    write(any_version, "add", "live/cam7")
    write(any_version, "patch", "live/cam7", '{"overridePublisher":false}')
    entry = got(any_version, "/v3/config/paths/get/live/cam7")
    assert list(entry) == list(recording(any_version.version)["entry"])
    assert (entry["name"], entry["maxReaders"], entry["overridePublisher"]) == ("live/cam7", 7, False)
    write(any_version, "replace", "live/cam7", "{}")
    assert got(any_version, "/v3/config/paths/get/live/cam7")["maxReaders"] == 0
    listed = got(any_version, "/v3/config/paths/list")["items"]
    assert [entry["name"] for entry in listed] == ["all_others", "live/cam7"]


# --- what goes wrong --------------------------------------------------------------------------------------


def test_calls_are_written_down(fake):
    call(fake, "/v3/info")
    call(fake, f"/v3/rtmpconns/kick/{NOBODY}?x=1", "POST")
    assert [seen[:2] for seen in fake.calls] == [("GET", "/v3/info"), ("POST", f"/v3/rtmpconns/kick/{NOBODY}?x=1")]
    assert fake.calls[0].time <= fake.calls[1].time <= time.monotonic()
    fake.forget_calls()
    assert fake.calls == []


def test_a_connection_serves_many_requests(fake):
    connection = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=5)
    ports = set()
    for _ in range(3):
        connection.request("GET", "/v3/info")
        ports.add(connection.sock.getsockname()[1])
        assert connection.getresponse().read()
    connection.close()
    assert len(ports) == 1


def test_head_has_no_body(fake):
    with socket.create_connection(("127.0.0.1", fake.port), 5) as client:
        client.sendall(b"HEAD /v3/info HTTP/1.1\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as stream:
            head, body = stream.read().split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"\r\nContent-Length: 18" in head
    assert body == b""


def test_slow(fake):
    fake.slow(10, "/v3/info")
    assert call(fake, "/v3/paths/list").status == 200
    fake.slow(0.05, "/v3/info")
    started = time.monotonic()
    assert call(fake, "/v3/info").status == 200
    assert time.monotonic() - started >= 0.05


def test_who_hangs_is_answered_when_it_heals(fake):
    publisher = fake.publish("live/cam7")
    fake.hang("/v3/rtmpconns/kick")
    with pytest.raises(TimeoutError):
        call(fake, f"/v3/rtmpconns/kick/{publisher.source_id}", "POST", seconds=0.05)
    assert names(fake) == ["live/cam7"]
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(kick(fake, publisher)))
    fake.forget_calls()
    thread.start()
    while not fake.calls:
        time.sleep(0.001)
    fake.heal()
    thread.join(5)
    # Both were released, in whatever order.
    assert answers[0].status in (200, 404)
    assert names(fake) == []


def test_it_closes_while_somebody_hangs():
    with FakeMediaMTX() as fake:
        fake.hang()
        client = socket.create_connection(("127.0.0.1", fake.port), 5)
        client.sendall(b"GET /v3/info HTTP/1.1\r\nHost: x\r\n\r\n")
        while not fake.calls:
            time.sleep(0.001)
    client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", fake.port), 5)


def test_nobody_listens_until_it_heals(fake):
    fake.publish("live/cam7")
    connection = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=5)
    connection.request("GET", "/v3/info")
    connection.getresponse().read()
    fake.refuse()
    assert connection.sock.recv(1) == b""
    connection.close()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            call(fake, "/v3/info")
    fake.heal()
    assert names(fake) == ["live/cam7"]


@pytest.mark.parametrize("status", [500, 503, 401])
def test_a_status_instead_of_what_was_asked(fake, status):
    publisher = fake.publish("live/cam7")
    fake.answer(status, b'{"error":"x"}', route="/v3/rtmpconns")
    assert kick(fake, publisher) == Answer(status, JSON, b'{"error":"x"}')
    assert names(fake) == ["live/cam7"]
    fake.heal("/v3/rtmpconns")
    assert kick(fake, publisher).status == 200


def test_garbage(fake):
    fake.answer(200, b"<html>", "text/html")
    assert call(fake, "/v3/info") == Answer(200, "text/html", b"<html>")
    fake.answer(200, b'{"items":"none"}')
    assert call(fake, "/v3/paths/list") == Answer(200, JSON, b'{"items":"none"}')
    fake.answer(302, location="/v3/info")
    assert call(fake, "/v3/paths/list") == Answer(302, JSON, location="/v3/info")


def test_half_a_body(fake):
    fake.break_off("/v3/info")
    with pytest.raises(http.client.IncompleteRead) as caught:
        call(fake, "/v3/info")
    body = json.dumps({"version": fake.version, "started": fake.started}, separators=(",", ":")).encode()
    assert caught.value.partial == body[: len(body) // 2]


def test_a_reset(fake):
    publisher = fake.publish("live/cam7")
    fake.reset("/v3/rtmpconns")
    with pytest.raises(ConnectionResetError):
        kick(fake, publisher)
    # It was done all the same.
    assert names(fake) == []


@pytest.mark.parametrize("head", [False, True])
def test_an_answer_that_drips(fake, head):
    fake.drip(0.0003, "/v3/info", head=head)
    started = time.monotonic()
    answer = call(fake, "/v3/info")
    assert json.loads(answer.body)["version"] == fake.version
    assert time.monotonic() - started > 0.0003 * len(answer.body)


def test_a_fault_may_end_by_itself_and_the_longest_route_counts(fake):
    fake.answer(500, times=2)
    fake.answer(503, route="/v3/info", times=1)
    seen = [call(fake, target).status for target in ("/v3/info", "/v3/info", "/v3/paths/list", "/v3/paths/list")]
    assert seen == [503, 500, 500, 200]


# --- its questions and hooks ------------------------------------------------------------------------------


class Service:
    """What stands behind callback_url: writes down what it is asked, and answers when it may."""

    def __init__(self, url: str):
        self.url = url
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()


@contextmanager
def running_service() -> Iterator[Service]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.asked.append((self.path, body, self.headers["Authorization"]))
            service.may_answer.wait(5)
            self.send_response(service.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service = Service(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield service
        finally:
            service.may_answer.set()
            server.shutdown()
            thread.join(5)


def test_it_asks_as_was_recorded(any_version):
    with running_service() as service:
        any_version.callback_url = service.url
        for protocol in protocols(any_version.version):
            publisher = any_version.publish("live/cam7", protocol, live=False)
            assert any_version.ask(publisher, "sk_1") == 200
            target, body, _ = service.asked.pop()
            templates = recording(any_version.version)["auth"]
            plain = protocol.replace("ps", "p")
            model = templates.get(plain, templates["webrtc"])
            expected = json.loads(json.dumps(model).replace("KEY", "sk_1"))
            assert target == "/auth"
            assert list(body) == list(model)
            assert body == expected | {"id": publisher.auth_id, "path": "live/cam7", "protocol": plain}
            any_version.go_live(publisher)
            if protocol == "rtmp":
                assert items(any_version, "rtmpconns")[0]["query"] == "user=&pass=sk_1"
        service.status = 401
        assert any_version.ask(any_version.publish("live/cam8", live=False), "sk_2") == 401


def test_hooks_tell_what_the_line_in_mediamtx_yml_tells(fake):
    with running_service() as service:
        fake.callback_url = service.url.replace("//", "//mediamtx:s%2Fecret@") + "/prefix/"
        fake.node = "a"
        publisher = fake.publish("live/cam7", "srt")
        service.status = 204
        assert fake.hook_ready(publisher) == 204
        fake.leave(publisher)
        service.status = 404
        assert fake.hook_not_ready(publisher) == 404
        told = {"path": "live/cam7", "source_type": "srtConn", "source_id": publisher.source_id}
        credential = "Basic " + base64.b64encode(b"mediamtx:s/ecret").decode()
        assert service.asked == [
            ("/prefix/webhook/ready?node=a", told, credential),
            ("/prefix/webhook/not-ready?node=a", told, credential),
        ]


def test_no_answer_is_zero(fake):
    fake.callback_url = "http://127.0.0.1:1"
    assert fake.ask(fake.publish("live/cam7", live=False), "sk_1") == 0


@each_version
def test_it_wants_its_credential(version):
    with FakeMediaMTX(version, user="streamorch", password="api-secret") as fake:
        right, wrong = (
            {"Authorization": "Basic " + base64.b64encode(f"streamorch:{password}".encode()).decode()}
            for password in ("api-secret", "nope")
        )
        assert call(fake, "/v3/paths/list", headers=right).status == 200
        assert call(fake, "/v3/paths/list", headers=wrong) == recorded(version, "wrong credentials")
        assert call(fake, "/v3/paths/list") == recorded(version, "no credentials")
        # Before it knows whether there is such a call.
        assert call(fake, "/v3/nosuch").status == 401


def test_it_may_ask_the_service_about_each_call(any_version):
    with running_service() as service:
        any_version.callback_url = service.url
        any_version.nested_auth = True
        credential = {"Authorization": "Basic " + base64.b64encode(b"streamorch:api-secret").decode()}
        assert call(any_version, "/v3/paths/list", headers=credential).status == 200
        ((target, body, _),) = service.asked
        model = json.dumps(recording(any_version.version)["auth"]["api"])
        assert (target, body) == (
            "/auth",
            json.loads(model.replace("USER", "streamorch").replace("PASSWORD", "api-secret")),
        )
        service.status = 401
        assert call(any_version, "/v3/paths/list").status == 401
    # The service is away.
    assert call(any_version, "/v3/paths/list").status == 401


@pytest.mark.parametrize("paths_wait", [True, False])
def test_paths_wait_while_a_question_is_open(fake, paths_wait):
    fake.paths_wait = paths_wait
    live = fake.publish("live/old", "rtsp")
    with running_service() as service:
        fake.callback_url = service.url
        service.may_answer.clear()
        statuses: list[int] = []
        publisher = fake.publish("live/cam7", live=False)
        thread = threading.Thread(target=lambda: statuses.append(fake.ask(publisher, "sk_1")))
        thread.start()
        while not service.asked:
            time.sleep(0.001)
        assert call(fake, "/v3/rtmpconns/list").status == 200
        assert call(fake, "/v3/info").status == 200
        for target, method in (("/v3/paths/list", "GET"), (f"/v3/rtspsessions/kick/{live.source_id}", "POST")):
            if paths_wait:
                with pytest.raises(TimeoutError):
                    call(fake, target, method, seconds=0.03)
            else:
                assert call(fake, target, method, seconds=2).status == 200
        service.may_answer.set()
        thread.join(5)
        assert statuses == [200]
        assert call(fake, "/v3/paths/list").status == 200


def test_the_recordings_hold_no_key():
    for version in VERSIONS:
        text = (RECORDED / f"{version}.json").read_text()
        assert recording(version)["version"] == version
        assert not re.search(r"sk_[A-Za-z0-9]|api-secret", text)


# --- its configuration ---


@each_version
def test_it_is_configured_by_what_we_print(version):
    settings = Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "x", "MEDIAMTX_RTMP_URL": "off"})
    with FakeMediaMTX(version) as fake:
        suits = mediamtx_config.parse_version(version)
        fake.load(mediamtx_config.config(settings, version=suits))
        options, defaults = got(fake, "/v3/config/global/get"), got(fake, "/v3/config/pathdefaults/get")
        assert (options["authMethod"], options["authHTTPExclude"], options["api"]) == ("http", [], True)
        assert (options["rtmp"], options["rtsp"]) == (False, True)
        start, end = mediamtx_config.hook_names(suits)
        assert (defaults[start], defaults[end]) == mediamtx_config.hook_lines(settings)
        assert [entry[start] for entry in items(fake, "config/paths")] == [defaults[start]]


@each_version
def test_it_does_not_know_the_names_of_another_version(version):
    settings = Settings.from_env({"DATABASE_URL": "postgresql:///x", "API_SECRET": "x"})
    other = mediamtx_config.OLDEST if version == "v1.20.1" else mediamtx_config.CURRENT
    with pytest.raises(ValueError, match="does not know runOn"):
        FakeMediaMTX(version).load(mediamtx_config.config(settings, version=other))


def test_an_old_name_of_a_hook_counts_when_it_is_set(fake):
    fake.path_defaults |= {"runOnReady": "x", "runOnAvailable": ""}
    assert got(fake, "/v3/config/pathdefaults/get")["runOnAvailable"] == ""
    assert items(fake, "config/paths")[0]["runOnAvailable"] == "x"

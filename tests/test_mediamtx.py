"""The client of the Control API, against all versions and all that may go wrong (tests/fake_mediamtx.py)."""

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import quote

import msgspec
import pytest

from streamorch import mediamtx, tracks
from streamorch.mediamtx import ControlAPI, Exclusion, Info, NoAnswer, Refused, Unauthorized
from tests.fake_mediamtx import CONNECTIONS, LISTS, VERSIONS, FakeMediaMTX, Publisher, recording

SECONDS = 2.0
SHORT = 0.15
ENCRYPTED = ("rtmpsconns", "rtspsconns", "rtspssessions")
NOBODY = "00000000-0000-4000-8000-000000000000"

each_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def fake() -> Iterator[FakeMediaMTX]:
    with FakeMediaMTX(user="streamorch", password="api-secret") as server:
        yield server


@pytest.fixture(params=VERSIONS)
def any_version(request: pytest.FixtureRequest) -> Iterator[FakeMediaMTX]:
    with FakeMediaMTX(request.param, user="streamorch", password="api-secret") as server:
        yield server


def client(fake: FakeMediaMTX) -> ControlAPI:
    return ControlAPI(fake.url, user="streamorch", password="api-secret")


def protocols(fake: FakeMediaMTX) -> list[str]:
    """Those that this server can be published with; the encrypted ones too."""
    fake.switch_on(*ENCRYPTED)
    return [protocol for protocol, name in LISTS.items() if name in recording(fake.version)["lists"]]


def in_auth(publisher: Publisher) -> str:
    """What auth calls its protocol: it does not tell RTMPS from RTMP."""
    return publisher.protocol.replace("ps", "p")


def kicked(fake: FakeMediaMTX) -> bool:
    return any("/kick/" in call.target for call in fake.calls)


# --- what it sees -----------------------------------------------------------------------------------------


@each_version
def test_info(version):
    with FakeMediaMTX(version) as fake:
        info = client(fake).info(seconds=SECONDS)
        is_old = version in ("v1.9.3", "v1.12.3")
        assert info == (Info() if is_old else Info(version, fake.started))
        assert info.names_rtsp_sessions == fake.names_rtsp_sessions


# --- its configuration ------------------------------------------------------------------------------------


def test_the_configuration_is_read(any_version):
    any_version.options |= {"hls": False, "authHTTPExclude": [{"action": "read", "path": "~^a"}]}
    any_version.path_defaults["overridePublisher"] = False
    any_version.idle_path("cam")
    api = client(any_version)
    options = api.options(seconds=SECONDS)
    assert (options.hls, options.rtmp, options.rtmpAddress) == (False, True, ":1935")
    assert options.authHTTPExclude == [Exclusion("read", "~^a")]
    defaults = api.path_defaults(seconds=SECONDS)
    assert defaults.overridePublisher is False
    is_new = any_version.version == "v1.20.1"
    assert (defaults.runOnOnline, defaults.runOnReady) == (("", None) if is_new else (None, ""))
    entries = api.path_entries(seconds=SECONDS)
    assert [(entry.name, entry.overridePublisher) for entry in entries] == [("all_others", False), ("cam", False)]
    assert {call.method for call in any_version.calls} == {"GET"}


def test_all_entries_are_read(fake):
    for number in range(150):
        fake.idle_path(f"cam{number}")
    assert len(client(fake).path_entries(seconds=SECONDS)) == 151


def test_the_clock_of_a_server(fake):
    fake.clock_ahead = 500
    clock = client(fake).clock(seconds=SECONDS)
    assert clock is not None
    assert clock - time.time() == pytest.approx(500, abs=30)


def test_the_version_of_a_server_that_somebody_built_is_without_the_end_of_its_line(fake):
    fake.answer(200, b'{"version": "v1.20.1\\n", "started": "2026-01-31T12:00:00Z"}', route="/v3/info")
    told = client(fake).info(seconds=SECONDS)
    assert told.version == "v1.20.1"
    assert told.names_rtsp_sessions


@pytest.mark.parametrize("ask", [ControlAPI.options, ControlAPI.path_defaults, ControlAPI.path_entries])
def test_a_configuration_that_cannot_be_had(fake, ask):
    with pytest.raises(Unauthorized):
        ask(ControlAPI(fake.url, user="streamorch", password="x"), seconds=SECONDS)
    fake.answer(404, b"404 page not found", "text/plain")
    with pytest.raises(NoAnswer, match="no Control API v3"):
        ask(client(fake), seconds=SECONDS)
    fake.answer(200, b'{"items": 7, "rtmp": 7, "overridePublisher": 7}')
    with pytest.raises(NoAnswer, match="another form"):
        ask(client(fake), seconds=SECONDS)
    fake.refuse()
    with pytest.raises(Refused):
        ask(client(fake), seconds=SECONDS)


# --- its version ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "names"),
    [
        (None, False),
        ("", False),
        ("v1.9.3", False),
        ("v1.19.2", False),
        ("v1.19.3", True),
        ("v1.19.10", True),
        ("v1.20.0", True),
        ("v1.20.1-5-gabcdef", True),
        ("v2.0.0", True),
        ("dev", False),
    ],
)
def test_auth_names_rtsp_sessions_since_1_19_3(version, names):
    assert Info(version).names_rtsp_sessions is names


def test_each_publisher_is_seen_in_the_paths(any_version):
    api = client(any_version)
    for protocol in protocols(any_version):
        if (any_version.version, protocol) == ("v1.9.3", "webrtc"):
            continue
        publisher = any_version.publish(f"live/{protocol}", protocol)
        (path,) = api.paths(seconds=SECONDS)
        assert (path.name, path.publisher_id) == (publisher.path, publisher.source_id)
        assert (path.viewers, len(tracks.in_one_form(path.described_tracks))) == (
            0,
            len(path_model(any_version, protocol)),
        )
        any_version.leave(publisher)
    assert api.paths(seconds=SECONDS) == []


def test_webrtc_has_another_name_in_v1_9_3():
    with FakeMediaMTX("v1.9.3") as fake:
        publisher = fake.publish("live/cam7", "webrtc")
        assert publisher.source_type in mediamtx.SOURCE_LISTS
        (path,) = client(fake).paths(seconds=SECONDS)
        assert path.publisher_id == publisher.source_id


def path_model(fake: FakeMediaMTX, protocol: str) -> list[str]:
    tracks: list[str] = recording(fake.version)["paths"][protocol]["tracks"]
    return tracks


@pytest.mark.parametrize("protocol", ["rtmp", "webrtc"])
def test_tracks_have_one_form(any_version, protocol):
    any_version.publish("live/cam7", protocol)
    (path,) = client(any_version).paths(seconds=SECONDS)
    model = recording(any_version.version)["paths"][protocol]
    properties = [track["codecProps"] for track in model["tracks2"]] if "tracks2" in model else None
    assert tracks.in_one_form(path.described_tracks) == [
        {"codec": codec, "properties": (properties[place] or {}) if properties else {}}
        for place, codec in enumerate(model["tracks"])
    ]
    assert tracks.in_one_form(path.described_tracks.decode()) == tracks.in_one_form(path.described_tracks)


@pytest.mark.parametrize("described", [None, b"", "", b"[]", b"null"])
def test_no_tracks(described):
    assert tracks.in_one_form(described) == []


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (None, ""),
        ('["H264", "MPEG-4 Audio"]', "H264, MPEG-4 Audio"),
        (
            '[{"codec": "H264", "codecProps": {"width": 1920, "height": 1080}}, {"codec": "Opus"}]',
            "H264 1920×1080, Opus",  # noqa: RUF001
        ),
        ('[{"codec": "VP8", "codecProps": null}]', "VP8"),
        ('[{"codec": "AV1", "codecProps": {"width": "wide", "height": 2}}]', "AV1"),
        ('[{"codec": null, "codecProps": {}}]', ""),
    ],
)
def test_tracks_in_words(described, words):
    assert tracks.in_words(tracks.in_one_form(described)) == words


def test_a_path_without_a_publisher_has_no_publisher(any_version):
    api = client(any_version)
    any_version.idle_path("idle")
    any_version.static("pulled")
    any_version.static("waiting", available=False)
    any_version.publish("live/waiting", live=False)
    assert [(path.name, path.publisher_id) for path in api.paths(seconds=SECONDS)] == [
        ("idle", None),
        ("pulled", None),
        ("waiting", None),
    ]


@pytest.mark.parametrize(
    ("members", "publisher"),
    [
        ('"available":true,"online":true,"source":{"type":"rtmpConn","id":"a"}', "a"),
        ('"ready":true,"source":{"type":"rtmpConn","id":"a"}', "a"),
        ('"ready":false,"available":true,"online":true,"source":{"type":"rtmpConn","id":"a"}', "a"),
        ('"ready":true,"available":false,"online":true,"source":{"type":"rtmpConn","id":"a"}', None),
        ('"available":true,"online":false,"source":{"type":"rtmpConn","id":"a"}', None),
        ('"ready":false,"source":{"type":"rtmpConn","id":"a"}', None),
        ('"ready":true,"source":{"type":"rtmpConn","id":""}', None),
        ('"ready":true,"source":{"type":"rtspSource","id":"a"}', None),
        ('"ready":true,"source":{"type":"newConn","id":"a"}', None),
        ('"ready":true,"source":null', None),
        ('"ready":true', None),
    ],
)
def test_a_publisher_is_a_client_that_is_there_with_media(members, publisher):
    path = msgspec.json.decode(f'{{"name":"live/cam7",{members}}}', type=mediamtx.Path)
    assert path.publisher_id == publisher


@pytest.mark.parametrize("version", ["v1.18.0", "v1.20.1"])
def test_an_always_available_path_has_a_publisher_while_somebody_publishes(version):
    with FakeMediaMTX(version) as fake:
        api = client(fake)
        fake.always_available("filler")
        seen = [api.paths(seconds=SECONDS)[0].publisher_id]
        publisher = fake.publish("filler")
        seen.append(api.paths(seconds=SECONDS)[0].publisher_id)
        fake.leave(publisher)
        seen.append(api.paths(seconds=SECONDS)[0].publisher_id)
        assert seen == [None, publisher.source_id, None]


def test_viewers_are_the_readers_that_are_clients(any_version):
    any_version.publish("live/cam7")
    any_version.read("live/cam7", n=2)
    any_version.read("live/cam7", "rtspSession")
    is_old = any_version.version in ("v1.9.3", "v1.12.3", "v1.15.6")
    any_version.read("live/cam7", "hlsMuxer" if is_old else "hlsSession")
    (path,) = client(any_version).paths(seconds=SECONDS)
    assert path.viewers == (3 if is_old else 4)


def test_all_of_a_list_is_seen_not_its_first_page(fake):
    publishers = fake.publish_many(250)
    api = client(fake)
    assert [path.publisher_id for path in api.paths(seconds=SECONDS)] == [each.source_id for each in publishers]
    found = api.connections("rtmpconns", seconds=SECONDS)
    assert [each.id for each in found] == [each.source_id for each in publishers]
    assert len(fake.calls) == 2


def test_connections_live_and_waiting(any_version):
    api = client(any_version)
    for protocol in protocols(any_version):
        live = any_version.publish("live/cam7", protocol)
        waiting = any_version.publish("live/cam8", protocol, live=False)
        any_version.send(live, 12_345)
        found = {each.id: each for each in api.connections(LISTS[protocol], seconds=SECONDS)}
        assert found.keys() == {live.source_id, waiting.source_id}
        assert (found[live.source_id].path, found[live.source_id].state) == ("live/cam7", "publish")
        assert (found[live.source_id].received, found[waiting.source_id].received) == (12_345, 0)
        # WebRTC is the one that names its path before it is live.
        assert found[waiting.source_id].path == ("live/cam8" if protocol == "webrtc" else "")
        any_version.leave(live)
        any_version.leave(waiting)
        assert api.connections(LISTS[protocol], seconds=SECONDS) == []


@pytest.mark.parametrize("protocol", ["rtsp", "rtsps"])
def test_rtsp_connections_name_their_session_since_1_11(any_version, protocol):
    protocols(any_version)
    publisher = any_version.publish("live/cam7", protocol, live=False)
    (found,) = client(any_version).connections(CONNECTIONS[protocol], seconds=SECONDS)
    assert found.id == publisher.connection_id
    assert found.session == (None if any_version.version == "v1.9.3" else publisher.source_id)


@pytest.mark.parametrize("name", [*ENCRYPTED, "moqsessions", "hlssessions", "nosuch"])
def test_a_list_that_there_is_not_is_empty(name):
    with FakeMediaMTX("v1.9.3") as fake:
        assert client(fake).connections(name, seconds=SECONDS) == []


def test_a_publisher_is_found_by_every_id_that_names_it(any_version):
    api = client(any_version)
    for protocol in protocols(any_version):
        for live in (True, False):
            publisher = any_version.publish("live/cam7", protocol, live=live)
            any_version.send(publisher, 777)
            for name in {publisher.auth_id, publisher.source_id}:
                found = api.connection(in_auth(publisher), name, seconds=SECONDS)
                assert found is not None
                assert (found.id, found.received) == (name, 777)
            any_version.leave(publisher)
            assert api.connection(in_auth(publisher), publisher.source_id, seconds=SECONDS) is None
            assert api.connection(in_auth(publisher), publisher.auth_id, seconds=SECONDS) is None


def test_a_publisher_is_not_found_under_another_protocol(any_version):
    publisher = any_version.publish("live/cam7", "srt")
    assert client(any_version).connection("rtmp", publisher.source_id, seconds=SECONDS) is None


@pytest.mark.parametrize(
    "connection_id", [NOBODY, "not-a-uuid", "a/b?c#d", "zzzzzzzz-0000-4000-8000-000000000000", "%"]
)
def test_an_id_that_nobody_has_is_not_found(any_version, connection_id):
    api = client(any_version)
    assert api.connection("rtmp", connection_id, seconds=SECONDS) is None
    api.kick("rtmp", connection_id, seconds=SECONDS)
    assert any_version.kicks == []
    quoted = quote(connection_id, safe="")
    assert [call.target for call in any_version.calls] == [
        f"/v3/rtmpconns/get/{quoted}",
        f"/v3/rtmpsconns/get/{quoted}",
        f"/v3/rtmpconns/kick/{quoted}",
        f"/v3/rtmpsconns/kick/{quoted}",
    ]


@pytest.mark.parametrize("protocol", ["moq", "nosuch", ""])
def test_without_any_list_of_a_protocol_nobody_knows(protocol):
    with FakeMediaMTX("v1.18.0") as fake:
        with pytest.raises(NoAnswer, match="no list"):
            client(fake).connection(protocol, NOBODY, seconds=SECONDS)
        client(fake).kick(protocol, NOBODY, seconds=SECONDS)


def test_one_list_of_a_protocol_is_enough(fake):
    assert client(fake).connection("rtmp", NOBODY, seconds=SECONDS) is None
    fake.switch_off("rtmpconns")
    with pytest.raises(NoAnswer, match="no list"):
        client(fake).connection("rtmp", NOBODY, seconds=SECONDS)
    fake.switch_on("rtmpsconns")
    assert client(fake).connection("rtmp", NOBODY, seconds=SECONDS) is None


def test_one_list_without_an_answer_is_no_answer(fake):
    """It may be there that the publisher stands."""
    fake.switch_on("rtmpsconns")
    publisher = fake.publish("live/cam7", "rtmps")
    fake.answer(500, route="/v3/rtmpsconns")
    with pytest.raises(NoAnswer, match="status 500"):
        client(fake).connection("rtmp", publisher.source_id, seconds=SECONDS)
    with pytest.raises(NoAnswer, match="status 500"):
        client(fake).kick("rtmp", publisher.source_id, seconds=SECONDS)


# --- what it cuts off -------------------------------------------------------------------------------------


def test_a_kick_ends_a_publisher_live_or_waiting(any_version):
    api = client(any_version)
    for protocol in set(protocols(any_version)) - set(CONNECTIONS):
        for live in (True, False):
            other = any_version.publish("live/other", protocol)
            publisher = any_version.publish("live/cam7", protocol, live=live)
            api.close(in_auth(publisher), publisher.auth_id, publisher.path, seconds=SECONDS)
            assert any_version.kicks.pop() == publisher.auth_id
            assert api.connection(in_auth(publisher), publisher.auth_id, seconds=SECONDS) is None
            assert [path.name for path in api.paths(seconds=SECONDS)] == ["live/other"]
            any_version.leave(other)


def test_a_kick_that_comes_too_late_is_none(any_version):
    publisher = any_version.publish("live/cam7", "srt")
    any_version.vanish_before_kick(publisher)
    client(any_version).close("srt", publisher.source_id, publisher.path, seconds=SECONDS)
    client(any_version).close("srt", publisher.source_id, publisher.path, seconds=SECONDS)
    assert any_version.kicks == []


def test_whether_a_kick_helped_is_seen_by_a_look(fake):
    publisher = fake.publish("live/cam7")
    fake.ignore_kicks(publisher)
    api = client(fake)
    api.close("rtmp", publisher.source_id, publisher.path, seconds=SECONDS)
    assert fake.kicks == [publisher.source_id]
    assert api.connection("rtmp", publisher.source_id, seconds=SECONDS) is not None


@pytest.mark.parametrize("protocol", ["rtsp", "rtsps"])
def test_a_live_rtsp_publisher_is_cut_off_without_a_kick(any_version, protocol):
    """A kick may crash the server. Only v1.9.3 must be kicked: an entry does nothing there."""
    api = client(any_version)
    protocols(any_version)
    other = any_version.publish("live/other", protocol)
    publisher = any_version.publish("live/cam7", protocol)
    any_version.crash_on_rtsp_kick = any_version.version != "v1.9.3"
    api.close("rtsp", publisher.source_id, publisher.path, seconds=SECONDS)
    assert api.connection("rtsp", publisher.source_id, seconds=SECONDS) is None
    assert any_version.kicks == ([publisher.source_id] if any_version.version == "v1.9.3" else [])
    assert any_version.config_paths == set()
    assert other.is_live
    assert [path.name for path in api.paths(seconds=SECONDS)] == ["live/other"]


def test_a_server_that_takes_its_time_over_an_entry_is_not_kicked(any_version):
    if any_version.version == "v1.9.3":
        return
    # v1.12.3 does not tell its version: it is waited for before it is kicked as older ones must be.
    any_version.apply_seconds = 0.1 if any_version.version == "v1.12.3" else 0.3
    any_version.crash_on_rtsp_kick = True
    publisher = any_version.publish("live/cam7", "rtsp")
    client(any_version).close("rtsp", publisher.source_id, publisher.path, seconds=SECONDS)
    deadline = time.monotonic() + 5
    while publisher.is_live and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not publisher.is_live
    assert not kicked(any_version)


def test_a_waiting_rtsp_publisher_is_left_alone(any_version):
    """By either of its ids. It is cut off when it is live."""
    publisher = any_version.publish("live/cam7", "rtsp", live=False)
    occupant = any_version.publish("live/cam7", "rtsp")
    for name in {publisher.source_id, publisher.auth_id}:
        client(any_version).close("rtsp", name, publisher.path, seconds=SECONDS)
    assert occupant.is_live
    assert not kicked(any_version)
    assert {call.method for call in any_version.calls} == {"GET"}


@pytest.mark.parametrize("protocol", ["rtsp", "rtmp"])
def test_closing_who_is_gone_harms_nobody_on_its_path(any_version, protocol):
    gone = any_version.publish("live/cam7", protocol)
    newcomer = any_version.publish("live/cam7", protocol)
    client(any_version).close(protocol, gone.source_id, gone.path, seconds=SECONDS)
    assert newcomer.is_live
    assert any_version.kicks == []


def test_an_entry_of_the_operator_stays(any_version):
    any_version.idle_path("live/cam7")
    api = client(any_version)
    settings: list[dict[str, object]] = []
    for _ in range(2):
        publisher = any_version.publish("live/cam7", "rtsp")
        api.close("rtsp", publisher.source_id, publisher.path, seconds=SECONDS)
        assert not publisher.is_live
        assert not kicked(any_version)
        settings.append(any_version.settings("live/cam7"))
    assert any_version.config_paths == {"live/cam7"}
    # Each time another value of a setting that matters to no publisher.
    assert settings == [{"sourceOnDemandCloseAfter": "11s"}, {"sourceOnDemandCloseAfter": "10s"}]


def test_an_entry_that_was_left_behind_is_taken_away(any_version):
    """Whoever added it died before its DELETE."""
    api = client(any_version)
    any_version.answer(500, route="/v3/config/paths/delete", times=1)
    publisher = any_version.publish("live/cam7", "rtsp")
    with pytest.raises(NoAnswer, match="status 500"):
        api.close("rtsp", publisher.source_id, publisher.path, seconds=SECONDS)
    assert any_version.config_paths == {"live/cam7"}
    api.close("rtsp", publisher.source_id, publisher.path, seconds=SECONDS)
    assert any_version.config_paths == set()
    assert not publisher.is_live
    newcomer = any_version.publish("live/cam7", "rtsp")
    api.close("rtsp", newcomer.source_id, newcomer.path, seconds=SECONDS)
    assert any_version.config_paths == set()
    assert not newcomer.is_live


def test_who_publishes_under_a_left_behind_entry_is_cut_off_with_it(any_version):
    any_version.answer(500, route="/v3/config/paths/delete", times=1)
    first = any_version.publish("live/cam7", "rtsp")
    api = client(any_version)
    with pytest.raises(NoAnswer):
        api.close("rtsp", first.source_id, first.path, seconds=SECONDS)
    any_version.leave(first)
    publisher = any_version.publish("live/cam7", "rtsp")
    api.close("rtsp", publisher.source_id, publisher.path, seconds=SECONDS)
    assert (any_version.config_paths, publisher.is_live) == (set(), False)
    assert not kicked(any_version)


def test_a_path_is_named_as_it_is(fake):
    publisher = fake.publish("live/a.b_c-d/e", "rtsp")
    client(fake).close("rtsp", publisher.source_id, publisher.path, seconds=SECONDS)
    assert not publisher.is_live
    assert {call.target for call in fake.calls if call.method == "POST"} == {"/v3/config/paths/add/live/a.b_c-d/e"}


# --- what goes wrong --------------------------------------------------------------------------------------

Ask = Callable[[ControlAPI, float], object]
THE_ID = str(uuid.uuid4())

# One of each kind; the id is somebody's.
CALLS: dict[str, Ask] = {
    "info": lambda api, seconds: api.info(seconds=seconds),
    "paths": lambda api, seconds: api.paths(seconds=seconds),
    "connections": lambda api, seconds: api.connections("rtmpconns", seconds=seconds),
    "connection": lambda api, seconds: api.connection("rtmp", THE_ID, seconds=seconds),
    "kick": lambda api, seconds: api.kick("rtmp", THE_ID, seconds=seconds),
    "close": lambda api, seconds: api.close("rtsp", THE_ID, "live/cam7", seconds=seconds),
}
each_call = pytest.mark.parametrize("ask", CALLS.values(), ids=CALLS)


def refused(ask: Ask, api: ControlAPI, seconds: float = SECONDS) -> NoAnswer:
    """The NoAnswer that this must be, within its time, and without a secret in its text."""
    started = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        ask(api, seconds)
    assert time.monotonic() - started < seconds + 1  # the machine may be busy
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "api-secret" not in str(chain)
        assert "YXBpLXNlY3JldA" not in str(chain)
        chain = chain.__cause__
    return caught.value


@each_call
def test_nobody_listens(fake, ask):
    publish(fake)
    api = client(fake)
    ask(api, SECONDS)
    fake.refuse()
    for _ in range(2):
        error = refused(ask, api)
        assert isinstance(error, Refused)
        assert error.is_refused
    fake.heal()
    ask(api, SECONDS)


@each_call
def test_a_server_that_comes_back_is_asked_as_if_nothing_was(fake, ask):
    """The connections that were kept open are dead now."""
    api = client(fake)
    publish(fake)
    ask(api, SECONDS)
    fake.restart()
    publish(fake)
    ask(api, SECONDS)


def publish(fake: FakeMediaMTX) -> Publisher:
    """Somebody with THE_ID, of RTMP; and of RTSP in a path of its own."""
    return fake.publish("live/cam7", "rtmp", THE_ID)


@each_call
@pytest.mark.parametrize("status", [500, 502, 503, 429, 418])
def test_a_status_that_says_nothing(fake, ask, status):
    publish(fake)
    fake.answer(status, b'{"status":"error","error":"terminated"}')
    error = refused(ask, client(fake))
    assert str(error) == f"status {status}"
    assert not error.is_refused
    assert not isinstance(error, Unauthorized)


@each_call
def test_a_credential_that_is_not_accepted(any_version, ask):
    publish(any_version)
    any_version.password = "another"
    error = refused(ask, client(any_version))
    assert isinstance(error, Unauthorized)
    assert not error.is_refused


@each_call
def test_forbidden_is_not_accepted_either(fake, ask):
    fake.answer(403)
    assert isinstance(refused(ask, client(fake)), Unauthorized)


@each_call
def test_a_server_that_hangs(fake, ask):
    publish(fake)
    fake.hang()
    assert not refused(ask, client(fake), SHORT).is_refused


@each_call
def test_a_server_that_is_slow_may_be_waited_for(fake, ask):
    publish(fake)
    fake.slow(0.02)
    ask(client(fake), SECONDS)
    fake.slow(0.4)
    refused(ask, client(fake), SHORT)


@each_call
def test_a_connection_that_ends_in_the_middle(fake, ask):
    publish(fake)
    fake.break_off()
    assert not refused(ask, client(fake)).is_refused


@each_call
def test_a_connection_that_is_reset_in_the_middle(fake, ask):
    publish(fake)
    fake.reset()
    assert not refused(ask, client(fake)).is_refused


@pytest.mark.parametrize("name", ["info", "connections"])
def test_a_server_that_drips_is_as_good_as_silent(fake, name):
    fake.drip(0.04)
    assert not refused(CALLS[name], client(fake), 0.2).is_refused


@pytest.mark.parametrize("name", ["info", "kick"])
def test_a_server_that_drips_its_head_is_as_good_as_silent(fake, name):
    fake.drip(0.01, head=True)
    assert not refused(CALLS[name], client(fake), 0.2).is_refused


READS = {name: ask for name, ask in CALLS.items() if name in ("info", "paths", "connections", "connection")}
each_read = pytest.mark.parametrize("ask", READS.values(), ids=READS)


@each_read
@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"null", b"[]", b"17", b'{"items":', b'{"a":1}{"b":2}'])
def test_garbage(fake, ask, body):
    fake.answer(200, body)
    assert not refused(ask, client(fake)).is_refused


@pytest.mark.parametrize(
    ("ask", "body"),
    [
        ("info", b'{"version":17}'),
        ("paths", b"{}"),
        ("paths", b'{"items":null}'),
        ("paths", b'{"items":[{}]}'),
        ("paths", b'{"items":[{"name":"live/cam7","source":"rtmpConn"}]}'),
        ("paths", b'{"items":[{"name":"live/cam7","readers":7}]}'),
        ("connections", b"{}"),
        ("connections", b'{"items":[{}]}'),
        ("connections", b'{"items":[{"id":7}]}'),
        ("connections", b'{"items":[{"id":"a","bytesReceived":"many"}]}'),
        ("connection", b"{}"),
        ("connection", b'{"id":null}'),
    ],
)
def test_json_of_another_form(fake, ask, body):
    fake.answer(200, body)
    refused(CALLS[ask], client(fake))


def test_members_that_nobody_knows_yet_are_passed_over(fake):
    api = client(fake)
    fake.answer(200, b'{"items":[{"id":"a","new":{"x":[1]},"inboundBytes":5}],"more":1}')
    assert [each.received for each in api.connections("rtmpconns", seconds=SECONDS)] == [5]
    fake.answer(200, b'{"items":[{"name":"a","source":null,"new":1,"available":true}]}')
    assert [path.publisher_id for path in api.paths(seconds=SECONDS)] == [None]


@pytest.mark.parametrize("name", [name for name in CALLS if name != "kick"])
def test_a_redirect_is_not_followed(fake, name):
    """What stands in between, a login page for one, is no media server."""
    fake.answer(302, b"<a href='/login'>", "text/html", location=f"{fake.url}/v3/info", times=1)
    refused(CALLS[name], client(fake))
    assert len(fake.calls) == 1


def test_a_redirect_is_no_kick(fake):
    fake.answer(302, b"<a href='/login'>", "text/html")
    refused(CALLS["kick"], client(fake))


@each_call
def test_what_speaks_no_http_is_no_answer(ask):
    """MEDIAMTX_API_URL names another port by mistake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                client.recv(1024)

        thread = threading.Thread(target=greet)
        thread.start()
        refused(
            ask, ControlAPI(f"http://127.0.0.1:{listener.getsockname()[1]}", user="streamorch", password="api-secret")
        )
        thread.join(5)


def test_counters_go_up_to_64_bits(fake):
    fake.answer(200, b'{"id":"a","inboundBytes":18446744073709551615}')
    found = client(fake).connection("rtmp", THE_ID, seconds=SECONDS)
    assert found is not None
    assert found.received == 2**64 - 1


def test_what_is_no_control_api_has_no_paths(fake):
    fake.answer(404, b"404 page not found", "text/plain")
    with pytest.raises(NoAnswer, match="no Control API"):
        client(fake).paths(seconds=SECONDS)


def test_publishers_are_found_and_closed_while_paths_wait(fake):
    """Paths wait for the loop that waits for us; connections do not."""
    fake.hang("/v3/paths")
    publisher = publish(fake)
    api = client(fake)
    assert api.connection("rtmp", publisher.source_id, seconds=SECONDS) is not None
    api.close("rtmp", publisher.source_id, publisher.path, seconds=SECONDS)
    assert not publisher.is_live
    assert not any(call.target.startswith("/v3/paths") for call in fake.calls)


def test_neither_proxy_nor_netrc_of_the_environment_counts(fake, monkeypatch, tmp_path):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert client(fake).info(seconds=SECONDS).version == fake.version


def test_connections_are_used_again(fake):
    ports = set()
    exchange = fake._exchange

    def seen(socket, request):
        ports.add(socket.getpeername()[1])
        return exchange(socket, request)

    fake._exchange = seen
    api = client(fake)
    publish(fake)
    for _ in range(3):
        for name in ("info", "paths", "connections", "connection"):
            CALLS[name](api, SECONDS)
    # Also after an answer that was of no use.
    fake.answer(500, b"x" * 100_000, times=1)
    refused(CALLS["paths"], api)
    CALLS["paths"](api, SECONDS)
    assert len(ports) == 1


def test_threads_share_it(fake):
    publishers = fake.publish_many(40)
    api = client(fake)
    found: list[bool] = []

    def look(of: list[Publisher]) -> None:
        for publisher in of:
            each = api.connection("rtmp", publisher.source_id, seconds=SECONDS)
            found.append(each is not None and each.path == publisher.path)

    threads = [threading.Thread(target=look, args=(publishers[first::8],)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [True] * 40


def test_one_hanging_thread_holds_no_other(fake):
    publisher = publish(fake)
    api = client(fake)
    fake.hang("/v3/paths")
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(api.paths(seconds=10)))
    thread.start()
    while not fake.calls:
        time.sleep(0.001)
    assert api.connection("rtmp", publisher.source_id, seconds=SECONDS) is not None
    assert answers == []
    fake.heal()
    thread.join(10)
    assert len(answers) == 1


@pytest.mark.parametrize("version", ["v1.9.3", "v1.20.1"])
def test_ten_thousand_paths(version):
    with FakeMediaMTX(version) as fake:
        publishers = fake.publish_many(10_000, bytes_per_second=1_000_000)
        api = client(fake)
        assert {path.publisher_id for path in api.paths(seconds=10)} == {each.source_id for each in publishers}
        assert all(each.received > 0 for each in api.connections("rtmpconns", seconds=10))

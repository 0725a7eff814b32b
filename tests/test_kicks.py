"""Closing connections: each is gone afterwards or told not to be, and none holds up the others."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from streamorch.kicks import Kicker, carry_out
from streamorch.mediamtx import ControlAPI
from streamorch.repositories import Database, streams
from streamorch.repositories.streams import Kick
from tests.blueprints import only, rows
from tests.conftest import MediaServer
from tests.fake_mediamtx import FakeMediaMTX, Publisher

PATH = "live/cam7"
KINDS = [("v1.20.1", protocol) for protocol in ("rtmp", "rtsp", "srt", "webrtc", "moq")] + [
    (version, protocol) for version in ("v1.12.3", "v1.9.3") for protocol in ("rtmp", "rtsp", "webrtc")
]
each_kind = pytest.mark.parametrize(("version", "protocol"), KINDS)


def client(fake: FakeMediaMTX) -> ControlAPI:
    return ControlAPI(fake.url, user="streamorch", password="secret")


def kick(publisher: Publisher) -> Kick:
    return Kick(uuid.uuid4(), publisher.path, publisher.protocol, publisher.source_id)


def close(fake: FakeMediaMTX, *publishers: Publisher) -> list[bool]:
    """Which of them are said to be gone."""
    return [is_gone for _, is_gone in carry_out(client(fake), [kick(publisher) for publisher in publishers])]


def is_there(fake: FakeMediaMTX, publisher: Publisher) -> bool:
    return client(fake).connection(publisher.protocol, publisher.source_id, seconds=2) is not None


# --- one connection ---------------------------------------------------------------------------------------------


@each_kind
def test_a_live_connection_is_closed_and_no_other(version, protocol):
    with FakeMediaMTX(version) as fake:
        publisher, other = fake.publish(PATH, protocol), fake.publish("live/other", protocol)
        assert close(fake, publisher) == [True]
        assert (is_there(fake, publisher), is_there(fake, other)) == (False, True)
        assert fake.config_paths == set()
        assert close(fake, publisher) == [True]  # it was gone before


@pytest.mark.parametrize("protocol", ["rtmp", "srt", "webrtc"])
def test_a_connection_that_is_not_live_yet_is_closed(fake, protocol):
    publisher = fake.publish(PATH, protocol, live=False)
    assert close(fake, publisher) == [True]
    assert fake.kicks == [publisher.source_id]


@pytest.mark.parametrize("version", ["v1.20.1", "v1.12.3", "v1.9.3"])
def test_an_rtsp_publisher_that_is_not_live_yet_is_waited_for(version):
    with FakeMediaMTX(version) as fake:
        publisher = fake.publish(PATH, "rtsp", live=False)
        began = time.monotonic()
        assert close(fake, publisher) == [False]
        assert time.monotonic() - began < 0.25  # there is nothing to verify
        assert fake.kicks == []
        assert fake.config_paths == set()
        fake.go_live(publisher)
        assert close(fake, publisher) == [True]


def test_an_rtsp_publisher_is_found_by_its_connection_before_v1_19_3():
    with FakeMediaMTX("v1.12.3") as fake:
        publisher = fake.publish(PATH, "rtsp")
        unmapped = kick(publisher)._replace(connection_id=publisher.auth_id)
        assert [is_gone for _, is_gone in carry_out(client(fake), [unmapped])] == [True]
        assert not is_there(fake, publisher)


def test_the_entry_of_an_operator_stays(fake):
    fake.idle_path(PATH)
    publisher = fake.publish(PATH, "rtsp")
    assert close(fake, publisher) == [True]
    assert fake.config_paths == {PATH}


def test_a_connection_that_takes_a_moment_to_go_is_gone(fake):
    fake.apply_seconds = 0.1
    assert close(fake, fake.publish(PATH, "rtsp")) == [True]


def test_a_connection_that_leaves_just_before_is_gone(fake):
    publisher = fake.publish(PATH)
    fake.vanish_before_kick(publisher)
    assert close(fake, publisher) == [True]


def test_a_connection_that_stays_is_told_to_be_there_soon(fake, caplog):
    publisher = fake.publish(PATH)
    fake.ignore_kicks(publisher)
    caplog.set_level(logging.INFO, "streamorch")
    began = time.monotonic()
    assert close(fake, publisher) == [False]
    assert time.monotonic() - began < 0.8
    assert caplog.messages == ["still connected"]
    assert fake.kicks == [publisher.source_id]  # asked once


def test_of_a_protocol_that_is_switched_off_nobody_says_who_publishes(fake):
    """Or it is no MediaMTX. The reconciler, which knows that it is one, finds out."""
    publisher = fake.publish(PATH, "srt")
    fake.switch_off("srtconns")
    assert close(fake, publisher) == [False]


# --- one after another --------------------------------------------------------------------------------------------


def test_each_is_closed_when_it_is_asked_for(fake):
    publishers = [fake.publish(f"live/{number}") for number in range(3)]
    under_way = carry_out(client(fake), list(map(kick, publishers)))
    assert fake.calls == []
    assert next(under_way)[1]
    assert [is_there(fake, publisher) for publisher in publishers] == [False, True, True]


BREAKS: dict[str, Callable[[FakeMediaMTX, str], None]] = {
    "500": lambda fake, route: fake.answer(500, route=route),
    "garbage": lambda fake, route: fake.answer(200, b"garbage", route=route),
    "half": lambda fake, route: fake.break_off(route),
    "hanging": lambda fake, route: fake.hang(route),
}


@pytest.mark.parametrize(("what", "how"), [*(("get", how) for how in BREAKS), ("kick", "500"), ("kick", "hanging")])
def test_one_that_does_not_work_holds_up_no_other(fake, what, how, caplog):
    first, second = fake.publish("live/first"), fake.publish("live/second")
    BREAKS[how](fake, f"/v3/rtmpconns/{what}/{first.source_id}")
    began = time.monotonic()
    assert close(fake, first, second) == [False, True]
    assert time.monotonic() - began < 0.8
    assert "kick without an answer" in caplog.messages


@pytest.mark.parametrize("how", ["refused", "unauthorized"])
def test_where_nobody_can_be_asked_the_rest_is_left(fake, how, caplog):
    publishers = [fake.publish(f"live/{number}") for number in range(3)]
    if how == "refused":
        fake.refuse()
    else:
        fake.answer(401)
    assert close(fake, *publishers) == []
    assert caplog.messages == ["kick without an answer"]
    fake.heal()
    assert all(is_there(fake, publisher) for publisher in publishers)


# --- for a request -----------------------------------------------------------------------------------------------


@pytest.fixture
def kicker(database_url, fake) -> Iterator[Kicker]:
    database = Database(database_url, min_size=1, max_size=2)
    database.open()
    database.await_connection(10)
    yield Kicker(database, client(fake))
    database.close()


@pytest.fixture
def stopped(fake, media_server: MediaServer, make_key, conn) -> Callable[..., uuid.UUID]:
    """A stream that was live on this path, was stopped, and whose connection is to be closed."""

    def make(path: str = PATH) -> uuid.UUID:
        source_id = media_server.go_live(make_key(), path)
        fake.publish(path, connection_id=source_id)
        stream_id: uuid.UUID = only(conn, "SELECT id FROM streams WHERE auth_id = %s", source_id)["id"]
        streams.stop(conn, stream_id, hold_seconds=0)
        return stream_id

    return make


def cut_off(kicker: Kicker, stream_id: uuid.UUID) -> None:
    """And wait until that is over."""
    under_way = kicker.cut_off(stream_id=stream_id)
    assert under_way is not None
    under_way.result(5)


def done(conn, stream_id: uuid.UUID) -> bool:
    kicked_at = only(conn, "SELECT kicked_at FROM streams WHERE id = %s", stream_id)["kicked_at"]
    return kicked_at is not None


def test_a_request_has_the_connections_of_one_stream_closed(fake, kicker, stopped, conn):
    mine, other = stopped("live/mine"), stopped("live/other")
    cut_off(kicker, mine)
    assert (done(conn, mine), done(conn, other)) == (True, False)
    assert [path.name for path in client(fake).paths(seconds=2)] == ["live/other"]
    kicker.close()


def test_what_does_not_work_is_left_to_the_reconciler(fake, kicker, stopped, conn):
    stream_id = stopped()
    fake.hang()
    began = time.monotonic()
    cut_off(kicker, stream_id)
    assert time.monotonic() - began < 0.8
    assert not done(conn, stream_id)
    kicker.close()


def test_without_the_database_nothing_is_closed_and_nothing_raised(fake, kicker, stopped, caplog):
    stream_id = stopped()
    kicker._database.close()
    cut_off(kicker, stream_id)
    assert "cutting off is left to the reconciler: the database is away" in caplog.messages
    assert fake.kicks == []
    kicker.close()


def test_a_request_that_comes_while_the_worker_ends_is_no_error(kicker, stopped, conn):
    stream_id = stopped()
    kicker.close()
    assert kicker.cut_off(stream_id=stream_id) is None
    assert not done(conn, stream_id)


def test_the_end_of_a_worker_waits_for_no_media_server(fake, kicker, stopped, conn):
    """One that hangs, and many to close there."""
    for number in range(12):
        stopped(f"live/{number}")
    owner = rows(conn, "SELECT id FROM broadcasters")[0]["id"]
    conn.execute("UPDATE stream_keys SET broadcaster_id = %s", [owner])
    fake.hang()
    under_way = kicker.cut_off(broadcaster_id=owner)
    assert under_way is not None
    time.sleep(0.1)
    kicker.close()
    under_way.result(1.5)

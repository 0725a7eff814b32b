"""`streamorch tail`: every event once, in order, whatever lies between two looks."""

import uuid

import pytest

from streamorch.commands.tail import Watch
from tests.blueprints import rows


@pytest.fixture
def look(conn):
    """What happened since the last call, as (what, path, reason)."""
    watch = Watch(conn)

    def look():
        events = watch.look(conn)
        paths = {row["id"]: row["path"] for row in rows(conn, "SELECT id, path FROM streams")}
        return [(event.what, paths[event.stream_id].removeprefix("live/"), event.reason) for event in events]

    return look


def pass_time(conn, seconds=60):
    """All that has happened was so long ago."""
    conn.execute(
        """
        UPDATE streams SET
            claimed_at = claimed_at - make_interval(secs => %(s)s),
            started_at = started_at - make_interval(secs => %(s)s),
            ended_at = ended_at - make_interval(secs => %(s)s)
        """,
        {"s": seconds},
    )


def bump(conn):
    conn.execute("SELECT bump_live_list_v1()")


def test_a_life_one_look_at_a_time(look, media_server, make_key, conn):
    key, connection_id = make_key(), str(uuid.uuid4())
    assert look() == []
    media_server.ask(key, id=connection_id)
    assert look() == [("claimed", "cam7", None)]
    assert look() == []
    media_server.ready(connection_id)
    assert look() == [("live", "cam7", None)]
    media_server.not_ready(connection_id)
    assert look() == [("ended", "cam7", "disconnected")]
    assert look() == []


def test_a_life_between_two_looks(look, media_server, make_key):
    connection_id = media_server.go_live(make_key())
    media_server.not_ready(connection_id)
    assert look() == [("claimed", "cam7", None), ("live", "cam7", None), ("ended", "cam7", "disconnected")]
    assert look() == []


def test_what_was_there_before_is_not_told(media_server, make_key, conn):
    gone = media_server.go_live(make_key(), "live/cam8")
    media_server.not_ready(gone, "live/cam8")
    here = media_server.go_live(make_key())
    watch = Watch(conn)
    assert watch.look(conn) == []
    media_server.not_ready(here)
    assert [event.what for event in watch.look(conn)] == ["ended"]


def test_a_claim_that_lapses_bumps_no_version_and_is_told(look, media_server, make_key, conn):
    media_server.ask(make_key())
    assert look() == [("claimed", "cam7", None)]
    pass_time(conn)
    conn.execute("UPDATE streams SET ended_at = clock_timestamp(), end_reason = 'never_started'")
    assert look() == [("ended", "cam7", "never_started")]


def test_a_claim_committed_after_a_younger_one_is_told(look, media_server, make_key, conn):
    media_server.ask(make_key(), "live/cam8")
    assert look() == [("claimed", "cam8", None)]
    media_server.ask(make_key(), "live/cam9")
    conn.execute("UPDATE streams SET claimed_at = claimed_at - interval '1 second' WHERE path = 'live/cam9'")
    assert look() == [("claimed", "cam9", None)]


def test_a_takeover(look, media_server, make_key, conn):
    conn.execute("INSERT INTO nodes (node, api_seen_at) VALUES ('default', clock_timestamp())")
    key = make_key(takeover="always")
    old = media_server.go_live(key)
    look()
    new = str(uuid.uuid4())
    media_server.ask(key, id=new)
    media_server.not_ready(old)
    assert look() == [("claimed", "cam7", None), ("interrupted", "cam7", None)]
    media_server.ready(new)
    assert look() == [("ended", "cam7", "superseded"), ("live", "cam7", None)]


def test_an_interruption_that_was_none(look, media_server, make_key, conn):
    media_server.go_live(make_key())
    conn.execute("UPDATE streams SET interrupted_at = clock_timestamp()")
    assert [what for what, _, _ in look()][-1] == "interrupted"
    conn.execute("UPDATE streams SET interrupted_at = NULL")
    bump(conn)
    assert look() == [("resumed", "cam7", None)]


def test_media_that_stops_and_flows_again(look, media_server, make_key, conn):
    media_server.go_live(make_key())
    conn.execute("INSERT INTO stream_stats (stream_id, media) SELECT id, 'flowing' FROM streams")
    look()
    for media in ("stalled", "flowing"):
        conn.execute("UPDATE stream_stats SET media = %s", [media])
        bump(conn)
        assert look() == [(media, "cam7", None)]
        assert look() == []


@pytest.mark.parametrize("is_long_ago", [True, False])
def test_a_stream_that_is_opened_again(is_long_ago, look, media_server, make_key, conn):
    connection_id = media_server.go_live(make_key())
    media_server.not_ready(connection_id)
    look()
    if is_long_ago:
        pass_time(conn)
        bump(conn)
        assert look() == []
    conn.execute("UPDATE streams SET ended_at = NULL, end_reason = NULL")
    bump(conn)
    assert look() == [("reopened", "cam7", None)]
    conn.execute("UPDATE streams SET ended_at = clock_timestamp(), end_reason = 'stopped'")
    bump(conn)
    assert look() == [("ended", "cam7", "stopped")]


def test_after_a_pause_all_of_it_is_told(media_server, make_key, conn):
    """As after an outage: nobody looked for a minute, and none of it was a moment ago."""
    watch = Watch(conn)
    watch.pulse = watch.pulse._replace(moment="2026-01-01T00:00:00.000000Z")
    media_server.not_ready(media_server.go_live(make_key(), "live/cam8"), "live/cam8")
    media_server.go_live(make_key())
    pass_time(conn)
    events = watch.look(conn)
    assert [event.what for event in events] == ["claimed", "live", "ended", "claimed", "live"]
    assert events == sorted(events)


def test_a_look_that_fails_loses_nothing(media_server, make_key, conn, monkeypatch):
    watch = Watch(conn)
    watch.pulse = watch.pulse._replace(moment="2026-01-01T00:00:00.000000Z")
    media_server.go_live(make_key())

    def fail(*_: object, **__: object):
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr("streamorch.repositories.tail.states", fail)
        with pytest.raises(ConnectionError):
            watch.look(conn)
    pass_time(conn)
    assert [event.what for event in watch.look(conn)] == ["claimed", "live"]


def test_when_nothing_happens_nothing_is_read(look, media_server, make_key, conn, monkeypatch):
    media_server.go_live(make_key())
    look()
    pass_time(conn)
    monkeypatch.setattr("streamorch.repositories.tail.states", None)
    assert look() == []

"""What the wall asks for, and what it is without scripts."""

import uuid

import pytest

from tests.blueprints import NOW
from tests.conftest import MediaServer
from tests.console import Visitor


@pytest.fixture
def on_air(client, make_key, make_broadcaster, conn):
    """Puts a stream on the air; its id."""

    def go(name="Team 7", path="live/cam7", **stats):
        media_server = MediaServer(client)
        source_id = media_server.go_live(make_key(broadcaster_id=make_broadcaster(display_name=name)), path)
        (one,) = conn.execute("SELECT id FROM streams WHERE source_id = %s", [source_id]).fetchone()
        if stats:
            row = {"media": "flowing", "viewers": 3, "bitrate": 4_200_000, "tracks": None} | stats
            conn.execute(
                """INSERT INTO stream_stats (stream_id, media, viewers, bitrate, tracks, sampled_at, moved_at)
                VALUES (%(id)s, %(media)s, %(viewers)s, %(bitrate)s, %(tracks)s, %(now)s, %(now)s)""",
                row | {"id": one, "now": NOW},
            )
        return one

    return go


def test_the_list_is_that_of_the_api_and_asked_for_by_its_version(operator, api, on_air):
    one = on_air()
    asked = operator.get("/console/live")
    assert asked.json == api.get("/streams").json
    assert [stream["id"] for stream in asked.json["streams"]] == [str(one)]
    assert asked.headers["Cache-Control"] == "no-store"
    again = operator.get("/console/live", headers={"If-None-Match": asked.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    on_air(path="live/cam8")
    assert operator.get("/console/live", headers={"If-None-Match": asked.headers["ETag"]}).status_code == 200


def test_measures_are_those_of_the_media_server(operator, on_air):
    one = on_air(tracks='[{"codec": "H264", "codecProps": {"width": 1280, "height": 720}}, {"codec": "Opus"}]')
    on_air(path="live/cam8")
    told = operator.get("/console/measures").json
    assert told["streams"] == {str(one): [4_200_000, "H264 1280×720, Opus"]}  # noqa: RUF001
    assert abs(told["now"] - NOW.timestamp()) < 3600


@pytest.mark.parametrize("path", ["/console/live", "/console/measures", f"/console/now/{uuid.uuid4()}"])
def test_scripts_are_told_in_json_that_nobody_has_signed_in(path, visitor):
    refused = visitor.get(path, headers={"Accept": "application/json"})
    assert (refused.status_code, refused.content_type) == (401, "application/problem+json")


def test_an_empty_wall_tells_what_to_put_into_obs(make_app):
    visitor = Visitor(make_app(MEDIAMTX_RTMP_URL="rtmp://media.example.org"))
    visitor.sign_in()
    page = visitor.get().text
    assert "rtmp://media.example.org:1935/live</code>" in page
    assert "my-camera?pass=YOUR-STREAM-KEY</code>" in page
    assert 'id="none">' in page


def test_without_rtmp_it_says_so(make_app):
    visitor = Visitor(make_app(MEDIAMTX_RTMP_URL="off"))
    visitor.sign_in()
    page = visitor.get().text
    assert "MEDIAMTX_RTMP_URL=off" in page
    assert "YOUR-STREAM-KEY" not in page


def test_without_scripts_there_is_a_table(operator, on_air):
    one = on_air("Team <7>", viewers=None, media="stalled")
    page = operator.get().text
    table = page.partition("<noscript>")[2].partition("</noscript>")[0]
    assert f'<a href="/console/streams/{one}">Team &lt;7&gt;</a>' in table
    assert "<code>live/cam7</code>" in table
    assert "stalled" in table
    assert "None" not in table
    assert 'id="none" hidden>' in page

"""The page of a stream, and the two ways to end it."""

import re
import uuid
from typing import Any, get_args

import msgspec
import pytest

from streamorch import keys
from streamorch.blueprints.console import words
from streamorch.repositories import audit
from streamorch.repositories.streams import EndReason
from streamorch.repositories.timeline import Event
from tests.blueprints import only, rows
from tests.conftest import API_SECRET, MediaServer
from tests.console import Visitor


@pytest.fixture
def key(make_key, make_broadcaster):
    return make_key(broadcaster_id=make_broadcaster(display_name="Team 7"), label="stage")


@pytest.fixture
def stream_id(client, key, conn):
    """A stream that is live."""
    MediaServer(client).go_live(key)
    return only(conn, "SELECT id FROM streams")["id"]


def state(conn):
    return only(conn, "SELECT end_reason, kick_requested_at IS NOT NULL AS kick FROM streams")


def test_the_page_shows_what_is_known(operator, stream_id, key):
    page = operator.get(f"/console/streams/{stream_id}")
    assert page.status_code == 200
    for told in (
        "Team 7",
        "live/cam7",
        "stage",
        f"…{key.value[-4:]}</code>",
        "192.0.2.7",
        "FMLE/3.0",
        "rtmpConn",
        "http://localhost:8889/live/cam7/whep",
        "http://localhost:8888/live/cam7/index.m3u8",
        "rtsp://localhost:8554/live/cam7",
        'Its encoder was let in <span class="dim">from <code>192.0.2.7</code></span>.',
        "It went live.",
    ):
        assert told in page.text, told
    assert key.value not in page.text
    assert API_SECRET not in page.text


def test_what_others_wrote_is_text(client, operator, make_key, make_broadcaster, conn, api):
    evil = "<img src=x onerror=alert(1)>\"'"
    key = make_key(broadcaster_id=make_broadcaster(display_name=evil), label=evil, metadata=f'{{"a": "{evil[:-2]}"}}')
    MediaServer(client).ask(key, userAgent=evil)
    one = only(conn, "SELECT id FROM streams")["id"]
    api.patch(f"/streams/{one}", json={"recording_ref": evil, "metadata": {evil: [evil]}})
    page = operator.get(f"/console/streams/{one}").text
    assert page.count("&lt;img src=x") >= 6
    assert "<img src=x" not in page
    parts = operator.get(f"/console/now/{one}").json["parts"]
    assert set(parts) == {"state", "facts", "timeline"}
    assert not [part for part in parts.values() if "<img" in part]
    assert "<img" not in operator.get("/console").text.partition("<main")[2]


def test_a_key_in_metadata_is_blotted_out(operator, api, stream_id):
    value = keys.mint()
    assert api.patch(f"/streams/{stream_id}", json={"metadata": {"oops": value}}).status_code == 200
    page = operator.get(f"/console/streams/{stream_id}").text
    assert "sk_[redacted]" in page
    assert value not in page


def test_of_a_broadcaster_that_was_deleted_the_name_is_left(operator, api, stream_id, key):
    links = [f'href="/console/{where}"' for where in (f"broadcasters/{key.broadcaster_id}", f"keys/{key.id}")]
    shown = operator.get(f"/console/streams/{stream_id}").text
    assert all(link in shown for link in links)
    api.delete(f"/broadcasters/{key.broadcaster_id}")
    for told in (
        operator.get(f"/console/streams/{stream_id}").text,
        operator.get(f"/console/now/{stream_id}").json["parts"]["facts"],
    ):
        assert 'Team 7 <span class="chip">deleted</span>' in told
        assert not any(link in told for link in links)
        assert "stage" in told


def test_the_script_is_told_the_same_and_figures(operator, stream_id, conn):
    now = operator.get(f"/console/now/{stream_id}").json
    figures = {name: now[name] for name in ("status", "media", "viewers", "bitrate", "mean_bitrate")}
    assert figures == {"status": "active", "media": None, "viewers": None, "bitrate": None, "mean_bitrate": None}
    conn.execute("UPDATE streams SET started_at = started_at - interval '10 s'")
    conn.execute(
        """INSERT INTO stream_stats (stream_id, media, viewers, bytes, bitrate, sampled_at, moved_at)
        VALUES (%s, 'stalled', 2, 1000, 7, now(), now())""",
        [stream_id],
    )
    now = operator.get(f"/console/now/{stream_id}").json
    assert (now["media"], now["viewers"], now["bitrate"]) == ("stalled", 2, 7)
    assert 0 < now["mean_bitrate"] <= 800
    assert "no bytes came in since <time" in now["parts"]["state"]
    assert now["parts"]["timeline"].partition("It went live.")[2].count("The last bytes came in.") == 1


@pytest.mark.parametrize("reason", words.ENDED)
def test_each_end_is_a_sentence(reason, operator, stream_id, conn):
    conn.execute(
        """UPDATE streams SET end_reason = %(reason)s, ended_at = clock_timestamp(),
        started_at = CASE WHEN %(reason)s <> 'never_started' THEN started_at END""",
        {"reason": reason},
    )
    page = operator.get(f"/console/streams/{stream_id}").text
    assert words.ENDED[reason] in page
    assert "Stop it" not in page
    assert "Revoke the key" not in page


def test_the_sentences_are_of_all_ends():
    assert set(words.ENDED) == set(get_args(EndReason))
    assert words.ended("struck_by_lightning") == "It ended: struck_by_lightning."


def test_a_stream_that_is_not_live_yet(client, operator, key, conn):
    MediaServer(client).ask(key)
    one = only(conn, "SELECT id FROM streams")["id"]
    page = operator.get(f"/console/streams/{one}").text
    assert "Not live yet" in page
    assert "Stop it" in page
    assert "Where to watch it" in page


def test_stopping_holds_the_key_and_is_told_of_in_the_audit_trail(operator, stream_id, conn, key):
    here = f"/console/streams/{stream_id}"
    led = operator.post(f"{here}/stop", on=here, hold_seconds="300")
    assert (led.status_code, led.location) == (303, f"{here}?told=stream-stopped")
    assert state(conn) == {"end_reason": "stopped", "kick": True}
    held = only(conn, "SELECT extract(epoch FROM hold_until - now())::int AS seconds FROM stream_keys")
    assert 200 < held["seconds"] <= 300
    page = operator.get(led.location).text
    assert "The stream is stopped, and its key is refused for a while." in page
    assert "An operator stopped it." in page
    assert "Where to watch it" not in page
    told = re.sub(r"<[^>]+>", "", page)
    assert "The stream was stopped by API_SECRET from 127.0.0.1." in told
    trail = {(row["who"], row["action"]) for row in rows(conn, "SELECT who, action FROM audit WHERE kind = 'stream'")}
    assert trail == {("API_SECRET", "stop")}
    again = operator.post(f"{here}/stop")
    assert again.location == f"{here}?told=stream-had-ended"


@pytest.mark.parametrize("seconds", ["31", "-1", "9" * 30, ""])
def test_a_hold_is_one_of_the_choices(seconds, operator, stream_id, conn):
    refused = operator.post(f"/console/streams/{stream_id}/stop", hold_seconds=seconds)
    assert refused.status_code == 400
    assert state(conn)["end_reason"] is None


def test_revoking_its_key_ends_it(operator, stream_id, conn):
    here = f"/console/streams/{stream_id}"
    led = operator.post(f"{here}/revoke-key", on=here)
    assert led.location == f"{here}?told=key-revoked"
    assert state(conn) == {"end_reason": "revoked", "kick": True}
    page = operator.get(led.location).text
    assert "Its stream key was revoked by API_SECRET " in page
    assert "Its connection is to be closed." in page


@pytest.mark.parametrize("ending", ["stop", "revoke-key"])
def test_who_may_only_read_has_no_way_to_end_it(ending, app, make_client, stream_id, conn):
    visitor = Visitor(app)
    visitor.sign_in(make_client("read").secret)
    here = f"/console/streams/{stream_id}"
    page = visitor.get(here).text
    assert "Team 7" in page
    assert '<dialog id="stop"' not in page
    assert "revoke-key" not in page
    refused = visitor.post(f"{here}/{ending}", on=here)
    assert refused.status_code == 403
    assert "needs the scope operate" in refused.text
    assert state(conn)["end_reason"] is None


@pytest.mark.parametrize("ending", ["stop", "revoke-key"])
def test_a_form_of_another_session_ends_nothing(ending, operator, stream_id, conn):
    refused = operator.post(f"/console/streams/{stream_id}/{ending}", token="0" * 64)
    assert refused.status_code == 403
    assert state(conn)["end_reason"] is None


@pytest.mark.parametrize("place", ["streams/{}", "now/{}", "streams/{}/stop", "streams/{}/revoke-key"])
def test_a_stream_that_is_not_there(place, operator):
    here = "/console/" + place.format(uuid.uuid4())
    asked = operator.get(here) if place.endswith("{}") else operator.post(here)
    assert asked.status_code == 404
    assert "no such stream" in asked.text.lower()
    assert operator.get("/console/streams/x").status_code == 400


def event(name, **members):
    made: dict[str, Any] = dict.fromkeys(Event.__struct_fields__) | {
        "id": uuid.uuid4(),
        "at": "2026-01-31T12:00:00.000000Z",
    }
    return Event(**(made | {"event": name} | members))


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (event("refused", reason="path-in-use"), "Somebody was refused: path in use."),
        (event("refused", reason="path-in-use", left_out=3), "Somebody was refused: path in use, and 3 more like it."),
        (event("refused", reason="something-new"), "Somebody was refused: something-new."),
        (event("stream_key.update", who="client:desk"), "Its stream key was changed by client:desk."),
        (event("broadcaster.delete", who="CLI"), "Its broadcaster was deleted by CLI."),
        (event("ended", reason="stopped"), "It ended. An operator stopped it."),
        (event("something.new"), "something new."),
        (event("new"), "new."),
    ],
)
def test_events_are_sentences(told, sentence):
    assert words.happened(told) == sentence


def test_changes_are_told_member_by_member():
    before, after = (
        msgspec.Raw(b'{"label": null, "takeover": "never"}'),
        msgspec.Raw(b'{"label": "a", "takeover": "x"}'),
    )
    told = event("stream_key.update", before=before, after=after)
    assert words.changes(told) == [("label", "nothing", "a"), ("takeover", "never", "x")]
    assert words.changes(event("stream_key.create", before=msgspec.Raw(b"{}"), after=after)) == []
    assert words.changes(event("live")) == []


def test_each_change_has_its_words():
    assert words._ACTIONS.keys() == {*get_args(audit.Action)}

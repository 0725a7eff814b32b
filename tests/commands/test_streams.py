"""`streamorch streams` and `streamorch nodes`."""

import json
import uuid

import pytest
import wcwidth

from tests.blueprints import only

STRANGER = {"path": "open/door", "source_type": "srtConn", "source_id": "c9", "since": "2026-01-01T00:00:00.000000Z"}


@pytest.fixture
def scene(make_key, make_broadcaster, media_server, conn):
    """One live stream, one pending, one that has ended and one that was never live, by their names."""
    owner = make_broadcaster(display_name="Küstenwache 東京")
    live, pending = make_key(broadcaster_id=owner, label="mast"), make_key()
    ended, lapsed = make_key(), make_key()
    media_server.go_live(live, "live/cam7")
    media_server.ask(pending, "live/cam8")
    gone = media_server.go_live(ended, "live/cam9")
    media_server.not_ready(gone, "live/cam9")
    media_server.ask(lapsed, "live/cam10")
    conn.execute(
        "UPDATE streams SET ended_at = claimed_at + interval '20 seconds', end_reason = 'never_started'"
        " WHERE path = 'live/cam10'"
    )
    conn.execute("UPDATE streams SET ended_at = started_at + interval '3725 seconds' WHERE path = 'live/cam9'")
    found = conn.execute("SELECT path, id FROM streams").fetchall()
    ids = {path.removeprefix("live/"): str(stream_id) for path, stream_id in found}
    return ids | {"owner": str(owner), "key": str(ended.id)}


def paths(listed):
    return [stream["path"].removeprefix("live/") for stream in listed["streams"]]


def test_the_live_list_is_that_of_the_api(shell, api, scene):
    said, told = api.get("/streams").json, shell.json("streams")
    assert said.pop("as_of") <= told.pop("as_of")
    assert told == said
    assert paths(told) == ["cam7"]


def test_the_history_is_that_of_the_api(shell, api, scene):
    for option in ("all", "ended", "pending"):
        said = api.get(f"/streams?status={option}").json
        assert shell.json("streams", f"--{option}") == {"streams": said["streams"], "count": said["count"]}
    assert paths(shell.json("streams", "--all")) == ["cam10", "cam9", "cam8", "cam7"]
    assert paths(shell.json("streams", "--ended")) == ["cam9"]


def test_filters(shell, scene):
    assert paths(shell.json("streams", "list", "--broadcaster", scene["owner"])) == ["cam7"]
    assert paths(shell.json("streams", "--path", "live/cam9")) == []
    assert paths(shell.json("streams", "--all", "--path", "live/cam9")) == ["cam9"]
    assert paths(shell.json("streams", "--all", "--key", scene["key"])) == ["cam9"]


def test_a_history_that_is_longer_is_told(shell, scene):
    result = shell.run("streams", "--all", "--limit", "2")
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "(there are more: see --limit)\n"
    assert shell.run("streams", "--all", "--limit", "4").stderr == ""


def test_tables(shell, scene):
    heading, row = shell.text("streams").splitlines()
    assert heading.split() == ["ID", "PATH", "BROADCASTER", "SINCE", "VIA", "VIEWERS", "MEDIA"]
    assert row.startswith(f"{scene['cam7']}  live/cam7  Küstenwache 東京  ")
    # Two cells a letter: the column after the name begins where its heading does.
    assert wcwidth.width(row.partition("rtmp")[0]) == heading.index("VIA")
    history = {line.split()[1]: line for line in shell.text("streams", "--all").splitlines()[1:]}
    assert history["live/cam9"].endswith("  disconnected   1:02:05")
    assert history["live/cam10"].endswith("  never_started  -")
    assert "  pending  " in history["live/cam8"]


def test_one_is_that_of_the_api(shell, api, scene):
    for name in ("cam7", "cam8", "cam9", "cam10"):
        assert shell.json("streams", scene[name]) == api.get(f"/streams/{scene[name]}").json
    text = shell.text("streams", "show", scene["cam9"])
    assert "status       ended (disconnected)\n" in text
    assert "published    over rtmp from 192.0.2.7\n" in text
    assert "/live/cam9/index.m3u8\n" in text


def test_to_stop_ends_it_and_holds_the_key(shell, scene, conn):
    assert shell.text("streams", "stop", scene["cam7"], "--hold", "600") == "stopped\n"
    row = only(
        conn,
        """
        SELECT s.end_reason, s.kick_requested_at IS NOT NULL AS kick,
               k.hold_until > clock_timestamp() + interval '9 minutes' AS held
        FROM streams AS s JOIN stream_keys AS k ON k.id = s.stream_key_id WHERE s.path = 'live/cam7'
        """,
    )
    assert row == {"end_reason": "stopped", "kick": True, "held": True}
    assert shell.text("streams", "stop", scene["cam7"]) == "it had ended before\n"


@pytest.mark.parametrize("verb", ["show", "stop"])
def test_an_unknown_stream_is_one_line(shell, verb):
    assert shell.failure("streams", verb, uuid.uuid4()) == (
        "streamorch: no such stream; list them with: streamorch streams --all"
    )


def test_nodes_are_those_of_the_api(shell, api, conn, scene):
    assert shell.json("nodes") == api.get("/nodes").json
    conn.execute(
        """
        INSERT INTO nodes (node, version, api_state, api_seen_at, unclaimed)
        VALUES ('default', 'v1.20.1', 'ok', clock_timestamp(), %s)
        ON CONFLICT (node) DO UPDATE SET version = excluded.version, api_state = 'ok', api_seen_at = clock_timestamp(),
            unclaimed = excluded.unclaimed
        """,
        [f"[{json.dumps(STRANGER)}]"],
    )
    assert shell.json("nodes") == api.get("/nodes").json
    heading, row, unclaimed = shell.text("nodes").splitlines()
    assert heading.split() == ["NODE", "VERSION", "API", "STARTED", "LAST", "TICK", "LAST", "HOOK", "LIVE", "UNCLAIMED"]
    assert row.split()[:3] == ["default", "v1.20.1", "ok"]
    assert unclaimed.startswith("default: unclaimed: open/door by srtConn c9 since ")


def test_a_node_that_nobody_hears_is_told(shell, make_key, media_server, conn):
    media_server.ask(make_key())
    conn.execute("UPDATE streams SET claimed_at = claimed_at - interval '2 minutes'")
    assert "default: publishers are let in, but neither" in shell.text("nodes")

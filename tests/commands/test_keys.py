"""`streamorch keys`."""

import uuid

import pytest

from streamorch import keys
from tests.blueprints import FUTURE, PAST, only, text_of

SECRET_MEMBERS = {"key_value", "publish"}


def test_a_key_is_made_and_told_as_the_api_tells_it(shell, api, make_broadcaster, conn):
    owner = make_broadcaster()
    said = api.post("/stream-keys", json={"broadcaster_id": str(owner), "path": "live/cam7"}).json
    made = shell.json("keys", "create", owner, "--path", "live/cam8", "--label", "mast", "--takeover", "always")
    assert made.keys() == said.keys()
    assert {name: made[name] for name in made.keys() - SECRET_MEMBERS} == api.get(f"/stream-keys/{made['id']}").json
    assert (made["path"], made["label"], made["takeover"]) == ("live/cam8", "mast", "always")
    assert made["publish"]["rtmp"].endswith(f"/live/cam8?pass={made['key_value']}")
    stored = only(conn, "SELECT key_hash FROM stream_keys WHERE path = 'live/cam8'")
    assert stored == {"key_hash": keys.digest(made["key_value"])}


def test_what_an_encoder_needs_is_printed_and_works(shell, media_server, make_broadcaster):
    text = shell.text("keys", "create", make_broadcaster())
    told = dict(line.split("  ", 1) for line in text.splitlines() if "  " in line)
    value = told["key"].strip()
    assert told["OBS stream key"].strip().endswith(f"?pass={value}")
    assert media_server.ask(value).status_code == 200


def test_what_is_off_is_not_printed(shell, make_broadcaster):
    off = dict.fromkeys(("MEDIAMTX_RTMP_URL", "MEDIAMTX_RTSP_URL", "MEDIAMTX_SRT_URL", "MEDIAMTX_WEBRTC_URL"), "off")
    text = shell.text("keys", "create", make_broadcaster(), **off)
    assert [line.split()[0] for line in text.splitlines()] == ["id", "key", "path", "The"]


def test_a_new_value_is_told_as_the_api_tells_it_and_the_one_before_beside_it(shell, api, make_key, media_server):
    key = make_key(path="live/cam7")
    said = api.post(f"/stream-keys/{key.id}/rotate", json={"overlap_seconds": 0}).json
    made = shell.json("keys", "rotate", key.id, "--overlap", "3600")
    assert made.keys() == said.keys()
    assert {name: made[name] for name in made.keys() - SECRET_MEMBERS} == api.get(f"/stream-keys/{key.id}").json
    assert made["previous_hint"] == said["hint"]
    assert made["publish"]["rtmp"].endswith(f"/live/cam7?pass={made['key_value']}")
    assert f"…{made['hint']} …{said['hint']}  live/cam7" in shell.text("keys")
    assert f"…{said['hint']} until " in shell.text("keys", "show", key.id)
    last = shell.text("keys", "rotate", key.id, "--overlap", "0")
    told = dict(line.split("  ", 1) for line in last.splitlines() if "  " in line)
    value = told["key"].strip()
    assert value.startswith("sk_")
    assert f"…{value[-4:]}  live/cam7" in shell.text("keys")
    assert "previous key   -" in shell.text("keys", "show", key.id)
    assert media_server.ask(made["key_value"]).json["type"] == "/errors/stream-key-revoked"
    assert media_server.ask(value).status_code == 200


@pytest.mark.parametrize("seconds", ["-1", "2592001", "soon"])
def test_an_overlap_has_bounds(shell, make_key, seconds):
    assert "--overlap" in shell.failure("keys", "rotate", make_key().id, "--overlap", seconds, code=2)


def test_the_objects_are_those_of_the_api(shell, api, make_key, media_server):
    used, revoked, expired = make_key(label="a"), make_key(revoked_at=PAST), make_key(expires_at=PAST)
    media_server.go_live(used)
    listed = api.get("/stream-keys").json
    assert shell.json("keys") == {"stream_keys": listed["stream_keys"], "count": 3}
    assert shell.json("keys", used.id) == api.get(f"/stream-keys/{used.id}").json
    for status, key in (("active", used), ("revoked", revoked), ("expired", expired)):
        assert [row["id"] for row in shell.json("keys", "--status", status)["stream_keys"]] == [str(key.id)]
    mine = shell.json("keys", "list", "--broadcaster", expired.broadcaster_id)
    assert [row["id"] for row in mine["stream_keys"]] == [str(expired.id)]


def test_each_state_is_in_the_table_and_the_value_is_not(shell, make_key, media_server):
    made = {
        "in use": make_key(),
        "active": make_key(),
        "disabled": make_key(disabled_at=PAST),
        "on hold": make_key(hold_until=FUTURE),
        "revoked": make_key(revoked_at=PAST, disabled_at=PAST),
        "expired": make_key(expires_at=PAST),
    }
    media_server.go_live(made["in use"])
    text = shell.text("keys")
    shown = {line[:36]: line[38:46].strip() for line in text.splitlines()[1:]}
    assert shown == {str(key.id): state for state, key in made.items()}
    for key in made.values():
        assert key.value not in text
        assert f"…{key.value[-4:]}" in text
        assert key.value not in shell.text("keys", "show", key.id)


def test_all_of_them_are_listed_past_one_page(shell, make_broadcaster, conn):
    conn.execute(
        """
        INSERT INTO stream_keys (id, broadcaster_id, key_hash, hint)
        SELECT gen_random_uuid(), %s, sha256(n::text::bytea), 'abcd' FROM generate_series(1, 1001) n
        """,
        [make_broadcaster()],
    )
    assert shell.json("keys")["count"] == 1001


@pytest.mark.parametrize(("verb", "reason"), [("revoke", "revoked"), ("disable", "disabled")])
def test_what_is_taken_back_ends_its_stream_and_lets_nobody_in(shell, verb, reason, make_key, media_server, conn):
    key = make_key()
    media_server.go_live(key)
    assert shell.text("keys", verb, key.id) == f"{reason}; its streams have ended\n"
    assert only(conn, "SELECT end_reason, kick_requested_at IS NOT NULL AS kick FROM streams") == {
        "end_reason": reason,
        "kick": True,
    }
    assert media_server.ask(key).status_code == 401


def test_to_revoke_twice_is_told(shell, make_key):
    key = make_key()
    shell.text("keys", "revoke", key.id)
    assert shell.text("keys", "revoke", key.id) == "it was revoked before\n"


def test_to_enable_lets_in_again(shell, make_key, media_server):
    key = make_key(disabled_at=PAST)
    shell.text("keys", "enable", key.id)
    assert media_server.ask(key).status_code == 200


def test_a_hold_refuses_newcomers_until_it_is_released_and_ends_nothing(shell, make_key, media_server, conn):
    key = make_key()
    media_server.go_live(key)
    assert shell.text("keys", "hold", key.id, "--seconds", "600").startswith("on hold until ")
    assert only(
        conn, "SELECT round(extract(epoch FROM hold_until - clock_timestamp()) / 60) AS m FROM stream_keys"
    ) == {"m": 10}
    assert only(conn, "SELECT ended_at FROM streams") == {"ended_at": None}
    assert only(conn, "SELECT who FROM audit WHERE action = 'update'") == {"who": "CLI"}
    refused = media_server.ask(key, "live/other")
    assert refused.json["type"] == "/errors/stream-stopped"
    shell.text("keys", "release", key.id)
    assert media_server.ask(key, "live/other").json["type"] == "/errors/stream-key-in-use"


@pytest.mark.parametrize("verb", ["show", "revoke", "rotate", "disable", "enable", "hold", "release"])
def test_an_unknown_key_is_one_line(shell, verb):
    assert shell.failure("keys", verb, uuid.uuid4()) == (
        "streamorch: no such stream key; list them with: streamorch keys"
    )


@pytest.mark.parametrize("verb", ["rotate", "disable", "enable", "hold", "release"])
def test_a_revoked_key_stays_as_it_is(shell, verb, make_key):
    key = make_key(revoked_at=PAST)
    assert "revoked, which is for good" in shell.failure("keys", verb, key.id)


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--path", "live/../x"], "a path may not have the part", 1),
        (["--expires-at", "tomorrow"], "--expires-at is no RFC 3339 time", 1),
        (["--expires-at", "2026-12-31T23:59:59"], "--expires-at is no RFC 3339 time", 1),
        (["--label", "x" * 256], "from 1 to 255 characters", 2),
    ],
)
def test_what_a_key_cannot_have_is_one_line(shell, options, said, code, make_broadcaster, conn):
    assert said in shell.failure("keys", "create", make_broadcaster(), *options, code=code)
    assert only(conn, "SELECT count(*) FROM stream_keys") == {"count": 0}


def test_a_key_of_nobody_or_on_a_taken_path_is_one_line(shell, make_broadcaster, make_key, media_server):
    assert "no such broadcaster" in shell.failure("keys", "create", uuid.uuid4())
    media_server.go_live(make_key(), "live/cam7")
    assert "is live on this path" in shell.failure("keys", "create", make_broadcaster(), "--path", "live/cam7")


def test_an_expiry_is_kept(shell, make_broadcaster, conn):
    made = shell.json("keys", "create", make_broadcaster(), "--expires-at", text_of(FUTURE))
    assert made["expires_at"] == text_of(FUTURE)

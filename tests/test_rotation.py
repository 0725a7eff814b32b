"""A key gets a new value while encoders use it: both work until the overlap ends, and nobody who is live is cut off.

And the secret of a media server's callbacks is changed while streams are live.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flask
import psycopg
import pytest
from werkzeug.serving import make_server

from streamorch import keys
from streamorch.repositories import stream_keys
from tests.blueprints import FUTURE, PAST, fields, only, problem, rows, text_of
from tests.test_decisions import eventually

PATH = "live/cam7"
READ = "SELECT * FROM stream_keys"
UNTIL = "SELECT extract(epoch FROM previous_works_until - rotated_at)::int AS seconds FROM stream_keys"
STREAMS = "SELECT end_reason, hint FROM streams ORDER BY claimed_at"


@pytest.fixture
def rotate(api):
    """POST /stream-keys/{id}/rotate; the new key, whose value is told this once."""

    def post(key, **members) -> dict[str, Any]:
        answer = api.post(f"/stream-keys/{key.id}/rotate", json=members)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json
        return made

    return post


def let_the_overlap_end(conn):
    conn.execute(
        "UPDATE stream_keys SET previous_works_until = clock_timestamp() WHERE previous_works_until IS NOT NULL"
    )


def come_and_go(media_server, value, path=PATH):
    """The answer to a publish with this value; who is let in goes again."""
    connection_id = str(uuid.uuid4())
    answer = media_server.ask(value, path, id=connection_id)
    if answer.status_code == 200:
        media_server.ready(connection_id, path)
        media_server.not_ready(connection_id, path)
        return "in"
    return answer.json["type"].removeprefix("/errors/")


# --- what it tells ---


def test_the_new_value_is_told_this_once_and_both_hints_are_shown(api, make_key, conn):
    key = make_key(path=PATH, label="cam")
    answer = api.post(f"/stream-keys/{key.id}/rotate", json={})
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Location"] == f"/stream-keys/{key.id}"
    made = answer.json
    value = made.pop("key_value")
    assert value != key.value
    assert made.pop("publish")["rtmp"].endswith(f"/{PATH}?pass={value}")
    assert made == api.get(f"/stream-keys/{key.id}").json
    assert (made["id"], made["label"]) == (str(key.id), "cam")
    assert (made["hint"], made["previous_hint"]) == (value[-4:], key.value[-4:])
    row = only(conn, READ)
    assert (row["key_hash"], row["previous_key_hash"]) == (keys.digest(value), keys.digest(key.value))
    assert made["rotated_at"] == text_of(row["rotated_at"])
    assert made["previous_works_until"] == text_of(row["previous_works_until"])
    assert only(conn, UNTIL) == {"seconds": 86400}
    assert value not in repr(row)


@pytest.mark.parametrize("seconds", [0, 1, 3600.0, 30 * 86400])
def test_an_overlap_is_as_long_as_it_is_asked_for(seconds, rotate, make_key, conn):
    made = rotate(make_key(), overlap_seconds=seconds)
    assert only(conn, UNTIL) == {"seconds": seconds}
    assert (made["previous_works_until"] is None) == (seconds == 0)


@pytest.mark.parametrize("seconds", [-1, 30 * 86400 + 1, 1.5, 1e300, "60", None])
def test_an_overlap_has_bounds(seconds, api, make_key, conn):
    key = make_key()
    before = rows(conn, READ)
    assert fields(api.post(f"/stream-keys/{key.id}/rotate", json={"overlap_seconds": seconds})) == {"overlap_seconds"}
    assert rows(conn, READ) == before


def test_what_is_not_there_or_is_taken_back_has_no_new_value(api, make_key, make_broadcaster, conn):
    problem(api.post(f"/stream-keys/{uuid.uuid4()}/rotate", json={}), "not-found", 404)
    problem(api.post("/stream-keys/nonsense/rotate", json={}), "invalid-request", 400)
    problem(api.post(f"/stream-keys/{make_key(revoked_at=PAST).id}/rotate", json={}), "conflict", 409)
    of_nobody = make_key(broadcaster_id=make_broadcaster(deleted_at=PAST))
    problem(api.post(f"/stream-keys/{of_nobody.id}/rotate", json={}), "not-found", 404)
    assert all(row["rotated_at"] is None for row in rows(conn, READ))


# --- who gets in ---


def test_either_value_gets_in_until_the_overlap_ends_then_the_new_one_alone(rotate, make_key, media_server, conn):
    key = make_key()
    new = rotate(key)["key_value"]
    assert [come_and_go(media_server, value) for value in (key.value, new, key.value)] == ["in"] * 3
    assert [row["hint"] for row in rows(conn, STREAMS)] == [value[-4:] for value in (key.value, new, key.value)]
    let_the_overlap_end(conn)
    assert come_and_go(media_server, key.value) == "stream-key-revoked"
    assert come_and_go(media_server, new) == "in"


def test_the_page_of_a_publisher_is_told_the_same(rotate, make_key, media_server, conn):
    key = make_key()
    new = rotate(key)["key_value"]
    for value in (key.value, new):
        assert media_server.ask(value, id=None, protocol="webrtc").status_code == 200
    let_the_overlap_end(conn)
    problem(media_server.ask(key.value, id=None, protocol="webrtc"), "stream-key-revoked", 401)
    assert media_server.ask(new, id=None, protocol="webrtc").status_code == 200


def test_without_an_overlap_the_old_value_is_out_and_its_stream_goes_on(rotate, make_key, media_server, api, conn):
    key = make_key()
    connection_id = media_server.go_live(key, PATH)
    new = rotate(key, overlap_seconds=0)["key_value"]
    assert only(conn, STREAMS) == {"end_reason": None, "hint": key.value[-4:]}
    (live,) = api.get("/streams").json["streams"]
    assert live["source_id"] == connection_id
    problem(media_server.ask(key.value, PATH), "stream-key-revoked", 401)
    # It may be stopped, and does not come back.
    assert api.delete(f"/streams/{live['id']}?hold_seconds=0").status_code == 204
    assert come_and_go(media_server, key.value) == "stream-key-revoked"
    assert come_and_go(media_server, new) == "in"


def test_a_claim_by_the_old_value_becomes_live_after_the_overlap(rotate, make_key, media_server, conn):
    key = make_key()
    rotate(key)
    connection_id = str(uuid.uuid4())
    assert media_server.ask(key.value, PATH, id=connection_id).status_code == 200
    let_the_overlap_end(conn)
    assert media_server.ready(connection_id, PATH).status_code == 204
    assert only(conn, STREAMS)["end_reason"] is None


def test_both_are_one_key(rotate, make_key, media_server, api, conn):
    """One stream, one path, one hold, one right: what is said of the key holds for either value."""
    key = make_key(path=PATH)
    new = rotate(key)["key_value"]
    live = media_server.go_live(key, PATH)
    for value in (key.value, new):
        problem(media_server.ask(value, "live/other"), "path-not-allowed", 401)
        assert media_server.ask(value, PATH, id=live).status_code == 200  # its own connection once more
    # Without a Control API the newest wins on its path: it is the same key that comes.
    connection_id = str(uuid.uuid4())
    assert media_server.ask(new, PATH, id=connection_id).status_code == 200
    problem(media_server.ask(key.value, PATH), "stream-key-in-use", 401)
    media_server.ready(connection_id, PATH)
    assert [row["end_reason"] for row in rows(conn, STREAMS)] == ["superseded", None]
    api.patch(f"/stream-keys/{key.id}", json={"disabled": True})
    assert [come_and_go(media_server, value) for value in (key.value, new)] == ["stream-key-disabled"] * 2
    api.delete(f"/stream-keys/{key.id}")
    assert [come_and_go(media_server, value) for value in (key.value, new)] == ["stream-key-revoked"] * 2


def test_a_key_that_may_not_publish_may_not_with_its_new_value(rotate, make_key, media_server):
    for columns, slug in (
        ({"disabled_at": PAST}, "stream-key-disabled"),
        ({"expires_at": PAST}, "stream-key-expired"),
        ({"hold_until": FUTURE}, "stream-stopped"),
    ):
        key = make_key(**columns)
        new = rotate(key)["key_value"]
        assert [come_and_go(media_server, value) for value in (key.value, new)] == [slug] * 2


def test_two_values_work_at_a_time(rotate, make_key, media_server):
    key = make_key()
    second = rotate(key)["key_value"]
    third = rotate(key)["key_value"]
    assert come_and_go(media_server, key.value) == "invalid-stream-key"
    assert [come_and_go(media_server, value) for value in (second, third)] == ["in"] * 2
    rotate(key, overlap_seconds=0)
    assert come_and_go(media_server, second) == "invalid-stream-key"
    assert come_and_go(media_server, third) == "stream-key-revoked"


# --- the end of the overlap ---


@pytest.mark.parametrize("end", [None, text_of(PAST)])
def test_an_overlap_may_be_ended_now(end, rotate, make_key, api, media_server):
    key = make_key()
    rotate(key)
    answer = api.patch(f"/stream-keys/{key.id}", json={"previous_works_until": end})
    assert (answer.status_code, answer.json["previous_works_until"]) == (200, None)
    assert answer.json["previous_hint"] == key.value[-4:]
    assert come_and_go(media_server, key.value) == "stream-key-revoked"


@pytest.mark.parametrize("seconds", [60, 20 * 86400])
def test_its_end_may_be_moved_while_it_lasts(seconds, rotate, make_key, api, media_server):
    key = make_key()
    rotate(key, overlap_seconds=seconds)
    moved = {"previous_works_until": text_of(FUTURE)}
    assert api.patch(f"/stream-keys/{key.id}", json=moved).json["previous_works_until"] == text_of(FUTURE)
    assert come_and_go(media_server, key.value) == "in"


def test_what_is_out_stays_out(rotate, make_key, api, media_server, conn):
    never, over = make_key(), make_key()
    rotate(over, overlap_seconds=0)
    before = rows(conn, READ)
    for key in (never, over):
        moved = {"previous_works_until": text_of(FUTURE), "label": "x"}
        problem(api.patch(f"/stream-keys/{key.id}", json=moved), "conflict", 409)
        for end in (None, text_of(PAST)):  # as it is
            assert api.patch(f"/stream-keys/{key.id}", json={"previous_works_until": end}).status_code == 200
    assert rows(conn, READ) == before
    assert come_and_go(media_server, over.value) == "stream-key-revoked"


def test_an_overlap_does_not_last_for_ever(rotate, make_key, api, conn):
    key = make_key()
    rotate(key)
    before = rows(conn, READ)
    answer = api.patch(f"/stream-keys/{key.id}", json={"previous_works_until": "2999-01-01T00:00:00Z", "label": "x"})
    assert fields(answer) == {"previous_works_until"}
    assert rows(conn, READ) == before


# --- who is told ---


def test_the_audit_trail_tells_of_both_hints_and_of_no_value(rotate, make_key, api, conn):
    key = make_key()
    conn.execute("DELETE FROM audit")
    made = rotate(key, overlap_seconds=60)
    api.patch(f"/stream-keys/{key.id}", json={"previous_works_until": None})
    ended, rotated = api.get("/audit").json["changes"]
    assert (rotated["action"], rotated["who"], rotated["subject_id"]) == ("rotate", "API_SECRET", str(key.id))
    assert rotated["before"] == {
        "hint": key.value[-4:], "previous_hint": None, "previous_works_until": None, "rotated_at": None,
    }  # fmt: skip
    assert rotated["after"] == {
        "hint": made["hint"],
        "previous_hint": key.value[-4:],
        "previous_works_until": made["previous_works_until"],
        "rotated_at": made["rotated_at"],
    }
    assert (ended["action"], list(ended["after"])) == ("update", ["previous_works_until"])
    assert api.get("/audit?action=rotate").json["changes"] == [rotated]
    told = repr(rows(conn, "SELECT * FROM audit"))
    for value in (key.value, made["key_value"]):
        assert value not in told
        assert keys.digest(value).hex() not in told


def test_the_decisions_tell_which_value_came(rotate, make_key, api, media_server, conn):
    key = make_key()
    assert come_and_go(media_server, key.value) == "in"
    new = rotate(key)["key_value"]
    for value in (key.value, new):
        assert come_and_go(media_server, value) == "in"
    let_the_overlap_end(conn)
    come_and_go(media_server, key.value)

    def found():
        decisions = api.get(f"/decisions?stream_key_id={key.id}").json["decisions"]
        return [(one["outcome"], one["hint"]) for one in decisions]

    eventually(lambda: len(found()) == 4)
    assert found() == [
        ("stream-key-revoked", key.value[-4:]),
        ("claimed", new[-4:]),
        ("claimed", key.value[-4:]),
        ("claimed", key.value[-4:]),
    ]
    # Of a stream from before there were rotations nobody knows, unless the key has had one value only.
    other = make_key()
    come_and_go(media_server, other.value)
    conn.execute("UPDATE streams SET hint = NULL")
    granted = api.get("/decisions?outcome=claimed").json["decisions"]
    assert [one["hint"] for one in granted] == [other.value[-4:], None, None, None]


# --- the last line of defence ---


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"previous_key_hash": b"x" * 31}, "stream_keys_previous_hash_length"),
        ({"previous_hint": "12345"}, "stream_keys_previous_hint_length"),
        ({"key_hash": b"x" * 32, "previous_key_hash": b"x" * 32}, "stream_keys_previous_is_another"),
        ({"previous_hint": None}, "stream_keys_previous_is_whole"),
    ],
)
def test_a_row_that_cannot_be_is_refused(columns, constraint, make_key):
    rotated = {"previous_key_hash": b"y" * 32, "previous_hint": "y", "previous_works_until": PAST, "rotated_at": PAST}
    make_key(**rotated)
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        make_key(**rotated | {"previous_key_hash": b"z" * 32} | columns)
    assert caught.value.diag.constraint_name == constraint


def test_a_replaced_value_belongs_to_one_key(make_key):
    rotated = {"previous_key_hash": b"y" * 32, "previous_hint": "y", "previous_works_until": PAST, "rotated_at": PAST}
    make_key(**rotated)
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        make_key(**rotated)
    assert caught.value.diag.constraint_name == "stream_keys_by_previous_hash"


def test_the_functions_tell_why(conn, make_key):
    def ask(key_id):
        return stream_keys.rotate(conn, key_id, key_hash=keys.digest(keys.mint()), hint="x", overlap_seconds=1)

    assert ask(make_key().id) == "rotated"
    assert ask(make_key(revoked_at=PAST).id) == "revoked"
    assert ask(uuid.uuid4()) == "not-found"


# --- the secret of the callbacks ---


@contextmanager
def serving(app: flask.Flask) -> Iterator[int]:
    """The port at which the application listens."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def a_stream(fake, key, path):
    """What a media server is answered from the first question about a publisher to its end."""
    publisher = fake.publish(path, live=False)
    answers = [fake.ask(publisher, key.value)]
    fake.go_live(publisher)
    answers.append(fake.hook_ready(publisher))
    fake.leave(publisher)
    return [*answers, fake.hook_not_ready(publisher)]


def test_the_secret_of_the_callbacks_is_changed_without_a_gap(make_app, fake, make_key):
    """First the service takes both, then the media server sends the new one, then the old one goes."""
    key = make_key()
    heard, refused = [200, 204, 204], [401, 401, 401]
    for number, (accepted, sent, expected) in enumerate(
        (
            ("old", "old", heard),
            ("old", "new", refused),
            ("new,old", "old", heard),
            ("new,old", "new", heard),
            ("new", "new", heard),
            ("new", "old", refused),
        )
    ):
        with serving(make_app(MEDIAMTX_API_URL=fake.url, MEDIAMTX_CALLBACK_SECRET=accepted)) as port:
            fake.callback_url = f"http://mediamtx:{sent}@127.0.0.1:{port}"
            assert a_stream(fake, key, f"live/{number}") == expected, (accepted, sent)

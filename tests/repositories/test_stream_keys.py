"""The last line of defence of stream keys, and what their functions tell."""

import uuid

import psycopg
import pytest

from streamorch import keys
from streamorch.repositories import stream_keys
from tests.blueprints import FUTURE, PAST, only, rows


@pytest.mark.parametrize(
    ("columns", "constraint"),
    [
        ({"key_hash": b"x" * 31}, "stream_keys_hash_length"),
        ({"key_hash": b"x" * 33}, "stream_keys_hash_length"),
        ({"hint": "12345"}, "stream_keys_hint_length"),
        ({"label": "x" * 256}, "stream_keys_label_length"),
        ({"path": ""}, "stream_keys_path_length"),
        ({"path": "x" * 256}, "stream_keys_path_length"),
        ({"takeover": "sometimes"}, "stream_keys_takeover_known"),
        ({"metadata": "[]"}, "stream_keys_metadata_is_object"),
    ],
)
def test_a_row_that_cannot_be_is_refused(columns, constraint, make_key):
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        make_key(**columns)
    assert caught.value.diag.constraint_name == constraint


def test_a_value_belongs_to_one_key(make_key):
    make_key("secret")
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        make_key("secret")
    assert caught.value.diag.constraint_name == "stream_keys_hash_unique"


def test_a_key_belongs_to_a_broadcaster_that_stays(make_key, conn):
    with pytest.raises(psycopg.errors.ForeignKeyViolation) as caught:
        make_key(broadcaster_id=uuid.uuid4())
    assert caught.value.diag.constraint_name == "stream_keys_broadcaster"
    make_key()
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        conn.execute("DELETE FROM broadcasters")


def create(conn, broadcaster_id, **members):
    value = keys.mint()
    given = {
        "stream_key_id": uuid.uuid4(),
        "broadcaster_id": broadcaster_id,
        "key_hash": keys.digest(value),
        "hint": keys.hint(value),
        "label": None,
        "path": None,
        "takeover": "stalled",
        "expires_at": None,
        "disabled": False,
        "metadata": {},
    }
    return stream_keys.create(conn, **given | members)


def test_create_tells_what_it_found(conn, make_broadcaster, make_key):
    broadcaster, key = make_broadcaster(), make_key("secret")
    assert create(conn, broadcaster) == "created"
    assert create(conn, uuid.uuid4()) == "unknown-broadcaster"
    assert create(conn, make_broadcaster(deleted_at=PAST)) == "unknown-broadcaster"
    assert create(conn, broadcaster, stream_key_id=key.id) == "conflict"
    assert create(conn, broadcaster, key_hash=keys.digest("secret")) == "conflict"
    assert create(conn, make_broadcaster(disabled_at=PAST)) == "created"
    assert len(rows(conn, "SELECT id FROM stream_keys")) == 3


def test_update_tells_what_it_found(conn, make_key, make_broadcaster):
    assert stream_keys.update(conn, make_key().id, {"label": "x"}) == "updated"
    assert stream_keys.update(conn, make_key(revoked_at=PAST).id, {"label": "x"}) == "revoked"
    assert stream_keys.update(conn, uuid.uuid4(), {"label": "x"}) == "not-found"
    assert stream_keys.update(conn, make_key(broadcaster_id=make_broadcaster(deleted_at=PAST)).id, {}) == "not-found"


def test_revoke_tells_what_it_found(conn, make_key):
    key = make_key()
    assert stream_keys.revoke(conn, key.id) == "revoked"
    assert stream_keys.revoke(conn, key.id) == "already"
    assert stream_keys.revoke(conn, uuid.uuid4()) == "not-found"


def test_get_shows_no_key_of_a_deleted_broadcaster(conn, make_key, make_broadcaster):
    key = make_key(broadcaster_id=make_broadcaster(deleted_at=PAST))
    assert stream_keys.get(conn, key.id) is None
    assert stream_keys.page(conn, broadcaster_id=key.broadcaster_id, status=None, limit=9, after=None) == []


def test_a_key_is_shown_without_its_hash(conn, make_key):
    shown = stream_keys.get(conn, make_key(expires_at=FUTURE, hold_until=PAST).id)
    assert shown is not None
    assert "hash" not in " ".join(shown.__struct_fields__)
    assert (shown.status, shown.hold_until, shown.in_use) == ("active", None, False)


@pytest.mark.parametrize("change", [{"disabled": True}, {"expires_at": PAST.isoformat()}])
def test_a_lock_held_by_another_is_not_waited_for(change, conn, make_key, database_url):
    key = make_key()
    with psycopg.connect(database_url) as other:
        other.execute("SELECT 1 FROM stream_keys FOR UPDATE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            stream_keys.update(conn, key.id, change)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            stream_keys.revoke(conn, key.id)
    assert only(conn, "SELECT revoked_at, disabled_at FROM stream_keys") == {"revoked_at": None, "disabled_at": None}

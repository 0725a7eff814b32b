"""Where each value ends that a client can send: what is within is stored as it was sent, what is not is refused.

Refused is: a problem that names the field, nothing stored, and never a 5xx. Here inside of HTTP; what HTTP itself
may be is in test_malformed.py.
"""

import base64
import json
import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from gunicorn.config import Config

from streamorch import blueprints, paths
from streamorch.blueprints import api_clients, auth, broadcasters, stream_keys, streams
from streamorch.exchange import MAX_BODY_BYTES
from tests.blueprints import NOW, fields, rows, text_of

REFUSED = object()
STORED = object()

# What JSON can say as a text. A lone surrogate and bytes that are no UTF-8 are no JSON: see NOT_JSON.
ODD_TEXTS = {
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f",
    "line separators": "\u2028\u2029\x85",
    "a right-to-left mark": "a\u202eb\u200f",
    "characters outside of the first plane": "\U0001f3a5\U0010ffff",
    "combining marks": "e\u0301" * 20,
    "a byte order mark": "\ufeffa",
    "what is no character": "\ufffe\uffff",
    "quotes and backslashes": "'\"\\%s $1 {} \\u0000",
    "spaces alone": " \t\n ",
}


def members(**given: str) -> bytes:
    """A JSON object of members that are written already."""
    return b"{%s}" % ", ".join(f'"{name}": {text}' for name, text in given.items()).encode()


def state(conn):
    """Everything that is stored, but for the version of the live list."""
    tables = ("broadcasters", "stream_keys", "streams", "departures", "api_clients")
    return [rows(conn, f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in tables]  # noqa: S608  # names of ours


class Place:
    """Where a value can be put: how it is sent, and where it is read again."""

    def __init__(self, api, method: str, path: str, **others: str):
        self.api = api
        self.method = method
        self.path = path
        self.others = others

    def put(self, field: str, text: str) -> Any:
        sent = members(**self.others | {field: text})
        return self.api(self.method, self.path, data=sent, content_type="application/json")

    def read(self, answer) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(answer.headers.get("Location", self.path)).json
        return found


@pytest.fixture
def places(api, make_broadcaster, make_key, make_client, media_server, conn):
    """By name: each body of the REST part."""
    key = make_key()
    media_server.go_live(key)
    stream_id = rows(conn, "SELECT id FROM streams")[0]["id"]
    return {
        "new broadcaster": Place(api, "POST", "/broadcasters", display_name='"x"'),
        "broadcaster": Place(api, "PATCH", f"/broadcasters/{make_broadcaster()}"),
        "new key": Place(api, "POST", "/stream-keys", broadcaster_id=f'"{key.broadcaster_id}"'),
        "key": Place(api, "PATCH", f"/stream-keys/{make_key().id}"),
        "stream": Place(api, "PATCH", f"/streams/{stream_id}"),
        "new client": Place(api, "POST", "/api-clients", name='"x"', scope='"read"'),
        "client": Place(api, "PATCH", f"/api-clients/{make_client().id}"),
    }


def judge(places, conn, place: str, field: str, text: str, expected: Any) -> None:
    """`expected`: REFUSED, STORED (read back as it was sent), or what is read back."""
    conn.execute("UPDATE api_clients SET name = id::text")  # no two have one
    before = state(conn)
    answer = places[place].put(field, text)
    if expected is REFUSED:
        assert fields(answer) == {field}
        assert state(conn) == before
        return
    assert answer.status_code in (200, 201), answer.text
    wanted = json.loads(text) if expected is STORED else expected
    read = places[place].read(answer)
    assert (answer.json[field], read[field]) == (wanted, wanted)
    assert type(read[field]) is type(wanted)


# --- texts ---

WRONG_TYPES = {
    name: text
    for name, text in (
        ("a number", "7"),
        ("a float", "7.5"),
        ("a boolean", "true"),
        ("a list", '["a"]'),
        ("an object", '{"a": "b"}'),
    )
}
TEXTS = [
    ("new broadcaster", "display_name", 255),
    ("broadcaster", "display_name", 255),
    ("new key", "label", 255),
    ("key", "label", 255),
    ("stream", "recording_ref", 512),
    ("new client", "name", 255),
    ("client", "name", 255),
]


@pytest.mark.parametrize(("place", "field", "most"), TEXTS)
def test_a_text_is_as_long_as_it_may_be_and_no_longer(place, field, most, places, conn):
    """Counted in characters, not in bytes."""
    for character in ("x", "\U0001f3a5"):
        judge(places, conn, place, field, json.dumps(character * most), STORED)
        judge(places, conn, place, field, json.dumps(character * (most + 1)), REFUSED)
    judge(places, conn, place, field, '"%s"' % ("x" * 60_000), REFUSED)


@pytest.mark.parametrize(("place", "field", "most"), TEXTS)
def test_a_text_may_be_odd(place, field, most, places, conn):
    for text in ODD_TEXTS.values():
        judge(places, conn, place, field, json.dumps(text), STORED)
        judge(places, conn, place, field, json.dumps(text, ensure_ascii=False), STORED)


@pytest.mark.parametrize(("place", "field", "most"), TEXTS)
def test_a_text_holds_no_nul_and_is_a_text(place, field, most, places, conn):
    for text in (r'"\u0000"', r'"a\u0000"', r'"\u0000a"', r'"a\u0000b\u0000c"', *WRONG_TYPES.values()):
        judge(places, conn, place, field, text, REFUSED)


@pytest.mark.parametrize(
    ("place", "field"),
    [("new broadcaster", "display_name"), ("broadcaster", "display_name"), ("new client", "name"), ("client", "name")],
)
def test_a_name_is_there(place, field, places, conn):
    for text in ('""', "null"):
        judge(places, conn, place, field, text, REFUSED)


@pytest.mark.parametrize(("place", "field"), [("new key", "label"), ("key", "label"), ("stream", "recording_ref")])
def test_what_may_be_missing_may_be_empty(place, field, places, conn):
    for text in ('""', "null"):
        judge(places, conn, place, field, text, STORED)


# --- paths ---

PATHS = {
    "live/cam": STORED,
    "a": STORED,
    "x" * 255: STORED,
    "/".join("a" * 128): STORED,
    "a-b_c.d/E": STORED,
    "x" * 256: REFUSED,
    "": REFUSED,
    "/": REFUSED,
    "/a": REFUSED,
    "a/": REFUSED,
    "a//b": REFUSED,
    "a/../b": REFUSED,
    "a/./b": REFUSED,
    "..": REFUSED,
    "a%2Fb": REFUSED,
    "a\x00": REFUSED,
    "a\n": REFUSED,
    "a b": REFUSED,
    "ä": REFUSED,
    "\u0661": REFUSED,
    "\U0001f3a5": REFUSED,
    "a\\b": REFUSED,
    "a?b": REFUSED,
    "a#b": REFUSED,
    "all": REFUSED,
    "a/whip": REFUSED,
    "a/b.m3u8": REFUSED,
}


@pytest.mark.parametrize("place", ["new key", "key"])
def test_paths(place, places, conn, subtests):
    for path, expected in PATHS.items():
        with subtests.test(path=path):
            judge(places, conn, place, "path", json.dumps(path), expected)


# --- moments ---

MOMENTS = {
    "2026-01-31T12:00:00Z": "2026-01-31T12:00:00.000000Z",
    "2026-01-31T12:00:00.123456Z": "2026-01-31T12:00:00.123456Z",
    "2026-01-31t12:00:00z": "2026-01-31T12:00:00.000000Z",
    "2026-01-31T12:00:00+14:00": "2026-01-30T22:00:00.000000Z",
    "2026-01-31T12:00:00-12:00": "2026-02-01T00:00:00.000000Z",
    "2026-01-31T12:00:00+23:59": "2026-01-30T12:01:00.000000Z",  # PostgreSQL itself knows no such offset
    "2026-01-31T12:00:00-23:59": "2026-02-01T11:59:00.000000Z",
    "2026-01-31T12:00:00.1234564Z": "2026-01-31T12:00:00.123456Z",  # of finer ones the nearest microsecond
    "2026-01-31T12:00:00.1234569Z": "2026-01-31T12:00:00.123457Z",
    "2024-02-29T00:00:00Z": "2024-02-29T00:00:00.000000Z",
    "0001-01-01T00:00:00Z": "0001-01-01T00:00:00.000000Z",
    "9999-12-31T23:59:59.999999Z": "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59+14:00": "9999-12-31T09:59:59.000000Z",
    "0001-01-01T00:00:00-14:00": "0001-01-01T14:00:00.000000Z",
    # In UTC these are of the years 0 and 10000.
    "0001-01-01T00:00:00+00:01": REFUSED,
    "0001-01-01T00:00:00+14:00": REFUSED,
    "9999-12-31T23:59:59-00:01": REFUSED,
    "9999-12-31T23:59:59-14:00": REFUSED,
    "9999-12-31T23:59:59.9999999Z": REFUSED,
    "0000-01-01T00:00:00Z": REFUSED,
    "10000-01-01T00:00:00Z": REFUSED,
    "-0001-01-01T00:00:00Z": REFUSED,
    "2026-01-31T12:00:00": REFUSED,
    "2026-01-31": REFUSED,
    "12:00:00Z": REFUSED,
    "2026-01-31T12:00Z": REFUSED,
    "2026-01-31T12:00:60Z": REFUSED,
    "2016-12-31T23:59:60Z": REFUSED,  # a leap second that there was: PostgreSQL has none
    "2026-01-31T24:00:00Z": REFUSED,
    "2026-02-29T00:00:00Z": REFUSED,
    "2026-01-31T12:00:00+24:00": REFUSED,
    "2026-01-31T12:00:00+14:60": REFUSED,
    "2026-01-31T12:00:00.Z": REFUSED,
    "2026-01-31T12:00:00Z\x00": REFUSED,
    "20260131T120000Z": REFUSED,
    "\u0662026-01-31T12:00:00Z": REFUSED,
    "infinity": REFUSED,
    "-infinity": REFUSED,
    "now": REFUSED,
    "": REFUSED,
}


@pytest.mark.parametrize(
    ("place", "field"),
    [
        ("new key", "expires_at"),
        ("key", "expires_at"),
        ("key", "hold_until"),
        ("new client", "expires_at"),
        ("client", "expires_at"),
    ],
)
def test_moments(place, field, places, conn, subtests):
    for text, expected in MOMENTS.items():
        with subtests.test(text=text):
            if field == "hold_until" and expected is not REFUSED and expected < text_of(NOW):
                expected = None  # a hold that is over is none
            judge(places, conn, place, field, json.dumps(text), expected)


@pytest.mark.parametrize(
    ("place", "field"), [("new key", "expires_at"), ("key", "hold_until"), ("client", "expires_at")]
)
def test_a_moment_is_a_text(place, field, places, conn):
    for text in ("0", "true", "[]", "{}", "99999999999999999999999", "1767225600", "-0.0"):
        judge(places, conn, place, field, text, REFUSED)


# --- switches, words, ids ---


@pytest.mark.parametrize("place", ["new broadcaster", "broadcaster", "new key", "key"])
def test_a_switch_is_a_boolean(place, places, conn):
    for text in ("0", "1", '"true"', '"false"', "null", "0.0", "-0", "[]", "{}", '""'):
        judge(places, conn, place, "disabled", text, REFUSED)
    for text in ("true", "false"):
        judge(places, conn, place, "disabled", text, STORED)


@pytest.mark.parametrize("place", ["new key", "key"])
def test_takeover_is_one_of_three(place, places, conn):
    for text in ('"ALWAYS"', '"always "', r'"always\u0000"', '""', "null", "0", "true", '["never"]'):
        judge(places, conn, place, "takeover", text, REFUSED)
    for text in ('"always"', '"never"', '"stalled"'):
        judge(places, conn, place, "takeover", text, STORED)


@pytest.mark.parametrize("place", ["new client", "client"])
def test_scope_is_one_of_three(place, places, conn):
    for text in ('"READ"', '"read "', r'"read\u0000"', '""', "null", "0", "true", '["read"]', '"read,operate"'):
        judge(places, conn, place, "scope", text, REFUSED)
    for text in ('"read"', '"operate"', '"admin"'):
        judge(places, conn, place, "scope", text, STORED)


NO_IDS = [
    '""',
    '"x"',
    "7",
    "true",
    "[]",
    '"00000000-0000-0000-0000-00000000000"',
    '"00000000-0000-0000-0000-0000000000000"',
    '"{00000000-0000-0000-0000-000000000000}"',
    '"urn:uuid:00000000-0000-0000-0000-000000000000"',
    '"00000000-0000-0000-0000-00000000000g"',
    r'"00000000-0000-0000-0000-00000000000\u0000"',
    '"00000000-0000-0000-0000-00000000000\u0661"',
]


@pytest.mark.parametrize(
    ("place", "field"), [("new broadcaster", "id"), ("new key", "id"), ("new key", "broadcaster_id")]
)
def test_an_id_is_a_uuid(place, field, places, conn):
    for text in NO_IDS:
        judge(places, conn, place, field, text, REFUSED)


@pytest.mark.parametrize("value", [0, 2**128 - 1])
@pytest.mark.parametrize("place", ["new broadcaster", "new key"])
def test_an_id_is_any_uuid(value, place, places, conn):
    judge(places, conn, place, "id", json.dumps(str(uuid.UUID(int=value))), STORED)


@pytest.mark.parametrize("path", ["/broadcasters/", "/stream-keys/", "/streams/"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_an_id_in_a_url(path, method, api, conn):
    before = state(conn)
    for text in NO_IDS:
        spelled = quote(json.loads(text) if text.startswith('"') else text, safe="")
        if spelled:
            assert fields(api(method, path + spelled, json={})) == {"id"}, text
    for wild in ("%00", "%ED%A0%80", "%FF", "%FF" * 12, "x" * 3000, "%E2%80%AE", "%0D%0A"):
        assert fields(api(method, path + wild, json={})) == {"id"}, wild
    assert state(conn) == before


# --- metadata ---


def nested(depth: int, inner: str = "1", *, lists: bool = False) -> str:
    """So many objects in one another (or an object, and lists in it)."""
    if lists:
        return '{"a": ' + "[" * (depth - 1) + inner + "]" * (depth - 1) + "}"
    return '{"a": ' * depth + inner + "}" * depth


METADATA: dict[str, tuple[str, Any]] = {
    "nothing": ("{}", STORED),
    "all types": ('{"a": [null, true, false, "", 0, -1, 1.5, {}, []]}', STORED),
    "an empty name": ('{"": ""}', STORED),
    "odd names and texts": (json.dumps({text: [text] for text in ODD_TEXTS.values()}), STORED),
    "the same name twice": ('{"a": 1, "b": {"c": 2, "c": 3}, "a": 4}', {"a": 4, "b": {"c": 3}}),
    "a number of 63 bits": ('{"a": [9223372036854775807, 9223372036854775808, -9223372036854775809]}', STORED),
    "a number of 64 bits": ('{"a": [18446744073709551615, 18446744073709551616]}', STORED),
    "a number of 400 digits": ('{"a": %s}' % ("7" * 400), STORED),
    "a zero below zero": ('{"a": -0, "b": -0.0}', {"a": 0, "b": 0.0}),
    "a very small number": ('{"a": 1e-30}', STORED),
    "a large number": ('{"a": 1e30}', {"a": 10**30}),
    "a number that is nearly nothing": ('{"a": 1e-400}', {"a": 0.0}),
    "a number as PostgreSQL would write out": ('{"a": [1e308]}', REFUSED),
    "a fraction as PostgreSQL would write out": ('{"a": 1e-300}', REFUSED),
    "32 deep": (nested(32), STORED),
    "32 deep, lists": (nested(32, lists=True), STORED),
    "33 deep": (nested(33), REFUSED),
    "33 deep, lists": (nested(33, lists=True), REFUSED),
    "33 deep with nothing in it": (nested(33, "{}"), REFUSED),
    "500 deep": (nested(500), REFUSED),
    "900 deep, lists": (nested(900, lists=True), REFUSED),
    "16 KiB": ('{"a": "%s"}' % ("x" * (16 * 1024 - 8)), STORED),
    "one byte more": ('{"a": "%s"}' % ("x" * (16 * 1024 - 7)), REFUSED),
    "16 KiB of many members": (json.dumps({str(number): number for number in range(1100)}), STORED),
    "too many members": (json.dumps({str(number): number for number in range(2000)}), REFUSED),
    "spaces are not counted": ('{"a":%s1}' % (" " * 60_000), STORED),
    "a NUL in a text": (r'{"a": "\u0000"}', REFUSED),
    "a NUL in a name": (r'{"\u0000": 1}', REFUSED),
    "a NUL far inside": (r'{"a": [[{"b": [{"c\u0000": 1}]}]]}', REFUSED),
    "a list": ("[]", REFUSED),
    "a text": ('"{}"', REFUSED),
    "a number": ("0", REFUSED),
    "a boolean": ("false", REFUSED),
}


@pytest.mark.parametrize("place", ["new broadcaster", "broadcaster", "new key", "key", "stream"])
def test_metadata(place, places, conn, subtests):
    for name, (text, expected) in METADATA.items():
        with subtests.test(name=name):
            judge(places, conn, place, "metadata", text, expected)


@pytest.mark.parametrize(
    ("place", "expected"),
    [("new broadcaster", {}), ("new key", {}), ("broadcaster", REFUSED), ("key", REFUSED), ("stream", REFUSED)],
)
def test_no_metadata(place, expected, places, conn):
    judge(places, conn, place, "metadata", "null", expected)


def test_metadata_of_a_key_reaches_its_stream_as_it_was(api, make_broadcaster, media_server):
    wanted = json.loads(METADATA["odd names and texts"][0]) | json.loads(METADATA["a number of 64 bits"][0])
    made = api.post("/stream-keys", json={"broadcaster_id": str(make_broadcaster()), "metadata": wanted}).json
    connection_id = str(uuid.uuid4())
    assert media_server.ask(made["key_value"], id=connection_id).status_code == 200
    assert media_server.ready(connection_id).status_code == 204
    (stream,) = api.get("/streams").json["streams"]
    assert stream["metadata"] == wanted


# --- bodies ---

NOT_JSON = {
    "nothing": b"",
    "spaces": b" ",
    "half of it": b'{"a": 1',
    "more than one": b"{}{}",
    "a comma too many": b'{"a": 1,}',
    "a lone surrogate": rb'{"display_name": "\ud800"}',
    "a lone low surrogate": rb'{"display_name": "a\udc00b"}',
    "two high surrogates": rb'{"display_name": "\ud800\ud800"}',
    "a surrogate in a name": rb'{"\ud800": 1, "display_name": "x"}',
    "a surrogate in metadata": rb'{"display_name": "x", "metadata": {"a": "\udfff"}}',
    "a surrogate in UTF-8": b'{"display_name": "\xed\xa0\x80"}',
    "no UTF-8": b'{"display_name": "\xff"}',
    "no UTF-8 in metadata": b'{"display_name": "x", "metadata": {"\xc3\x28": 1}}',
    "too long UTF-8": b'{"display_name": "\xc0\x80"}',
    "UTF-16": '{"display_name": "x"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + b'{"display_name": "x"}',
    "a NUL byte": b'{"display_name": "a\x00b"}',
    "a NUL byte behind": b'{"display_name": "x"}\x00',
    "a line break in a text": b'{"display_name": "a\nb"}',
    "NaN": b'{"display_name": "x", "metadata": {"a": NaN}}',
    "Infinity": b'{"display_name": "x", "metadata": {"a": -Infinity}}',
    "a number without end": b'{"display_name": "x", "metadata": {"a": 1e400}}',
    "a number with a zero before": b'{"display_name": "x", "metadata": {"a": 01}}',
    "single quotes": b"{'display_name': 'x'}",
    "a comment": b'{"display_name": "x" /* y */}',
    "too deep": b'{"display_name": "x", "other": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "too deep, and no end": b"[" * 60_000,
    "objects too deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "a number": b"1",
    "a form": b"display_name=x",
}


def test_a_body_that_is_no_object_of_json(places, media_server, conn, subtests):
    before = state(conn)
    for name, raw in NOT_JSON.items():
        with subtests.test(name=name):
            for place in places.values():
                refused = place.api(place.method, place.path, data=raw, content_type="application/json")
                assert fields(refused) == {"body"}
            for path in ("/auth", "/webhook/ready", "/webhook/not-ready"):
                # A lone surrogate in a member that is not known is skipped unread: then a member that is is missing.
                assert fields(media_server.client.post(path, data=raw)) in ({"body"}, {"action"}, {"path"})
    assert state(conn) == before


def test_the_same_member_twice_counts_once(api, media_server, conn):
    answer = api.post(
        "/broadcasters", data=b'{"display_name": 7, "display_name": "second"}', content_type="text/json+json"
    )
    assert (answer.status_code, answer.json["display_name"]) == (201, "second")
    refused = api.post(
        "/broadcasters", data=b'{"display_name": "x", "display_name": 7}', content_type="application/json"
    )
    assert fields(refused) == {"display_name"}


def test_other_members_may_be_anything_that_json_is(api, media_server):
    other = json.dumps({"b": [1e300, 2**70, "\x00", {"": None}]})
    for path, member in (
        ("/broadcasters", '"display_name": "x"'),
        ("/broadcasters", f'"display_name": "x", "c": {nested(500)}'),
    ):
        sent = f'{{{member}, "a\\u0000": {other}}}'
        assert api.post(path, data=sent, content_type="application/json").status_code == 201
    sent = f'{{"action": "read", "a\\u0000": {other}, "c": {nested(500)}}}'
    assert media_server.client.post("/auth", data=sent).status_code == 200
    sent = f'{{"path": "a", "source_id": "", "a\\u0000": {other}, "c": {nested(500)}}}'
    assert media_server.client.post("/webhook/ready", data=sent).status_code == 204


@pytest.mark.parametrize("size", [MAX_BODY_BYTES, MAX_BODY_BYTES + 1])
def test_the_largest_body(size: int, api, media_server, conn):
    def padded(text: str) -> str:
        return text[:-1] + " " * (size - len(text)) + "}"

    expected = 413 if size > MAX_BODY_BYTES else 0
    made = api.post("/broadcasters", data=padded('{"display_name": "x"}'), content_type="application/json")
    assert made.status_code == (expected or 201)
    assert media_server.client.post("/auth", data=padded('{"action": "read"}')).status_code == (expected or 200)
    hook = media_server.client.post("/webhook/ready", data=padded('{"path": "a", "source_id": ""}'))
    assert hook.status_code == (expected or 204)
    assert len(rows(conn, "SELECT id FROM broadcasters")) == (0 if expected else 1)


# --- what MediaMTX sends ---

NUL = "a\x00b"
QUESTION: dict[str, tuple[Any, Any]] = {
    # what decides is refused by name,
    "an id of 255": ({"id": "x" * 255}, 200),
    "an id of 256": ({"id": "x" * 256}, {"id"}),
    "an id of 255 in four bytes": ({"id": "\U0001f3a5" * 255}, 200),
    "an id without a character": ({"id": ""}, {"id"}),
    "an id with a NUL": ({"id": NUL}, {"id"}),
    "an id that is odd": ({"id": ODD_TEXTS["control characters"]}, 200),
    "an id that is a number": ({"id": 7}, {"id"}),
    "no id": ({"id": None}, 200),
    "a protocol of 255": ({"protocol": "x" * 255}, 200),
    "a protocol of 256": ({"protocol": "x" * 256}, {"protocol"}),
    "a protocol with a NUL": ({"protocol": NUL}, {"protocol"}),
    "a protocol that is null": ({"protocol": None}, {"protocol"}),
    "an action with a NUL": ({"action": NUL}, 401),
    "a long action": ({"action": "x" * 60_000}, 401),
    "no action": ({"action": None}, {"action"}),
    "a path of 255": ({"path": "x" * 255}, 200),
    "a path of 256": ({"path": "x" * 256}, 401),
    "a long path": ({"path": "x" * 60_000}, 401),
    "a path with a NUL": ({"path": NUL}, 401),
    "an empty path": ({"path": ""}, 401),
    "a path that is a list": ({"path": []}, {"path"}),
    # what only tells is cut to what can be stored,
    "a long address": ({"ip": "1" * 60_000}, 200),
    "an address with a NUL": ({"ip": NUL}, {"ip"}),
    "an address that is a number": ({"ip": 1}, {"ip"}),
    "a long user agent": ({"userAgent": "x" * 60_000}, 200),
    "a user agent with a NUL": ({"userAgent": NUL}, 200),
    "a user agent that is odd": ({"userAgent": ODD_TEXTS["control characters"]}, 200),
    # and a key is hashed, whatever it is.
    "a key with a NUL": ({"password": NUL}, 401),
    "a long key": ({"password": "sk_" + "x" * 60_000}, 401),
    "a key that is odd": ({"password": "\U0001f3a5\ufffe"}, 401),
    "a long user": ({"user": "x" * 60_000}, 200),
    "a user with a NUL": ({"user": NUL}, 200),
    "a long query": ({"query": "x" * 60_000}, 200),
    "a query with a NUL": ({"query": "key=%00" + NUL}, 200),
    "a query of surrogates": ({"query": "key=%ED%A0%80%FF&%FF=%FF&&&=&%"}, 200),
    "a long token": ({"token": "x" * 60_000}, 200),
}


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize(("given", "expected"), QUESTION.values(), ids=QUESTION.keys())
def test_questions(given, expected, media_server, make_key, conn):
    key = make_key()
    before = state(conn)
    answer = media_server.ask(key, **given)
    if isinstance(expected, set):
        assert fields(answer) == expected
    else:
        assert answer.status_code == expected, answer.text
    if expected != 200 or given.get("id", "x") is None:
        assert state(conn) == before
        return
    (stream,) = rows(conn, "SELECT * FROM streams")
    for name, column in (("id", "auth_id"), ("protocol", "protocol"), ("path", "path")):
        if name in given:
            assert stream[column] == given[name]
    if "ip" in given:
        assert stream["remote_address"] == given["ip"][:255]
    if "userAgent" in given:
        assert stream["user_agent"] == given["userAgent"].replace("\x00", "")[:512]


@pytest.mark.usefixtures("lane")
def test_questions_of_a_reader(media_server, subtests):
    """Nothing of them is stored, so only what cannot be read at all is refused."""
    for name, (given, expected) in QUESTION.items():
        with subtests.test(name=name):
            answer = media_server.ask("", **{"action": "read"} | given)
            assert answer.status_code in (200, 400, 401)
            if answer.status_code == 400:
                assert fields(answer) == expected


HOOKS: dict[str, tuple[dict[str, Any], Any]] = {
    "a path of 255": ({"path": "x" * 255}, set()),
    "a path of 256": ({"path": "x" * 256}, {"path"}),
    "an empty path": ({"path": ""}, {"path"}),
    "a path with a NUL": ({"path": NUL}, {"path"}),
    "a path that is odd": ({"path": ODD_TEXTS["control characters"]}, set()),
    "a path that is null": ({"path": None}, {"path"}),
    "an id of 255": ({"source_id": "x" * 255}, set()),
    "an id of 256": ({"source_id": "x" * 256}, {"source_id"}),
    "an id with a NUL": ({"source_id": NUL}, {"source_id"}),
    "an id that is a number": ({"source_id": 7}, {"source_id"}),
    "a type of 255": ({"source_type": "x" * 255}, set()),
    "a type of 256": ({"source_type": "x" * 256}, {"source_type"}),
    "a type with a NUL": ({"source_type": NUL}, {"source_type"}),
    "a type that is null": ({"source_type": None}, {"source_type"}),
    "all of it wrong": ({"path": NUL, "source_type": NUL, "source_id": NUL}, {"path", "source_type", "source_id"}),
}


@pytest.mark.parametrize(("given", "expected"), HOOKS.values(), ids=HOOKS.keys())
@pytest.mark.parametrize("hook", ["ready", "not-ready"])
def test_hooks(given, expected, hook, media_server, make_key, conn):
    connection_id = given.get("source_id") or str(uuid.uuid4())
    if expected == set() and "path" not in given:
        media_server.ask(make_key(), id=connection_id)
    before = state(conn)
    body = {"path": "live/cam7", "source_type": "rtmpConn", "source_id": connection_id} | given
    answer = media_server.client.post(f"/webhook/{hook}", json=body)
    if expected:
        assert fields(answer) == expected
        assert state(conn) == before
    else:
        assert answer.status_code in (204, 404)
        for stream in rows(conn, "SELECT * FROM streams WHERE started_at IS NOT NULL"):
            assert (stream["source_id"], stream["source_type"]) == (body["source_id"], body["source_type"])


# --- query parameters ---

WILD = ["%00", "%ED%A0%80", "%FF", "a%00b", "%0D%0A", "%F0%9F%8E%A5", "x" * 3000, "%E2%80%AE", "'", "%25s", "1=1;--"]
OF_UUIDS = ("broadcaster_id", "stream_key_id")
LISTS = {
    "/broadcasters": ("limit", "cursor"),
    "/stream-keys": ("broadcaster_id", "status", "limit", "cursor"),
    "/streams?status=all": (*OF_UUIDS, "path", "end_reason", "protocol", "node", "since", "until", "limit", "cursor"),
    "/streams": (*OF_UUIDS, "path", "end_reason", "protocol", "node", "since", "until", "status"),
}


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in LISTS.items() for name in names])
def test_wild_parameters(path, name, api, subtests):
    for value in WILD:
        with subtests.test(value=value):
            answer = api.get(f"{path}{'&' if '?' in path else '?'}{name}={value}")
            if name in ("path", "protocol", "node") and "%00" not in value:
                assert (answer.status_code, answer.json["count"]) == (200, 0)
            else:
                assert fields(answer) == {name}


def test_wild_names_of_parameters(api, media_server, subtests):
    for value in WILD:
        with subtests.test(value=value):
            assert api.get(f"/streams?{value}=1&{value}").status_code == 200
            assert api.get(f"/streams?status=all&{value}=1&=&&;").status_code == 200
            assert media_server.client.post(f"/auth?{value}=1&&", json={"action": "read"}).status_code == 200
            assert media_server.client.post(f"/auth?node={value}", json={"action": "read"}).status_code == 401
            assert media_server.client.post(f"/webhook/ready?node={value}", json={"path": "a"}).status_code == 401


WHOLE = {
    "0": (False, True),
    "1": (True, True),
    "1000": (True, True),
    "0001": (True, True),
    "1001": (False, True),
    "86400": (False, True),
    "86401": (False, False),
    "-1": (False, False),
    "%2B1": (False, False),
    "1.0": (False, False),
    "1e2": (False, False),
    "%201": (False, False),
    "1_0": (False, False),
    "0x10": (False, False),
    "%D9%A1": (False, False),  # an Arabic digit
    "%C2%B2": (False, False),  # ²
    "true": (False, False),
    "NaN": (False, False),
    "9223372036854775808": (False, False),
    "1" * 3000: (False, False),
}


def test_whole_numbers(api, make_key, media_server, conn, subtests):
    media_server.go_live(make_key())
    (stream,) = rows(conn, "SELECT id FROM streams")
    for text, (limit, hold) in WHOLE.items():
        with subtests.test(text=text):
            for path in ("/broadcasters?", "/stream-keys?", "/streams?status=all&"):
                answer = api.get(f"{path}limit={text}")
                assert answer.status_code == 200 if limit else fields(answer) == {"limit"}
            before = state(conn)
            answer = api.delete(f"/streams/{stream['id']}?hold_seconds={text}")
            if hold:
                assert answer.status_code == 204
            else:
                assert fields(answer) == {"hold_seconds"}
                assert state(conn) == before


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("path", ["/streams?status=all", "/streams?status=active"])
def test_moments_as_parameters(path, name, api, subtests):
    for text, expected in MOMENTS.items():
        with subtests.test(text=text):
            answer = api.get(f"{path}&{name}={quote(text)}")
            if expected is REFUSED and text:
                assert fields(answer) == {name}
            else:
                assert answer.status_code == 200


def cursor(*members: object, raw: bytes | None = None) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(members) if raw is None else raw).decode().rstrip("=")


NIL = str(uuid.UUID(int=0))
CURSORS = {
    "nothing of base64": "%2B%2F%20",
    "no JSON": cursor(raw=b"x"),
    "no list": cursor(raw=b"{}"),
    "too few members": cursor("2026-01-31T12:00:00Z", NIL),
    "members of other types": cursor(1, 2, 3),
    "no moment": cursor("now", NIL, "0"),
    "a moment without an offset": cursor("2026-01-31T12:00:00", NIL, "0"),
    "a moment of the year 0": cursor("0001-01-01T00:00:00+14:00", NIL, "0"),
    "a moment of the year 10000": cursor("9999-12-31T23:59:59-14:00", NIL, "0"),
    "no id": cursor("2026-01-31T12:00:00Z", "x", "0"),
    "an id in braces": cursor("2026-01-31T12:00:00Z", "{" + NIL + "}", "0"),
    "an id as a name": cursor("2026-01-31T12:00:00Z", f"urn:uuid:{NIL}", "0"),
    "a NUL": cursor("2026-01-31T12:00:00Z", NIL, "\x00"),
    "no UTF-8": cursor(raw=b'["\xff", "", ""]'),
    "very deep": cursor(raw=b"[" * 2000),
    "very long": cursor("2026-01-31T12:00:00Z", NIL, "x" * 2000),
}


@pytest.mark.parametrize("path", ["/broadcasters?", "/stream-keys?", "/streams?status=all&"])
def test_cursors_that_were_not_given(path, api, subtests):
    for name, text in CURSORS.items():
        with subtests.test(name=name):
            assert fields(api.get(f"{path}cursor={text}")) == {"cursor"}


@pytest.mark.parametrize(("path", "make"), [("/broadcasters", 0), ("/stream-keys", 1)])
def test_a_cursor_that_was_changed_by_hand(path, make, api, make_broadcaster, make_key):
    """Whoever makes one that looks right may go where he likes; nothing that PostgreSQL cannot read gets there."""
    for _ in range(2):
        (make_key if make else make_broadcaster)()
    given = api.get(f"{path}?limit=1").json["next_cursor"]
    bound_to = msgspec.json.decode(base64.urlsafe_b64decode(given + "=" * (-len(given) % 4)))[2]
    for moment, expected in MOMENTS.items():
        answer = api.get(f"{path}?cursor={cursor(moment, NIL, bound_to)}")
        assert fields(answer) == {"cursor"} if expected is REFUSED else answer.status_code == 200, moment
    for text in NO_IDS:
        answer = api.get(f"{path}?cursor={cursor('2026-01-31T12:00:00Z', str(json.loads(text)), bound_to)}")
        assert fields(answer) == {"cursor"}, text


# --- headers ---


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize(
    "value", ["", "\xff", "*, \xff", '"' * 3900, "W/" * 1900, ", " * 1900, '"a' * 1900, "\\" * 3900]
)
def test_wild_etags(value, api):
    answer = api.get("/streams", headers={"If-None-Match": value})
    assert answer.status_code in (200, 304)


@pytest.mark.usefixtures("lane")
@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer \xff\xfe"},
        {"Authorization": "Bearer " + "x" * 7000},
        {"Authorization": "Basic \xff"},
        {"Authorization": "Basic " + "=" * 999},
        {"Authorization": "Digest username=x"},
        {"Authorization": "\x7f"},
        {"X-API-Key": "\xff" * 999},
        {"X-API-Key": "x", "X-Signature": "\xff", "X-Timestamp": "0"},
        {"X-API-Key": "x", "X-Signature": "", "X-Timestamp": ""},
        {"X-API-Key": "x", "X-Signature": "0", "X-Timestamp": "9" * 5000},
        {"X-API-Key": "x", "X-Signature": "0", "X-Timestamp": "1e9"},
        {"X-API-Key": "x", "X-Signature": "0", "X-Timestamp": "NaN"},
        {"X-API-Key": "x", "X-Signature": "0", "X-Timestamp": "\xb2"},
        {"X-API-Key": "x", "X-Signature": "0", "X-Timestamp": "-" + "9" * 400},
    ],
)
def test_wild_credentials(headers, client):
    assert client.get("/streams", headers=headers).status_code == 401
    assert client.post("/broadcasters", headers=headers, json={}).status_code == 401


@pytest.mark.parametrize(
    "content_type", ["", "application/json; charset=\xff", "application/json;" * 99, "a/b+json", "APPLICATION/JSON"]
)
def test_content_types_that_may_be_json(content_type, api):
    answer = api.post("/broadcasters", data=b'{"display_name": "x"}', headers={"Content-Type": content_type})
    assert answer.status_code == 201


@pytest.mark.parametrize("content_type", ["text/plain", "\xff", "application/json2", ";", "json", "x" * 3000])
def test_content_types_that_are_not(content_type, api):
    answer = api.post("/broadcasters", data=b'{"display_name": "x"}', headers={"Content-Type": content_type})
    assert answer.status_code == 415


# --- and so the README has them ---


def most(kind: type[msgspec.Struct], field: str) -> int:
    """The longest text that a member of a body may be."""
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"][field]
    found: int = next(each["maxLength"] for each in (schema, *schema.get("anyOf", ())) if "maxLength" in each)
    return found


def test_the_readme_has_the_limits_of_the_code():
    text = (Path(__file__).parents[1] / "README.rst").read_text(encoding="utf-8")
    table = text[text.index("\nLimits\n") : text.index("\nSettings\n")]
    http = Config()
    names = (
        (broadcasters.NewBroadcaster, "display_name"),
        (stream_keys.NewStreamKey, "label"),
        (api_clients.NewAPIClient, "name"),
    )
    claimed = (auth.Question, "id"), (auth.Question, "protocol")
    for row in (
        rf"body +{MAX_BODY_BYTES:,} bytes",
        rf"request line +{http.limit_request_line:,} bytes",
        rf"one header, all headers +{http.limit_request_field_size:,} bytes, {http.limit_request_fields} headers",
        *(rf"``display_name``, ``label``, ``name`` +{most(*each)}\n" for each in names),
        rf"``path`` of a key, of a publisher, of a hook +{paths._MAX_LENGTH} ",
        rf"``recording_ref`` +{most(streams.StreamChanges, 'recording_ref')}\n",
        rf"``metadata`` +{blueprints._MAX_METADATA_BYTES:,} bytes as compact JSON, {blueprints._MAX_METADATA_DEPTH} ",
        rf"an exponent +from {blueprints._SMALL:g} to {re.escape(f'{blueprints._LARGE:g}')}",
        *(rf"``id`` and ``protocol`` of a publisher +{most(*each)}\n" for each in claimed),
    ):
        assert re.search(row, table), row

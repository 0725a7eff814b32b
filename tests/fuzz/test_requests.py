"""What stands around a body: paths, query parameters, cursors, credentials, signatures, other headers."""

import base64
import json
import time
import uuid
from urllib.parse import quote, unquote

from hypothesis import given
from hypothesis import strategies as st

from streamorch import keys, signing
from streamorch.exchange import Request
from tests.conftest import API_SECRET
from tests.fuzz import KEY, TEXTS, budget, changed, written

BEARER = {"Authorization": f"Bearer {API_SECRET}"}
CALLBACK = {"Authorization": "Bearer callback"}
METHODS = st.sampled_from(["GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "PUT", "TRACE", "BREW"])
READING = st.sampled_from(["GET", "HEAD", "OPTIONS"])
# As they stand in a URL; the client of these tests hands them on undecoded.
WORDS = st.sampled_from(
    [
        "streams",
        "stream-keys",
        "broadcasters",
        "nodes",
        "auth",
        "webhook",
        "ready",
        "errors",
        "livez",
        "health",
        "too-large",
    ]
)
PIECES = st.one_of(
    WORDS,
    st.uuids().map(str),
    st.sampled_from(
        ["", ".", "..", "%2e%2e", "%2F", "%00", "%FF", "%ED%A0%80", "%", "%zz", ";", "*", "a%20b", "//", KEY]
    ),
    TEXTS.map(lambda text: quote(text.encode("utf-8", "surrogatepass"))),
)
PATHS = st.lists(PIECES, max_size=4).map(lambda pieces: "/" + "/".join(pieces))
DESCRIBED = {200, 204, 400, 401, 404, 405, 409, 415}


@budget(300)
@given(METHODS, PATHS, st.booleans())
def test_paths(subject, method, path, is_known):
    raw = unquote(path, encoding="latin-1")
    subject.ask(
        method,
        "/x",
        statuses=DESCRIBED | {201},
        headers=BEARER if is_known else {},
        environ_overrides={"PATH_INFO": raw, "REQUEST_URI": path, "RAW_URI": path},
    )


NAMES = st.sampled_from(
    ["status", "limit", "cursor", "since", "until", "path", "node", "protocol", "end_reason", "broadcaster_id", "x"]
)
MOMENTS = [
    "2026-01-31T12:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-01-31 12:00:00+23:59",
]
PARAMETERS = st.one_of(
    st.sampled_from(
        ["all", "active", "ended", "pending", "revoked", "1000", "1001", "-1", "1e3", "default", "rtmp", *MOMENTS]
    ),
    st.uuids().map(str),
    TEXTS,
)


@budget(400)
@given(
    st.sampled_from(["/streams", "/stream-keys", "/broadcasters"]), st.lists(st.tuples(NAMES, PARAMETERS), max_size=4)
)
def test_parameters(subject, path, pairs):
    query = "&".join(f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}" for name, value in pairs)
    subject.ask("GET", path, statuses={200, 400}, query_string=query, headers=BEARER)


@budget(200)
@given(st.binary(max_size=60))
def test_queries_of_any_bytes(subject, raw):
    query = quote(raw, safe="%&=+;?/")
    for path in ("/streams", "/broadcasters"):
        subject.ask("GET", path, statuses={200, 400}, query_string=query, headers=BEARER)
    subject.ask("POST", "/auth", statuses={200, 401}, query_string=query, headers=CALLBACK, json={"action": "read"})


@budget(200)
@given(st.data())
def test_cursors(subject, data):
    """One that was given, with something else in it."""
    given_cursor = subject.client.get("/broadcasters?limit=1", headers=BEARER).json["next_cursor"] or made_cursor()
    members = json.loads(base64.urlsafe_b64decode(given_cursor + "=" * (-len(given_cursor) % 4)))
    raw = data.draw(changed(members).flatmap(written))
    text = data.draw(st.sampled_from([base64.urlsafe_b64encode, base64.b64encode]))(raw).decode()
    text = data.draw(st.sampled_from([text, text.rstrip("="), text[:-1], text + "=", " " + text]))
    subject.ask("GET", "/broadcasters", statuses={200, 400}, query_string={"cursor": text}, headers=BEARER)
    subject.ask("GET", "/streams", statuses={200, 400}, query_string={"cursor": text, "status": "all"}, headers=BEARER)


def made_cursor() -> str:
    raw = json.dumps(["2026-01-31T12:00:00.000000Z", str(uuid.uuid4()), "a3830e9b"]).encode()
    return base64.urlsafe_b64encode(raw).decode()


LATIN = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40)
CREDENTIALS = st.one_of(
    LATIN,
    st.builds(
        lambda scheme, space, value: scheme + space + value,
        st.sampled_from(["Bearer", "bearer", "BASIC", "Basic", "Digest", "Bearer,", ""]),
        st.sampled_from([" ", "  ", "\t", ""]),
        st.sampled_from(
            ["callback", API_SECRET, KEY, "Og==", "x", "=", "=" * 50, "\xff", "bWVkaWFtdHg6Y2FsbGJhY2s", "//8="]
        )
        | LATIN,
    ),
)


@budget(300)
@given(CREDENTIALS)
def test_credentials(subject, value):
    is_right = (
        value.split(None, 1)[:1] and value.split(None, 1)[0].lower() == "bearer" and value.strip().endswith(API_SECRET)
    )
    answer = subject.ask("GET", "/streams", statuses={200, 401}, headers={"Authorization": value})
    assert answer.status_code == 401 or is_right
    answer = subject.ask("GET", "/nodes", statuses={200, 401}, headers={"X-API-Key": value})
    assert answer.status_code == 401 or value == API_SECRET
    answer = subject.ask(
        "POST", "/auth", statuses={200, 401}, headers={"Authorization": value}, json={"action": "read"}
    )
    assert answer.status_code == 401 or "callback" in value


@budget(300)
@given(
    signature=LATIN | st.sampled_from(["right", "RIGHT", "right "]),
    timestamp=LATIN | st.integers(-400, 400) | st.sampled_from(["-0", "1e9", "1_0", "\xb2", "9" * 5000, " 12 "]),
    name=LATIN,
    path=PATHS,
)
def test_signatures(subject, signature, timestamp, name, path):
    when = str(int(time.time()) + timestamp) if isinstance(timestamp, int) else timestamp
    raw = unquote(path, encoding="latin-1")
    asked_path = Request({"PATH_INFO": raw}).path
    right = signing.signature(API_SECRET, method="GET", path=asked_path, timestamp=when.strip(), body=b"")
    given_signature = {"right": right, "RIGHT": right.upper(), "right ": right + " "}.get(signature, signature)
    answer = subject.ask(
        "GET",
        "/x",
        statuses=DESCRIBED,
        headers={"X-API-Key": name, "X-Timestamp": when, "X-Signature": given_signature},
        environ_overrides={"PATH_INFO": raw},
    )
    if answer.status_code in (200, 400) and not raw.lstrip("/").startswith(
        ("livez", "readyz", "health", "errors", "auth")
    ):
        assert given_signature.strip().lower() == right


TAGS = st.lists(st.sampled_from(['"', "W/", "*", ",", " ", "a", '"x"', "\\", "\xff", 'W/"x"', "w/*"]), max_size=30).map(
    "".join
)


@budget(300)
@given(
    TAGS,
    st.one_of(LATIN, st.sampled_from([KEY, f"a/{KEY}", "x" * 128, "x" * 129])),
    st.dictionaries(st.sampled_from(["For", "Proto", "Host", "Prefix", "Port"]), LATIN, max_size=5),
    LATIN,
)
def test_other_headers(subject, tags, request_id, forwarded, host):
    headers = BEARER | {"If-None-Match": tags, "X-Request-ID": request_id, "Origin": host}
    headers |= {f"X-Forwarded-{name}": value for name, value in forwarded.items()}
    for path in ("/streams", "/broadcasters", "/nowhere"):
        answer = subject.ask(
            "GET", path, statuses={200, 304, 400, 404}, headers=headers, environ_overrides={"HTTP_HOST": host}
        )
        told = answer.headers["X-Request-ID"]
        assert KEY not in told
        assert told == request_id.strip() or len(told) == 32


# --- keys in texts ---

FORMS = st.from_regex(r"sk_[A-Za-z0-9_-]{32,60}", fullmatch=True)
SEPARATED = st.lists(
    st.one_of(FORMS, TEXTS, st.sampled_from(["sk_", "sk_[redacted]", "_", "-", "s", "sk_sk_"])), max_size=6
)


@budget(300)
@given(SEPARATED.map("".join))
def test_nothing_of_a_key_is_left(text):
    redacted = keys.redact(text)
    assert not keys.has_form(redacted)
    assert keys.redact(redacted) == redacted


@budget(500)
@given(
    TEXTS, TEXTS, st.lists(st.tuples(st.sampled_from(["key", "pass", "token", "jwt", "x", "", KEY]), TEXTS), max_size=5)
)
def test_whatever_is_presented_is_a_text_or_nothing(password, token, pairs):
    for query in ("&".join(f"{name}={value}" for name, value in pairs), "&".join(quote(value) for _, value in pairs)):
        found = keys.presented(password, token, query)
        assert found is None or (isinstance(found, str) and found)
        if found:
            assert len(keys.digest(found)) == 32

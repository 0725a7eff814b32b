"""The credentials of callers, compared without telling how much was right."""

import base64
import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamorch import signing

NOW = 1_700_000_000.5


def test_any_secret_of_the_list_matches():
    assert signing.matches("b", ["a", "b", "c"])
    assert not signing.matches("d", ["a", "b", "c"])
    assert not signing.matches("a", [])
    assert not signing.matches("", ["a"])


@given(st.text(), st.text(st.characters(codec="utf-8")))
def test_a_secret_matches_itself_alone(given_text, secret):
    assert signing.matches(given_text, [secret]) == (given_text == secret)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Bearer x", "x"),
        ("bearer   x y  ", "x y"),
        ("BEARER x", "x"),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic x", None),
        ("", None),
        ("Bearerx", None),
    ],
)
def test_a_bearer_is_read(header, value):
    assert signing.bearer(header) == value


def encoded(text):
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (encoded(b"user:pass"), "pass"),
        (encoded(b":pass"), "pass"),
        (encoded(b"u:p:q"), "p:q"),
        (encoded("u:pä".encode()), "pä"),
        (encoded(b"u:"), ""),
        (encoded(b"nothing"), ""),
        (encoded(b"u:p").replace("Basic", "basic"), "p"),
        (encoded(b"\xff:p"), None),
        ("Basic ?", None),
        ("Basic dTpwX", None),
        ("Basic", ""),
        ("Bearer x", None),
        ("", None),
    ],
)
def test_the_password_of_basic_is_read(header, value):
    assert signing.basic_password(header) == value


@given(st.text())
def test_any_authorization_is_read(header):
    signing.bearer(header)
    signing.basic_password(header)
    signing.basic_password(f"Basic {header}")


def test_a_signature_is_that_of_the_go_service():
    message = b"POST\n/streams/a b\n1700000000\n" + b'{"a":"\xff"}'
    expected = hmac.new(b"secret", message, hashlib.sha256).hexdigest()
    made = signing.signature("secret", method="POST", path="/streams/a b", timestamp="1700000000", body=b'{"a":"\xff"}')
    assert made == expected
    # And one that openssl made: printf 'GET\n/streams\n1700000000\n' | openssl dgst -sha256 -hmac s
    assert signing.signature("s", method="GET", path="/streams", timestamp="1700000000", body=b"") == (
        "67551da1d3b20399d25868ad2cf8baedba8e6040e97661ee0f59330d2f7ce1fd"
    )


def refusal(given=None, **changed):
    told: dict[str, Any] = {
        "api_key": "name",
        "method": "GET",
        "path": "/streams",
        "timestamp": "1700000000",
        "body": b"",
        "now": NOW,
    }
    signed = {name: told[name] for name in ("method", "path", "timestamp", "body")}
    return signing.signature_refusal(
        ["new", "old"], given=given or signing.signature("old", **signed), **told | changed
    )


def test_a_right_signature_is_taken():
    assert refusal() is None
    assert refusal(api_key="anything") is None
    assert refusal(timestamp=" +1700000000 ") is None


@pytest.mark.parametrize("drift", [-300, 0, 299, 300])
def test_a_clock_may_differ_by_five_minutes(drift):
    assert refusal(now=1_700_000_000 + drift) is None


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"api_key": ""}, "X-API-Key"),
        ({"timestamp": ""}, "integer"),
        ({"timestamp": "1.7e9"}, "integer"),
        ({"timestamp": "now"}, "integer"),
        ({"now": 1_700_000_301.0}, "300 s"),
        ({"now": 1_699_999_699.0}, "300 s"),
        ({"timestamp": "9" * 400}, "300 s"),
        ({"timestamp": "9" * 5000}, "integer"),
        ({"method": "POST"}, "does not match"),
        ({"path": "/"}, "does not match"),
        ({"body": b"x"}, "does not match"),
        ({"timestamp": "1700000001"}, "does not match"),
        ({"given": "x"}, "does not match"),
        ({"given": "ü"}, "does not match"),
    ],
)
def test_a_wrong_one_is_refused_with_the_reason(changed, word):
    assert word in (refusal(**changed) or "")


@given(st.text(), st.text(), st.text())
def test_any_header_is_judged(given_text, api_key, timestamp):
    assert refusal(given=given_text or "x", api_key=api_key, timestamp=timestamp)


def test_the_password_for_the_control_api_is_derived_and_tells_nothing():
    first, second = signing.media_server_password("a"), signing.media_server_password("b")
    assert first != second
    assert first == signing.media_server_password("a")
    assert len(first) == 64

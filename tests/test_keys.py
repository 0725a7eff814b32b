"""Stream keys as text: minted, hashed, found in what a client typed, and blotted out."""

import hashlib
import re
import string
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamorch import keys

# rescuestream-api's keys were base64url, so - and _ are of the form too. `sc_`: the secrets of API clients.
OF_THE_FORM = st.from_regex(r"s[ck]_[A-Za-z0-9_-]{32,64}", fullmatch=True)
KEYS = OF_THE_FORM.filter(lambda text: text.startswith("sk_"))
# What may stand around a key without being part of it.
AROUND = st.text(st.characters(exclude_characters=string.ascii_letters + string.digits + "_-"), max_size=30)


def test_a_minted_key_is_of_the_form_and_never_the_same():
    minted = {keys.mint() for _ in range(100)}
    assert len(minted) == 100
    assert all(re.fullmatch(r"sk_[A-Za-z0-9]{43}", value) for value in minted)
    assert all(quote(value, safe="") == value for value in minted)


def test_the_secret_of_a_client_is_told_from_a_key():
    made = {keys.mint_client_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"sc_[A-Za-z0-9]{43}", value) for value in made)
    assert all(map(keys.is_client_secret, made))
    others = [keys.mint(), "", "sc_", "sc_" + "x" * 42, "sc_" + "x" * 44, "sc_" + "x" * 42 + "-", " sc_" + "x" * 43]
    assert not any(map(keys.is_client_secret, others))


def test_a_digest_is_the_sha256():
    assert keys.digest("sk_ü") == hashlib.sha256("sk_ü".encode()).digest()
    assert len(keys.digest("\udc00")) == 32  # whatever was typed


def test_a_hint_is_the_last_four_characters():
    assert [keys.hint(value) for value in ("sk_abcdef", "abc", "")] == ["cdef", "abc", ""]


@given(key=OF_THE_FORM, before=AROUND, after=AROUND)
def test_a_key_is_seen_and_blotted_out_wherever_it_stands(key, before, after):
    text = before + key + after
    assert keys.has_form(text)
    assert keys.redact(text) == f"{before}{key[:3]}[redacted]{after}"
    assert not keys.has_form(keys.redact(text))


@given(st.lists(OF_THE_FORM, max_size=3), st.text(max_size=20))
def test_nothing_of_several_keys_is_left(found, separator):
    text = separator.join(found)
    assert not keys.has_form(keys.redact(text))
    assert keys.redact(keys.redact(text)) == keys.redact(text)


@given(st.text())
def test_a_text_without_a_key_stays_as_it_is(text):
    assert keys.has_form(text) or keys.redact(text) == text


@pytest.mark.parametrize(
    "text", ["", "sk_", "sk_" + "x" * 31, "SK_" + "x" * 43, "sk-" + "x" * 43, "sk_" + "x" * 20 + "." * 30]
)
def test_what_only_resembles_a_key_is_none(text):
    assert not keys.has_form(text)


# --- what was presented, by precedence ---


@given(st.text(), st.text(), st.text())
def test_a_password_counts_before_a_token_and_that_before_the_query(password, token, query):
    assert keys.presented(password, token, query) == (password or token or keys.presented("", "", query))


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_any_query_is_read(query):
    found = keys.presented("", "", query)
    assert found is None or found


NAMES = ("key", "pass", "token", "jwt")


@given(
    st.dictionaries(st.sampled_from(NAMES), st.text(st.characters(codec="utf-8"), min_size=1), min_size=1), st.randoms()
)
def test_of_the_names_in_a_query_the_first_by_rank_counts(members, random):
    pairs = [("x", "1"), *members.items(), ("user", "cam7")]
    random.shuffle(pairs)
    expected = next(members[name] for name in NAMES if name in members)
    assert keys.presented("", "", urlencode(pairs)) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", None),
        ("x=1", None),
        ("key", None),
        ("key=", None),
        ("KEY=a", None),
        ("key=a&key=b", "a"),
        ("key=&key=b", "b"),
        ("key=a%20b+c", "a b c"),
        ("?key=a", None),
        ("a=b=c&pass=d=e", "d=e"),
        ("&".join(["x=1"] * 5000) + "&jwt=a", "a"),
        ("sk_" + "x" * 43, "sk_" + "x" * 43),
        ("sk_" + "x" * 43 + "&a=b", None),
        ("sc_" + "x" * 43, None),
        ("x sk_" + "x" * 43, None),
        ("not of a key's form", None),
    ],
)
def test_a_query_may_hold_a_key(query, expected):
    assert keys.presented("", "", query) == expected


@given(KEYS)
def test_a_query_that_is_a_key_is_the_key(key):
    assert keys.presented("", "", key) == key

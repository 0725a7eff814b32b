"""Stream keys and the secrets of API clients as text: mint, hash, hint, and where one hides in what a client typed.

Pure: no HTTP, no SQL. The value of a key or a secret exists here and in the 201 that made it, nowhere else.
"""

import hashlib
import re
import secrets
import string
from urllib.parse import parse_qsl

# `sk_` and 43 letters or digits, 256 bits: no character that RTMP, SRT, a shell or a URL treats
# specially (mediamtx.md 1.4). rescuestream-api used base64url, so `-` and `_` are of the form too.
_ALPHABET = string.ascii_letters + string.digits
_KEY = re.compile(r"sk_[A-Za-z0-9_-]{32,}")
# The secret of an API client begins with `sc_`, and nobody else made any.
_CLIENT_SECRET = re.compile(r"sc_[A-Za-z0-9]{43}")
FORM = re.compile(r"(s[ck]_)[A-Za-z0-9_-]{32,}")
_QUERY_NAMES = ("key", "pass", "token", "jwt")


def mint() -> str:
    """A new key value."""
    return "sk_" + _random()


def mint_client_secret() -> str:
    """A new secret of an API client."""
    return "sc_" + _random()


def _random() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(43))


def is_client_secret(text: str) -> bool:
    """Is this of the form of an API client's secret, the whole of it?"""
    return _CLIENT_SECRET.fullmatch(text) is not None


def digest(value: str) -> bytes:
    """What is stored of a key or a secret: SHA-256, 32 bytes. (A 256-bit random value needs no slow hash.)"""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def hint(value: str) -> str:
    """The last four characters: enough to tell two keys apart on the phone."""
    return value[-4:]


def presented(password: str, token: str, query: str) -> str | None:
    """The key that a publisher presented, or None when it presented nothing.

    By precedence: password, token, then key/pass/token/jwt of the query string, then the query itself
    when the whole of it has a key's form (SRT `publish:PATH:KEY`, recorded in v1.20.1).
    """
    if password:
        return password
    if token:
        return token
    if not query:
        return None
    if _KEY.fullmatch(query):
        return query
    given = dict(reversed(parse_qsl(query)))  # the first of a name counts
    return next((given[name] for name in _QUERY_NAMES if name in given), None)


def has_form(text: str) -> bool:
    """Does some part of this text look like a key or a client's secret?"""
    return FORM.search(text) is not None


def redact(text: str) -> str:
    """The text with everything of the form of a key or a client's secret blotted out: for logs, problems and traces."""
    return FORM.sub(r"\1[redacted]", text)

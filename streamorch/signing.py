"""The credentials of API callers and of MediaMTX itself, compared in constant time. Pure."""

import base64
import hashlib
import hmac
from collections.abc import Iterable

_MAX_DRIFT_SECONDS = 300


def matches(given: str, secrets: Iterable[str]) -> bool:
    """Is this one of the secrets? Every one is compared, in constant time."""
    presented = given.encode("utf-8", "surrogatepass")
    found = False
    for secret in secrets:
        found |= hmac.compare_digest(presented, secret.encode())
    return found


def bearer(authorization: str) -> str | None:
    """The credential of an `Authorization: Bearer ...` header; None for any other scheme."""
    scheme, _, value = authorization.partition(" ")
    return value.strip() if scheme.lower() == "bearer" and value.strip() else None


def basic_password(authorization: str) -> str | None:
    """The password of an `Authorization: Basic ...` header; None when there is none or it is garbled."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(value.strip(), validate=True).decode()
    except ValueError:  # no base64, or no UTF-8 in it
        return None
    return decoded.partition(":")[2]


def signature(secret: str, *, method: str, path: str, timestamp: str, body: bytes) -> str:
    """What rescuestream-api's clients send: hex HMAC-SHA256 of METHOD, PATH, TIMESTAMP and BODY, by lines."""
    message = f"{method}\n{path}\n{timestamp}\n".encode() + body
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


def signature_refusal(
    secrets: Iterable[str], *, given: str, api_key: str, method: str, path: str, timestamp: str, body: bytes, now: float
) -> str | None:
    """Why a signed request is refused, as one sentence; None when its signature holds.

    The key's name may be anything (rescuestream-api had one secret for all); `now` is Unix time.
    """
    if not api_key:
        return "X-API-Key is missing"
    try:
        # int() and back: the Go service signed the parsed number, so " 12" and "+12" sign as "12".
        seconds = int(timestamp)
    except ValueError:
        return "X-Timestamp is not an integer"
    if abs(int(now) - seconds) > _MAX_DRIFT_SECONDS:
        return f"X-Timestamp is more than {_MAX_DRIFT_SECONDS} s from this server's clock"
    expected = [signature(secret, method=method, path=path, timestamp=str(seconds), body=body) for secret in secrets]
    return None if matches(given.lower(), expected) else "X-Signature does not match"


def media_server_password(secret: str) -> str:
    """The password with which streamorch calls the Control API, derived from an API secret when none is set."""
    return hmac.new(secret.encode(), b"streamorch: MediaMTX Control API", hashlib.sha256).hexdigest()

"""Who has signed in: a signed cookie, which every worker and instance with the same API secrets can read. Pure.

It holds no secret. It is signed with the API secret by which somebody signed in, so that it ends with that secret; the
session of an API client names the client, which is looked up at every request.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec
from itsdangerous import BadData, URLSafeSerializer

COOKIE = "streamorch_console"

# A shift, and so long without a page open.
WHOLE_SECONDS = 12 * 3600
IDLE_SECONDS = 3600
RENEW_SECONDS = 60
# Of a browser that has the page for signing in open: its own cookie, so that the page touches no open session.
DOOR = "streamorch_console_door"

_Written = tuple[str, int, int, UUID | None]


@dataclass(frozen=True)
class Session:
    """A browser in which somebody has signed in: `client_id` is None for API_SECRET. Moments are Unix time."""

    nonce: str
    begun: float
    seen: float
    client_id: UUID | None
    key: bytes

    @property
    def token(self) -> str:
        """What its forms carry, and no other site knows."""
        return hmac.new(self.key, f"form {self.nonce}".encode(), hashlib.sha256).hexdigest()


def door() -> str:
    """A new value of the cookie DOOR."""
    # Signed with nothing: anybody has one, and could try API secrets on a signature for as long as he likes.
    return secrets.token_urlsafe(32)


def door_token(value: str) -> str:
    """What the form for signing in carries beside this cookie, and no other site knows."""
    return hmac.new(value.encode(), b"streamorch: console door", hashlib.sha256).hexdigest()


def begun(api_secret: str, now: float, *, client_id: UUID | None = None) -> Session:
    """A new session, to be signed with this API secret."""
    return Session(secrets.token_urlsafe(16), now, now, client_id, _key(api_secret))


def written(session: Session) -> str:
    """The session as the value of a cookie."""
    client = None if session.client_id is None else session.client_id.hex
    return str(_serializer(session.key).dumps([session.nonce, int(session.begun), int(session.seen), client]))


def read(api_secrets: Sequence[str], value: str, now: float) -> Session | None:
    """The session of a cookie; None when it is not signed with one of these secrets, or over."""
    for key in map(_key, api_secrets):
        try:
            nonce, begun_at, seen, client = msgspec.convert(_serializer(key).loads(value), _Written)
        except (BadData, msgspec.ValidationError):  # another release may write it otherwise
            continue
        if now - begun_at > WHOLE_SECONDS or now - seen > IDLE_SECONDS:
            return None
        return Session(nonce, begun_at, seen, client, key)
    return None


def _key(api_secret: str) -> bytes:
    return hmac.new(api_secret.encode(), b"streamorch: console session", hashlib.sha256).digest()


def _serializer(key: bytes) -> URLSafeSerializer:
    return URLSafeSerializer(
        key, salt=b"streamorch console", signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256}
    )

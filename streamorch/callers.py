"""Who calls the API, and what each may do: API_SECRET, and the API clients, whose secrets the database knows.

A worker remembers for moments whom it has looked up, so that a frontend that polls costs no statement each time.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, get_args
from uuid import UUID

import psycopg

from streamorch import keys, signing
from streamorch.repositories import Connection, Database, api_clients
from streamorch.repositories.api_clients import Found, Scope

__all__ = ["API_SECRET", "SCOPES", "Caller", "Callers", "Scope", "name_refusal"]

log = logging.getLogger(__name__)

# Each may what those before it may.
SCOPES: tuple[Scope, ...] = get_args(Scope)

# So long after it was revoked or lost a scope a client may still be let in: as long as what a command ends may go on.
# Whoever polls once a second costs a statement of every second question; whoever polls faster, no more than that.
FRESH_SECONDS = 2.0
# Without a database, so long: as the live list is told, which is all that a caller gets then.
KEPT_SECONDS = 30.0
# A database that can be read and not written to is not tried again and again.
_PAUSE_SECONDS = 60.0
# Of very many clients those that were silent longest are looked up again.
_MOST = 1024


@dataclass(frozen=True)
class Caller:
    """Who calls: `name` as the audit trail tells it. `client_id` is None for API_SECRET."""

    name: str
    scope: Scope
    client_id: UUID | None

    def may(self, scope: Scope) -> bool:
        """Does what it may include this?"""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


API_SECRET = Caller("API_SECRET", "admin", None)


def name_refusal(name: str) -> str | None:
    """Why an API client may not be called so; None when it may."""
    return "holds a secret: the name stands in lists and in the audit trail" if keys.has_form(name) else None


class _Known(NamedTuple):
    """Whom a credential belonged to at `seen_at`, and until when at most it does (both monotonic)."""

    caller: Caller
    seen_at: float
    until: float


class Callers:
    """The callers of one worker."""

    def __init__(self, api_secrets: Iterable[str], database: Database):
        self._api_secrets = tuple(api_secrets)
        self._database = database
        self._lock = threading.Lock()
        # By the digest of the secret, or by id. Who is unknown is not kept: guesses would push out the others.
        self._known: OrderedDict[bytes | UUID, _Known] = OrderedDict()
        self._due: set[UUID] = set()
        self._paused_until = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="callers")

    def by_secret(self, secret: str) -> Caller | None:
        """Whose secret this is; None when it is unknown, revoked or expired.

        An OperationalError when that is for the database to say, and it is away. It is not asked about API_SECRET, nor
        about what has not the form of a client's secret.
        """
        if signing.matches(secret, self._api_secrets):
            return API_SECRET
        if not keys.is_client_secret(secret):
            return None
        secret_hash = keys.digest(secret)
        return self._found(secret_hash, partial(api_clients.by_secret, secret_hash=secret_hash))

    def by_id(self, client_id: UUID) -> Caller | None:
        """The API client of this id; None when it is unknown, revoked or expired. An OperationalError as above."""
        return self._found(client_id, partial(api_clients.by_id, client_id=client_id))

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(cancel_futures=True)

    def _found(self, by: bytes | UUID, ask: Callable[[Connection], Found | None]) -> Caller | None:
        # From before the question: what it is told may be as old.
        now = time.monotonic()
        known = self._known.get(by)
        if known is not None and now < known.until and now - known.seen_at < FRESH_SECONDS:
            return known.caller
        try:
            with self._database.connection() as conn:
                found = ask(conn)
        except psycopg.OperationalError:
            if known is None or now >= known.until or now - known.seen_at >= KEPT_SECONDS:
                raise
            return known.caller
        with self._lock:
            self._known.pop(by, None)
            if found is None:
                return None
            # So that nobody calls himself API_SECRET or CLI.
            caller = Caller(f"client:{found.name}", found.scope, found.id)
            until = float("inf") if found.seconds_left is None else now + found.seconds_left
            self._known[by] = _Known(caller, now, until)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
            if found.is_due and found.id not in self._due and now >= self._paused_until:
                self._due.add(found.id)
                with suppress(RuntimeError):  # the worker ends
                    self._thread.submit(self._note_use, found.id)
        return caller

    def _note_use(self, client_id: UUID) -> None:
        """In a thread of its own: no caller waits for it. What is not noted is for a later one to try."""
        try:
            with self._database.connection() as conn:
                api_clients.used(conn, client_id)
        except psycopg.OperationalError:
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
        except Exception:  # nobody looks at the Future, and it would end unseen
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            log.exception("the use of an API client cannot be noted")
        finally:
            with self._lock:
                self._due.discard(client_id)

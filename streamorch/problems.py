"""Every error of the HTTP API: one table as data, and the reply that each error becomes (RFC 9457)."""

import logging
from typing import Annotated, NamedTuple

import msgspec
import psycopg
from werkzeug.exceptions import BadHost, HTTPException, SecurityError

from streamorch import keys
from streamorch.exchange import BrokenBody, Reply, Request

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    """One row of the table: what happened, and what the caller, and the operator, may do about it."""

    status: int
    title: str
    meaning: str
    mend: str
    operator: str


TABLE: dict[str, Kind] = {
    "invalid-request": Kind(
        400,
        "Invalid request",
        "The id, body or a parameter is malformed; `errors` names each field.",
        "Correct what `errors` names.",
        "Nothing, as a rule: the answer says what is wrong. When MediaMTX gets it (`/auth`, hooks), its "
        "configuration is of another form: make it with `streamorch mediamtx-config`.",
    ),
    "unauthorized": Kind(
        401,
        "Unauthorized",
        "No credential was given, or one that is not right.",
        "Send the right credential.",
        "A caller of the API: compare its secret with `API_SECRET`, or with the `hint` of GET /api-clients, which "
        "tells who is revoked or has expired; a signature is made with `API_SECRET` and needs clocks within 300 "
        "seconds of each other. MediaMTX: the log line `callback without the right secret` has the line of "
        "mediamtx.yml that mends it, and `callback of a node that is not configured` names the `?node=`. "
        "Publishers without a key, and readers that `READ_POLICY` refuses, are told with `LOG_LEVEL` debug.",
    ),
    "invalid-stream-key": Kind(
        401,
        "Invalid stream key",
        "No such key.",
        "Ask the operator for a key.",
        "The log line `publish refused` has address and path. Mint a key with POST /stream-keys, and hand out"
        " what `publish` says as it stands.",
    ),
    "stream-key-revoked": Kind(
        401,
        "Stream key revoked",
        "The key was taken back, or a newer value replaced this one.",
        "Ask the operator for a new key.",
        "The log line `publish refused` has the `stream_key_id`; GET /stream-keys/{stream_key_id} tells since"
        " when. It stays revoked: mint another with POST /stream-keys. Where that key is not revoked, what came"
        " was its value before a rotation (`hint` of GET /decisions): hand out the new one.",
    ),
    "stream-key-expired": Kind(
        401,
        "Stream key expired",
        "The key is past its `expires_at`.",
        "Ask the operator to extend it.",
        "PATCH /stream-keys/{stream_key_id} with a later `expires_at`, or with null for a key that does not "
        "expire. The log line `publish refused` has the id.",
    ),
    "stream-key-disabled": Kind(
        401,
        "Stream key disabled",
        "The key is switched off for now.",
        "Ask the operator to enable it.",
        "PATCH /stream-keys/{stream_key_id} with `disabled` false. The log line `publish refused` has the id.",
    ),
    "broadcaster-disabled": Kind(
        401,
        "Broadcaster disabled",
        "The broadcaster of this key is switched off for now.",
        "Ask the operator to enable it.",
        "PATCH /broadcasters/{broadcaster_id} with `disabled` false. The log line `publish refused` has the "
        "`stream_key_id`, and GET /stream-keys/{stream_key_id} the broadcaster.",
    ),
    "path-not-allowed": Kind(
        401,
        "Path not allowed",
        "The key may not publish to this path.",
        "Publish to the path that the key is bound to.",
        "The log line `publish refused` has the path. The key is bound to another one (`path` of GET /stream-"
        "keys/{stream_key_id}; null is any), MediaMTX serves a page of that name itself, or the path holds a "
        "key: it stands in addresses and logs then, so revoke it.",
    ),
    "stream-stopped": Kind(
        401,
        "Stream stopped",
        "An operator stopped the stream; the key is on hold for a while.",
        "Wait, or ask the operator to lift the hold.",
        "`hold_until` of GET /stream-keys/{stream_key_id} tells until when. PATCH it to null to lift the "
        "hold; DELETE /streams/{stream_id}?hold_seconds=0 stops without one.",
    ),
    "stream-key-in-use": Kind(
        409,
        "Stream key in use",
        "A stream of this key is live or about to be (401 on `/auth`).",
        "Stop the other encoder, or stop its stream with DELETE.",
        "The log line `publish refused` has `rival_id`, the stream in the way: look at it with GET "
        "/streams/{stream_id}. DELETE /streams/{stream_id}?hold_seconds=0 makes way. A hot spare wants a key "
        "with `takeover` always. Where GET /nodes does not say `ok` of the Control API, nobody can see that a"
        " rival is gone.",
    ),
    "path-in-use": Kind(
        409,
        "Path in use",
        "Another key holds this path or is live on it (401 on `/auth`).",
        "Use another path.",
        "GET /streams?path= tells whose stream is live there, `path` of GET /stream-keys whose key is bound to it.",
    ),
    "forbidden": Kind(
        403,
        "Forbidden",
        "The credential is right but may not do this.",
        "Use a credential with the needed scope.",
        "An API client whose `scope` is too small: `detail` says which one is needed, GET /api-clients/{api_client_id}"
        " which it has, and PATCH /api-clients/{api_client_id} gives it another.",
    ),
    "not-found": Kind(
        404,
        "Not found",
        "No such resource or route.",
        "Check the id and the URL.",
        "Nothing. Where every address is not found, a proxy in front changes paths: none here ends in a slash.",
    ),
    "stream-not-found": Kind(
        404,
        "Stream not found",
        "A hook named a connection that nobody claimed, or one whose stream has ended.",
        "Nothing: the hook came too late.",
        "One now and then is a late hook. Many of them: a MediaMTX that tells its hooks here and asks "
        "somebody else for `/auth`, or starts that take longer than `LEASE_SECONDS`. The log line `ready` has"
        " path, connection and outcome.",
    ),
    "method-not-allowed": Kind(
        405,
        "Method not allowed",
        "The route does not know this method; `Allow` lists those it knows.",
        "Use one of them.",
        "Nothing. A POST that arrives as a GET went through a redirect of a proxy.",
    ),
    "conflict": Kind(
        409,
        "Conflict",
        "The id is taken, or the state of the resource forbids the change.",
        "Read the resource, then decide.",
        "Nothing. The same id again is a retry whose first answer was lost; a revoked key is not changed any"
        " more, and a value that a rotation has put out does not come back.",
    ),
    "too-large": Kind(
        413,
        "Too large",
        "The body is larger than 64 KiB.",
        "Send less.",
        "Nothing: the limit is fixed. Keep large things elsewhere, and their address in `metadata`.",
    ),
    "unsupported-media-type": Kind(
        415,
        "Unsupported media type",
        "The body is not labelled as JSON.",
        "Send `Content-Type: application/json`.",
        "Nothing. `/auth` and the hooks take any label.",
    ),
    "rate-limited": Kind(
        429,
        "Rate limited",
        "Too many wrong credentials from one address, or too many writes with one.",
        "Wait for `Retry-After` seconds. A right credential is let in at once.",
        "GET /decisions?outcome=rate-limited tells which encoders, by address: they go on and on with a key that does"
        " not exist. `REFUSALS_PER_MINUTE` and `API_WRITES_PER_MINUTE` are the limits, of each worker.",
    ),
    "internal-error": Kind(
        500,
        "Internal error",
        "Something unforeseen; it is in the log under the request id.",
        "Report the `X-Request-ID`.",
        "It is a fault of this service: please report the log line `unforeseen` of that request id, which has"
        " the traceback.",
    ),
    "media-server-unavailable": Kind(
        502,
        "Media server unavailable",
        "MediaMTX did not answer on its Control API.",
        "Try again.",
        "This release does not answer it: what MediaMTX has to do is done when it is back. GET /nodes tells "
        "how its Control API answers, at `MEDIAMTX_API_URL`.",
    ),
    "database-unavailable": Kind(
        503,
        "Database unavailable",
        "PostgreSQL did not answer in time; what was asked may be done all the same.",
        "Ask the same again after `Retry-After` seconds.",
        "The log lines `the database is away` and `the database answers again` frame an outage; `the database"
        " refused` has PostgreSQL's own code and reason (55P03: a row was locked for longer than 300 ms). "
        "Look at GET /readyz, `DATABASE_URL`, and whether PostgreSQL has connections left: an instance takes "
        "25, and two for each worker.",
    ),
}

RETRY_AFTER_SECONDS = 1

_HEADERS = (("Content-Type", "application/problem+json"), ("Cache-Control", "no-store"))
_RETRY_AFTER = (*_HEADERS, ("Retry-After", str(RETRY_AFTER_SECONDS)))
_HEADERS_OF_STATUS = {401: (*_HEADERS, ("WWW-Authenticate", "Bearer")), 429: _RETRY_AFTER, 503: _RETRY_AFTER}

_SLUG_OF_STATUS = {
    400: "invalid-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
    413: "too-large",
    415: "unsupported-media-type",
    429: "rate-limited",
}


class FieldError(msgspec.Struct, frozen=True):
    """One field of the request that is wrong, and why."""

    field: str
    reason: str


class Body(msgspec.Struct, frozen=True):
    """A problem as it is sent (RFC 9457): `detail` tells this case, `type` is the address of a page about all of them.

    A 400 has `errors`, one for each field that is wrong.
    """

    type: Annotated[str, msgspec.Meta(extra_json_schema={"format": "uri-reference"})]
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] | msgspec.UnsetType = msgspec.UNSET


class Problem(Exception):
    """Raised by blueprints to end a request with an entry of TABLE.

    `status` is given only where one slug has two (in-use: 401 on /auth). A detail never holds a secret:
    MediaMTX writes the body of a refusal to its log. `retry_after`: seconds, where the reply tells some.
    """

    def __init__(
        self,
        slug: str,
        detail: str = "",
        *,
        status: int | None = None,
        errors: list[FieldError] | None = None,
        retry_after: int = RETRY_AFTER_SECONDS,
    ):
        super().__init__(slug)
        self.slug = slug
        self.detail = detail
        self.status = status
        self.errors = errors
        self.retry_after = retry_after


def reply(error: Exception, request: Request) -> Reply:
    """The reply to a request that ended with this error, as a problem; what is unforeseen becomes `internal-error`."""
    if isinstance(error, Problem):
        return _of_problem(error, request)
    if isinstance(error, HTTPException):
        return _of_http(error, request)
    if isinstance(error, psycopg.OperationalError):
        return _of_database(error, request)
    if isinstance(error, psycopg.DataError):
        # A value that PostgreSQL cannot store, and that nobody here thought of.
        log.warning(
            "a value was not stored", extra={"sqlstate": error.sqlstate, "path": keys.redact(request.path)[:512]}
        )
        return _of_problem(Problem("invalid-request", "a value is outside what can be stored", errors=[]), request)
    told = {"method": request.method, "path": keys.redact(request.path)[:512]}
    log.error("unforeseen", extra=told, exc_info=error)
    return _of_problem(Problem("internal-error"), request)


def _of_problem(problem: Problem, request: Request) -> Reply:
    """The problem itself, with the headers that its status demands."""
    kind = TABLE[problem.slug]
    status = problem.status or kind.status
    body = Body(
        f"/errors/{problem.slug}",
        kind.title,
        status,
        problem.detail or kind.meaning,
        keys.redact(request.path),
        msgspec.UNSET if problem.errors is None else problem.errors,
    )
    request.problem = problem.slug
    return Reply(status, msgspec.json.encode(body), headers(status, problem.retry_after))


def headers(status: int, retry_after: int = RETRY_AFTER_SECONDS) -> tuple[tuple[str, str], ...]:
    """What a problem of this status carries."""
    found = _HEADERS_OF_STATUS.get(status, _HEADERS)
    if found is _RETRY_AFTER and retry_after != RETRY_AFTER_SECONDS:
        return (*_HEADERS, ("Retry-After", str(retry_after)))
    return found


def _of_http(error: HTTPException, request: Request) -> Reply:
    """404, 405, 413 and the like from the framework, and 500 for anything unforeseen."""
    slug = _SLUG_OF_STATUS.get(error.code or 500)
    if slug is None and (error.code or 500) < 500:
        slug = "invalid-request"
    wrong = (
        "body"
        if isinstance(error, BrokenBody)
        else "Host"
        if isinstance(error, (BadHost, SecurityError))
        else "request"
    )
    errors = [FieldError(wrong, "is malformed, or ends early")] if slug == "invalid-request" else None
    made = _of_problem(Problem(slug or "internal-error", errors=errors), request)
    told = tuple(
        (name, value) for name, value in error.get_headers(request.environ) if name in ("Allow", "Retry-After")
    )
    return made._replace(headers=made.headers + told)


def _of_database(error: psycopg.OperationalError, request: Request) -> Reply:
    """The database is away, too slow, or a lock was not to be had: 503, never a 2xx for work not done."""
    # An outage (no SQLSTATE, 57P01 and the like) is told once by the pool, not once for each caller.
    if error.sqlstate and not error.sqlstate.startswith(("57P", "08")):
        reason = error.diag.message_primary or str(error)
        log.warning("the database refused", extra={"sqlstate": error.sqlstate, "reason": reason})
    return _of_problem(Problem("database-unavailable"), request)

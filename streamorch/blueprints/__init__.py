"""HTTP lives in this room and no SQL does: what all blueprints share.

Reading a request (body, ids, parameters, cursor), guarding it, and answering with JSON.
"""

import base64
import binascii
import datetime
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any, TypeVar, get_type_hints
from uuid import UUID

import flask
import msgspec

from streamorch import contract, keys, mediamtx_config, moments, signing
from streamorch.callers import API_SECRET, Caller, Callers
from streamorch.decisions import Refusals
from streamorch.exchange import Reply, Request
from streamorch.kicks import Kicker
from streamorch.limits import Allowance, source
from streamorch.live import LiveList
from streamorch.look import Looks
from streamorch.mediamtx import ControlAPI
from streamorch.metrics import Metrics
from streamorch.problems import FieldError, Problem
from streamorch.repositories import NODE, Actor, Database
from streamorch.settings import SettingError, Settings
from streamorch.spans import Tracer

log = logging.getLogger(__name__)

Body = TypeVar("Body", bound=msgspec.Struct)
Told = TypeVar("Told", bound=msgspec.Struct)
Asked = TypeVar("Asked", bound=msgspec.Struct)
Item = TypeVar("Item")

_MAX_METADATA_BYTES = 16 * 1024
_MAX_METADATA_DEPTH = 32
_SMALL, _LARGE = 1e-40, 1e40  # of numbers with a fraction or an exponent

# Where msgspec says which member is wrong.
_MEMBER = re.compile(r" - at `\$\.([A-Za-z_]+)|missing required field `([A-Za-z_]+)`")

# What bodies and queries are made of.
Metadata = Annotated[
    dict[str, Any],
    msgspec.Meta(
        description=f"Yours alone: at most {_MAX_METADATA_BYTES // 1024} KiB as JSON, {_MAX_METADATA_DEPTH} deep; "
        f"fractions and exponents from {_SMALL:g} to {_LARGE:g}."
    ),
]
When = Annotated[
    datetime.datetime, msgspec.Meta(description="RFC 3339 with an offset.", extra_json_schema={"format": "date-time"})
]
Word = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]  # PostgreSQL cannot store a NUL
Limit = Annotated[int, msgspec.Meta(ge=1, le=1000, description="How many at most.")]
Cursor = Annotated[Word, msgspec.Meta(description="`next_cursor` of the page before, with the same filters. Opaque.")]


@dataclass(frozen=True)
class Service:
    """What a request needs of the application: its settings, its database, whom to ask, and who writes for it."""

    settings: Settings
    database: Database
    api: ControlAPI
    looks: Looks
    kicker: Kicker
    live: LiveList
    refusals: Refusals
    callers: Callers
    guesses: Allowance
    writes: Allowance
    metrics: Metrics | None
    tracer: Tracer | None


def service() -> Service:
    """The service of the application that handles this request."""
    found: Service = flask.current_app.extensions["streamorch"]
    return found


REQUEST = "streamorch.request"  # where the environ of WSGI has the Request


def asked() -> Request:
    """The request that Flask handles."""
    found: Request = flask.request.environ[REQUEST]
    return found


def as_flask(reply: Reply) -> flask.Response:
    """A reply as Flask returns it."""
    response = flask.Response(reply.body, reply.status, reply.headers)
    if not reply.body:
        del response.headers["Content-Type"]  # Flask's own, of a body that is none
    return response


# --- who may call -----------------------------------------------------------------------------------------


Guard = Callable[[Request, Service], None]


def first(guard: Guard) -> Callable[[], None]:
    """A guard as a blueprint asks it before each view."""
    return partial(_ask_first, guard)


def _ask_first(guard: Guard) -> None:
    request = asked()
    if (found := contract.declared(flask.current_app.view_functions[flask.request.endpoint or ""])) is not None:
        request.needs = found.needs(request.method)
    guard(request, service())


def guard_of(app: flask.Flask, endpoint: str) -> Guard | None:
    """The guard of a view; None where everybody may call."""
    asked_first = app.before_request_funcs.get(endpoint.partition(".")[0], [])
    return next((one.args[0] for one in asked_first if isinstance(one, partial)), None)


def require_api_caller(request: Request, of: Service) -> None:
    """Guard of the REST part: Bearer, X-API-Key, or rescuestream-api's signature. Problem `unauthorized` otherwise.

    `forbidden` for an API client whose scope is too small, `rate-limited` for one who guesses on and on, or writes on
    and on with the right one.
    """
    caller = _caller(request, of)
    if isinstance(caller, str):
        refuse_guess(of, "api", request.environ.get("REMOTE_ADDR", ""))
        raise Problem("unauthorized", caller)
    request.caller = caller.name
    if not caller.may(request.needs):
        raise Problem("forbidden", f"this needs the scope {request.needs}, and the credential has {caller.scope}")
    if request.method not in ("GET", "HEAD", "OPTIONS") and (wait := of.writes.take(request.caller)):
        raise Problem("rate-limited", "too many writes with this credential", retry_after=wait)


def refuse_guess(of: Service, what: str, address: str) -> None:
    """Problem `rate-limited` when too many wrong credentials came from this address; ask it after the check alone.

    So whoever has a right one gets in, however many others behind the same address guess. An address that is not
    known is not limited.
    """
    if address and (wait := of.guesses.take((what, source(address)))):
        raise Problem("rate-limited", "too many wrong credentials from this address", retry_after=wait)


def _caller(request: Request, of: Service) -> Caller | str:
    """Who calls the REST part, or why it is refused, as one sentence."""
    secrets = of.settings.api_secrets
    api_key = request.header("X-API-Key")
    if "HTTP_X_SIGNATURE" in request.environ:
        # By API_SECRET alone: of a client's secret there is only the hash.
        refusal = signing.signature_refusal(
            secrets,
            given=request.header("X-Signature"),
            api_key=api_key,
            method=request.method,
            path=request.path,
            timestamp=request.header("X-Timestamp"),
            body=request.body(),
            now=time.time(),
        )
        return refusal or API_SECRET
    credential = signing.bearer(request.header("Authorization")) or api_key
    if not credential:
        return "send Authorization: Bearer API_SECRET, or X-API-Key: API_SECRET"
    return of.callers.by_secret(credential) or "the API secret is not right"


def actor() -> Actor:
    """For whom the view that asks changes something."""
    request = asked()
    return Actor(request.caller or "", request.environ.get("REMOTE_ADDR"), request.request_id)


def require_media_server(request: Request, of: Service) -> None:
    """Guard of /auth and the hooks: a callback secret, when one is set. Problem `unauthorized` otherwise."""
    secrets = of.settings.callback_secrets
    if not secrets:
        return
    authorization = request.header("Authorization")
    given = signing.basic_password(authorization) or signing.bearer(authorization) or ""
    if not signing.matches(given, secrets):
        log.warning(
            "callback without the right secret",
            extra={
                "path": request.path,
                "reason": "wrong" if given else "missing",
                "mend": _mending_line(request.path, of.settings),
            },
        )
        raise Problem("unauthorized", "the callback secret is missing or not right")


def require_scraper(request: Request, of: Service) -> None:
    """Guard of the metrics: METRICS_SECRET or API_SECRET, as Bearer. Problem `unauthorized` otherwise.

    `rate-limited` for one who guesses on and on. On a port of their own they are open unless METRICS_SECRET is set.
    """
    settings = of.settings
    if settings.metrics_port is not None and settings.metrics_secret is None:
        return
    given = signing.bearer(request.header("Authorization"))
    own = () if settings.metrics_secret is None else (settings.metrics_secret,)
    if not given or not signing.matches(given, own + settings.api_secrets):
        refuse_guess(of, "api", request.environ.get("REMOTE_ADDR", ""))
        raise Problem("unauthorized", "send Authorization: Bearer METRICS_SECRET, or the API secret")


def _mending_line(path: str, settings: Settings) -> str:
    """The line of mediamtx.yml that this callback should have come by, with the word SECRET in the secret's place."""
    try:
        if path == "/auth":
            return f"authHTTPAddress: {mediamtx_config.auth_address(settings)}"
        start, end = mediamtx_config.hook_lines(settings)
    except SettingError as error:
        return str(error)
    return f"runOnOnline: {start}" if path == "/webhook/ready" else f"runOnOffline: {end}"


class OfNode(msgspec.Struct, frozen=True):
    """The query of MediaMTX's callbacks, as `node` reads it: which media server calls."""

    node: Annotated[str, msgspec.Meta(extra_json_schema={"enum": [NODE]})] = NODE


def node(request: Request) -> str:
    """The media server that calls: `?node=` of the callback URL. Problem `unauthorized` when it is not configured."""
    name = request.parameter("node") or NODE
    if name != NODE:
        log.warning("callback of a node that is not configured", extra={"node": keys.redact(name)[:64]})
        raise Problem("unauthorized", "this node is not configured")
    request.node = name
    return name


# --- reading ----------------------------------------------------------------------------------------------


def identifier(text: str) -> UUID:
    """The UUID in a URL; Problem `invalid-request` when it is malformed."""
    try:
        return _uuid(text)
    except ValueError:
        raise invalid("id", "is no UUID") from None


def invalid(field: str, reason: str) -> Problem:
    """The problem of one wrong field."""
    return Problem("invalid-request", f"{field} {reason}", errors=[FieldError(field, reason)])


def body(kind: type[Body], *, rules: Mapping[str, Callable[[str], str | None]] | None = None) -> Body:
    """The JSON body of a REST request as `kind`; unknown members are ignored.

    `rules` gives for a text member the function that says why a value is refused.
    Problem `unsupported-media-type` when it is labelled as something else, `invalid-request` with every wrong field.
    """
    content_type = flask.request.content_type
    if content_type and flask.request.mimetype != "application/json" and not flask.request.mimetype.endswith("+json"):
        raise Problem("unsupported-media-type")
    return accepted(kind, json_object(asked().body()), rules=rules)


def accepted(
    kind: type[Body], members: Mapping[str, Any], *, rules: Mapping[str, Callable[[str], str | None]] | None = None
) -> Body:
    """These members, of a body or a form, as `kind`; `rules` and the problem as of `body`."""
    hints = get_type_hints(kind, include_extras=True)
    read: dict[str, Any] = {}
    errors: list[FieldError] = []
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in members:
            if field.required:
                errors.append(FieldError(field.encode_name, "is required"))
            continue
        value = members[field.encode_name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number, in which 60.0 is 60
        try:
            read[field.name] = msgspec.convert(value, hints.get(field.name, field.type))
        except (msgspec.ValidationError, RecursionError) as error:
            errors.append(FieldError(field.encode_name, _reason(error)))
            continue
        reason = _unstorable(read[field.name])
        if reason is None and isinstance(read[field.name], datetime.datetime):
            read[field.name] = moments.in_utc(read[field.name])
        if reason is None and isinstance(read[field.name], str) and field.name in (rules or {}):
            reason = (rules or {})[field.name](read[field.name])
        if reason:
            errors.append(FieldError(field.encode_name, reason))
    if errors:
        raise Problem("invalid-request", "; ".join(f"{e.field} {e.reason}" for e in errors), errors=errors)
    return kind(**read)


def told(request: Request, decode: Callable[[bytes], Told]) -> Told:
    """What MediaMTX sent, by a decoder of its Struct; Problem `invalid-request` when it is of another form."""
    try:
        return decode(request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        told_of = _MEMBER.search(str(error))
        field = next(filter(None, told_of.groups())) if told_of else "body"
        raise Problem("invalid-request", errors=[FieldError(field, _reason(error))]) from None


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body; Problem `invalid-request` when it is anything else."""
    try:
        members = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise invalid("body", "is not JSON") from None
    if not isinstance(members, dict):
        raise invalid("body", "is not a JSON object")
    return members


def given(changes: msgspec.Struct) -> dict[str, Any]:
    """The members of a PATCH that were given, as JSON values."""
    members = ((name, getattr(changes, name)) for name in changes.__struct_fields__)
    return {
        name: value.isoformat() if isinstance(value, datetime.datetime) else value
        for name, value in members
        if value is not msgspec.UNSET
    }


def query(kind: type[Asked]) -> Asked:
    """The query parameters as `kind`: an absent or empty one has its default, others are ignored.

    Problem `invalid-request` with every one that is wrong.
    """
    accepted: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name, (read, reason) in _readers(kind).items():
        text = flask.request.args.get(name)
        if not text:
            continue
        if name != "cursor":  # which may look like anything
            text = keys.redact(text)  # nothing is found by a key, and none reaches the database
        try:
            accepted[name] = read(text)
        except ValueError:  # msgspec's ValidationError is one
            errors.append(FieldError(name, reason))
    if errors:
        raise Problem("invalid-request", "; ".join(f"{e.field} {e.reason}" for e in errors), errors=errors)
    return kind(**accepted)


@cache
def _readers(kind: type[msgspec.Struct]) -> dict[str, tuple[Callable[[str], Any], str]]:
    """How each parameter of a query is read, and what is said of one that is wrong."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: _reader(hints[name], msgspec.inspect.type_info(hints[name])) for name in kind.__struct_fields__}


def _reader(hint: Any, form: msgspec.inspect.Type) -> tuple[Callable[[str], Any], str]:
    if isinstance(form, msgspec.inspect.Metadata):
        return _reader(hint, form.type)
    if isinstance(form, msgspec.inspect.UnionType):  # with None, of one that may be absent
        return _reader(hint, next(one for one in form.types if not isinstance(one, msgspec.inspect.NoneType)))
    if isinstance(form, msgspec.inspect.IntType):
        return (
            lambda text: msgspec.convert(_whole(text), hint),
            f"must be a whole number from {form.ge} to {form.le}",
        )
    if isinstance(form, msgspec.inspect.DateTimeType):
        # A `+` of an offset that was not percent-encoded arrives as a space.
        return (
            lambda text: moments.moment(text.replace(" ", "+")),
            "is no RFC 3339 time with an offset, like 2026-01-31T12:00:00Z",
        )
    if isinstance(form, msgspec.inspect.UUIDType):
        return _uuid, "is no UUID"
    if isinstance(form, msgspec.inspect.LiteralType):
        return lambda text: msgspec.convert(text, hint), f"must be one of {', '.join(map(str, form.values))}"
    return lambda text: msgspec.convert(text, hint), "holds a character that cannot be stored"


def _whole(text: str) -> int:
    """A whole number in plain digits; ValueError otherwise."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError
    return int(text)


# --- pages ------------------------------------------------------------------------------------------------


def after(cursor: str | None, filters: Mapping[str, Any]) -> tuple[str, str] | None:
    """Where the last page ended, by its cursor; Problem `invalid-request` when it is not of these filters."""
    if cursor is None:
        return None
    try:
        packed = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        time_text, id_text, bound_to = msgspec.json.decode(packed, type=tuple[str, str, str])
        last = moments.moment(time_text).isoformat(timespec="microseconds").replace("+00:00", "Z"), str(_uuid(id_text))
    except (ValueError, binascii.Error, msgspec.DecodeError, UnicodeEncodeError):
        raise invalid("cursor", "is not one that this API gave") from None
    if bound_to != _fingerprint(filters):
        raise invalid("cursor", "belongs to other filters")
    return last


def one_page(
    found: list[Item], limit: int, filters: Mapping[str, Any], place: Callable[[Item], tuple[str, UUID]]
) -> tuple[list[Item], str | None]:
    """At most `limit` of what was found, and the cursor of the page after them; None when nothing more was found.

    `place` tells moment and id of an item, by which the page after it begins.
    """
    items = found[:limit]
    return items, next_cursor(*place(items[-1]), filters) if len(found) > limit else None


def next_cursor(time_text: str, id_value: UUID, filters: Mapping[str, Any]) -> str:
    """The opaque cursor of the page after this item, bound to the filters."""
    packed = msgspec.json.encode((time_text, id_value, _fingerprint(filters)))
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def _fingerprint(filters: Mapping[str, Any]) -> str:
    text = msgspec.json.encode({name: value for name, value in sorted(filters.items()) if value is not None})
    return f"{binascii.crc32(text):08x}"


# --- answering --------------------------------------------------------------------------------------------


def answer(value: object, status: int = 200) -> flask.Response:
    """A JSON answer."""
    return flask.Response(msgspec.json.encode(value), status=status, content_type="application/json")


def created(value: object, location: str) -> flask.Response:
    """201 with Location; never stored by a cache, since it may hold a secret."""
    made = answer(value, 201)
    made.headers["Location"] = location
    made.headers["Cache-Control"] = "no-store"
    return made


def no_content() -> flask.Response:
    """204."""
    return flask.Response(status=204)


def _uuid(text: str) -> UUID:
    """The UUID in its usual form; ValueError for what UUID() reads besides: braces, urn:, digits of other scripts."""
    found = UUID(text)
    if str(found) != text.lower():
        raise ValueError("is no UUID")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    text = str(error).partition(" - at `$.")[0]
    return keys.redact(text[0].lower() + text[1:].replace("`", "'"))  # it may quote what was sent


def _unstorable(value: Any, depth: int = 0) -> str | None:
    """Why PostgreSQL or a reader could not take this value; None when it can be stored."""
    if depth > _MAX_METADATA_DEPTH:
        return f"is nested more than {_MAX_METADATA_DEPTH} deep"
    if isinstance(value, str):
        return "holds a NUL character" if "\x00" in value else None
    if isinstance(value, datetime.datetime):
        return moments.refusal(value)
    if isinstance(value, float):
        # PostgreSQL writes numbers out: a thousand times 1e308 would come back as 300 kilobytes.
        return (
            None if value == 0 or _SMALL <= abs(value) <= _LARGE else f"holds a number beyond {_LARGE:g} or {_SMALL:g}"
        )
    if isinstance(value, dict):
        if depth == 0 and len(msgspec.json.encode(value)) > _MAX_METADATA_BYTES:
            return f"is larger than {_MAX_METADATA_BYTES // 1024} KiB"
        inner: Iterable[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        inner = value
    else:
        return None
    return next((reason for item in inner if (reason := _unstorable(item, depth + 1))), None)

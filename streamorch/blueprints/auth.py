"""POST /auth: may this one publish, read, call the Control API?

MediaMTX asks one question at a time per server and waits for the answer with the loop that serves every path
(mediamtx.md 2), so: no work that is not needed, one database round trip for a publish, none for the rest.
"""

import logging
import time
from functools import partial
from typing import Annotated, Any, NoReturn

import flask
import msgspec
import psycopg

from streamorch import keys, paths, signing
from streamorch.blueprints import (
    OfNode,
    Service,
    as_flask,
    asked,
    first,
    node,
    refuse_guess,
    require_media_server,
    service,
    told,
)
from streamorch.contract import Answer, Link, Operation
from streamorch.exchange import Reply, Request
from streamorch.problems import FieldError, Problem
from streamorch.repositories import streams
from streamorch.repositories.decisions import Refusal

bp = flask.Blueprint("auth", __name__)
bp.before_request(first(require_media_server))
log = logging.getLogger(__name__)

_IN_USE = ("stream-key-in-use", "path-in-use")
# What a publish may be refused for.
_REFUSALS = (
    "unauthorized",
    "invalid-stream-key",
    "stream-key-revoked",
    "stream-key-expired",
    "stream-key-disabled",
    "broadcaster-disabled",
    "path-not-allowed",
    "stream-stopped",
    *_IN_USE,
)
_GUESSES = ("unauthorized", "invalid-stream-key")
# Their clients ask without a credential before they ask with one (mediamtx.md 1.5).
_ASK_TWICE = ("rtsp", "rtsps", "webrtc")
# Until when a look may last, counted from the question: the answer is due within 2.8 s.
_LOOK_SECONDS = 2.5
_LOOKS = 3


Word = Annotated[str, msgspec.Meta(max_length=255)]
_ACTIONS = ["publish", "read", "playback", "api", "metrics", "pprof"]  # any other is 401


class Question(msgspec.Struct, frozen=True):
    """What MediaMTX sends, v1.9 to v1.20 (mediamtx.md 1.2); what it adds later is ignored."""

    action: Annotated[str, msgspec.Meta(extra_json_schema={"enum": _ACTIONS})]
    user: str = ""
    password: str = ""
    token: str = ""
    ip: str = ""
    path: str = ""
    protocol: Word = ""
    id: Word | None = None
    query: str = ""
    userAgent: str = ""  # the name on the wire


_decode = msgspec.json.Decoder(Question).decode
_LET_IN = Reply(200)
_NO_KEY = "no stream key was given"


@bp.post("/auth")
@Operation(
    "askMay",
    {
        200: Answer(
            "Yes. Empty.",
            links=(
                Link(
                    "tellReady",
                    body={
                        "path": "$request.body#/path",
                        "source_type": "rtmpConn",
                        "source_id": "$request.body#/id",
                    },
                ),
            ),
        )
    },
    takes=Question,
    asks=OfNode,
    problems=(*_REFUSALS, "rate-limited"),
    statuses=dict.fromkeys(_IN_USE, 401),
)
def ask() -> flask.Response:
    """May this one publish, read, call the Control API?

    MediaMTX asks. A publish that is let in has claimed its path.
    """
    return as_flask(answer(asked(), service()))


def answer(request: Request, of: Service) -> Reply:
    """200, empty, to let it; 401, 400 or 503 as a problem not to. Any body MediaMTX gets goes into its log."""
    from_node = node(request)
    request.about = question = told(request, _decode)
    if question.action == "publish":
        try:
            claim = _publish(question, from_node, of)
        except psycopg.OperationalError:
            _note(question, from_node, of, "database-unavailable")
            raise
        request.outcome, request.stream_id = claim.outcome, claim.stream_id
    elif question.action in ("read", "playback"):
        _read(question, from_node, of)
    else:
        _operate(question, from_node, of)
    return _LET_IN


def _publish(question: Question, from_node: str, of: Service) -> streams.Claim:
    """Claim the path for the key; only check the key when there is no connection yet (page, OPTIONS)."""
    if keys.has_form(question.path):
        _refuse(question, from_node, of, "path-not-allowed", paths.KEY_IN_PATH)
    key = keys.presented(question.password, question.token, question.query)
    if key is None:
        if question.protocol not in _ASK_TWICE:
            _refuse(question, from_node, of, "unauthorized", _NO_KEY)
        # Routine, and no attack.
        if log.isEnabledFor(logging.DEBUG):
            log.debug("publish without a key", extra=_facts(question))
        raise Problem("unauthorized", _NO_KEY)
    if refusal := paths.refusal(question.path):
        _refuse(question, from_node, of, "path-not-allowed", refusal)
    if question.id == "":
        raise Problem("invalid-request", errors=[FieldError("id", "is empty; null means that there is no connection")])
    for name, text in (("id", question.id or ""), ("protocol", question.protocol), ("ip", question.ip)):
        if "\x00" in text:
            raise Problem("invalid-request", errors=[FieldError(name, "holds a NUL")])
    if keys.has_form(question.id or ""):
        raise Problem("invalid-request", errors=[FieldError("id", "holds a stream key")])
    if question.id is not None:
        claim = _claim(
            of,
            key_hash=keys.digest(key),
            node=from_node,
            path=question.path,
            connection_id=question.id,
            # Whoever puts a key where none belongs must not find it in the database.
            protocol=keys.redact(question.protocol),
            remote_address=keys.redact(question.ip)[:255],
            user_agent=keys.redact(question.userAgent.replace("\x00", ""))[:512],
            lease_seconds=of.settings.lease_seconds,
        )
    else:
        claim = of.database.run(partial(streams.check, key_hash=keys.digest(key), node=from_node, path=question.path))
    if not claim.is_granted:
        _refuse(question, from_node, of, claim.outcome, key=key, claim=claim)
    if log.isEnabledFor(logging.INFO):
        log.info(
            "publish granted",
            extra=_facts(question)
            | {"outcome": claim.outcome, "stream_key_id": claim.stream_key_id, "stream_id": claim.stream_id},
        )
    return claim


def _claim(of: Service, **wanted: Any) -> streams.Claim:
    """The claim. When another stream of the key is in the way, look whether it is really alive before saying so.

    Three times at most: behind a claim that broke off stands the stream that it wanted to replace.
    """
    deadline = time.monotonic() + _LOOK_SECONDS
    claim = of.database.run(partial(streams.claim, **wanted))
    for _ in range(_LOOKS):
        if claim.outcome != "stream-key-in-use" or claim.rival_id is None:
            break
        rival = of.database.run(partial(streams.rival, stream_id=claim.rival_id))
        if rival is not None and not of.looks.gives_way(rival, deadline=deadline):
            break
        if rival is not None and not rival.is_active:
            of.database.run(partial(streams.abandon, stream_id=rival.id))
        claim = of.database.run(partial(streams.claim, **wanted, judged_gone=claim.rival_id))
    return claim


def _refuse(
    question: Question,
    from_node: str,
    of: Service,
    slug: str,
    detail: str = "",
    *,
    key: str | None = None,
    claim: streams.Claim | None = None,
) -> NoReturn:
    """End with this problem, or as rate-limited what may be a guess; noted and logged as it is answered."""
    if slug in _GUESSES:
        try:
            refuse_guess(of, "auth", question.ip)
        except Problem as limited:
            _note(question, from_node, of, limited.slug, key=key)
            raise
    _note(question, from_node, of, slug, key=key, claim=claim)
    raise Problem(slug, detail, status=401 if slug in _IN_USE else None)


def _note(
    question: Question,
    from_node: str,
    of: Service,
    slug: str,
    *,
    key: str | None = None,
    claim: streams.Claim | None = None,
) -> None:
    """Note a refusal to be looked up; its log line is left out where the note is."""
    stream_key_id, rival_id = (claim.stream_key_id, claim.rival_id) if claim else (None, None)
    facts = _facts(question)
    storable: dict[str, Any] = {name: value and _storable(value) for name, value in facts.items()}
    left_out = of.refusals.note(
        Refusal(
            slug,
            node=from_node,
            stream_key_id=stream_key_id,
            # Of what is none of our keys the last characters may be those of some other secret.
            hint=keys.hint(key) if key and (stream_key_id or keys.has_form(key)) else None,
            rival_id=rival_id,
            user_agent=_storable(question.userAgent)[:512],
            **storable,
        )
    )
    if left_out is not None and log.isEnabledFor(logging.INFO):
        log.info(
            "publish refused" if question.action == "publish" else "refused",
            extra=facts
            | {"outcome": slug, "stream_key_id": stream_key_id, "rival_id": rival_id}
            | ({"left_out": left_out} if left_out else {}),
        )


def _read(question: Question, from_node: str, of: Service) -> None:
    """READ_POLICY, from memory: MediaMTX up to v1.17 asks for every HLS segment."""
    settings = of.settings
    if settings.read_policy == "public":
        return
    given = keys.presented(question.password, question.token, question.query) or question.query
    if settings.read_policy == "secret" and signing.matches(given, (settings.read_secret or "",)):
        return
    detail = "reading needs the read secret" if settings.read_policy == "secret" else "reading is switched off"
    if given:
        _refuse(question, from_node, of, "unauthorized", detail)
    log.debug("read without a secret", extra=_facts(question))
    raise Problem("unauthorized", detail)


def _operate(question: Question, from_node: str, of: Service) -> None:
    """api, metrics, pprof: our own credential, since our Control API calls come back here (v1.20.1), or a scraper's."""
    settings = of.settings
    if question.action in ("api", "metrics", "pprof"):
        is_own = question.user == settings.mediamtx_api_user
        if signing.matches(question.password, settings.mediamtx_api_passwords) and is_own:
            return
        is_scrape = question.action != "api" and settings.metrics_secret is not None
        if is_scrape and signing.matches(question.password or question.token, (settings.metrics_secret or "",)):
            return
    detail = "this action needs a credential of its own"
    if question.password or question.token:
        _refuse(question, from_node, of, "unauthorized", detail)
    log.debug("operation without a credential", extra=_facts(question))
    raise Problem("unauthorized", detail)


def _storable(text: str) -> str:
    return keys.redact(text).replace("\x00", "")


def _facts(question: Question) -> dict[str, Any]:
    """What is told of a question: never the credentials or the query."""
    return {
        "action": keys.redact(question.action)[:32],
        "path": keys.redact(question.path)[:255],
        "protocol": keys.redact(question.protocol)[:32],
        "connection_id": question.id,
        "remote_address": keys.redact(question.ip)[:255],
    }

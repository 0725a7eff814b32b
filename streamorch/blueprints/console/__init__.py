"""The operator console: pages for people, beside the API for programs.

How a page is made:

- A module of its own here, with `bp = room("name")`: its views are for who has signed in, its problems become pages.
  `room("name", scope="admin")` is for that scope alone. `rooms.py` lists the rooms. A view calls the repositories, as
  the API's do, and returns `page("name.html", ...)`. It is declared with `@aside`: it is none of the contract.
- A form is a POST, made with the macro `form`, which carries the token that the guard asks for; the view does what was
  asked with `actor()`, and answers `done("key-revoked", url)`: a redirect, and the sentence of `SENTENCES` on the page
  that follows. Whoever may only read is refused by the guard, and sees no form: `operator.may_operate`.
- What a page asks for in the background is a GET that answers JSON; the scripts fetch it with `Accept:
  application/json`, and have a problem as JSON then.
- Its template extends `console/base.html` and uses the macros of `console/macros.html`; its script is a module in
  `static/console`, named in the block `head`. Nothing in the text of a page runs: no inline script or style.
- Its place in the navigation is a line of `NAVIGATION`, shown to the scope that the room is for.
- Its tests are in tests/console: what a browser is not needed for in test_<page>.py, the rest marked `browser`.
"""

import dataclasses
import io
import re
import time
from functools import cache, partial
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

import flask
import msgspec
import psycopg
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from streamorch import __version__, problems, signing, tables
from streamorch.blueprints import Service, as_flask, asked, first, service
from streamorch.blueprints.console import sessions, words
from streamorch.blueprints.console.sessions import Session
from streamorch.callers import API_SECRET, Caller, Scope
from streamorch.exchange import Request
from streamorch.keys import redact
from streamorch.problems import Problem
from streamorch.settings import MediaURLs

PREFIX = "/console"

_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")


class Entry(NamedTuple):
    """A page in the navigation: its view, its name, the key that leads there after `g`, and for which scope it is."""

    endpoint: str
    name: str
    key: str
    scope: Scope = "read"


NAVIGATION = (
    Entry("console_wall.index", "Live", "l"),
    Entry("console_keys.index", "Keys", "k"),
    Entry("console_broadcasters.index", "Broadcasters", "b"),
    Entry("console_history.index", "History", "h"),
    Entry("console_refusals.index", "Refusals", "r"),
    Entry("console_clients.index", "API clients", "c", "admin"),
    Entry("console_system.index", "System", "s"),
)

# What is said on the page after something was done.
SENTENCES = {
    "signed-out": "You are signed out.",
    "key-changed": "The key is changed.",
    "key-disable": "The key is disabled, and whoever published with it is cut off.",
    "key-enable": "The key is enabled.",
    "key-lift": "The hold is lifted: the key may publish again.",
    "key-overlap-over": "The value before lets nobody in any more. Whoever is live with it streams on.",
    "key-revoked": "The key is revoked, and what was live with it has ended.",
    "broadcaster-made": "The broadcaster is made. Give it a key.",
    "broadcaster-changed": "The broadcaster is changed.",
    "broadcaster-disable": "The broadcaster is disabled, and all its streams have ended.",
    "broadcaster-enable": "The broadcaster may publish again.",
    "broadcaster-deleted": "The broadcaster is deleted, and its keys are revoked.",
    "client-revoked": "The API client is revoked: within two seconds its secret lets nobody in.",
    "session-over": "Your session is over. Sign in again: nothing was changed.",
    "stream-stopped": "The stream is stopped, and its key is refused for a while.",
    "stream-had-ended": "The stream had ended already.",
}


class Operator(NamedTuple):
    """Who looks at the page, and in which session."""

    caller: Caller
    session: Session

    @property
    def may_operate(self) -> bool:
        """May it steer broadcasters, stream keys and streams?"""
        return self.caller.may("operate")

    @property
    def may_administer(self) -> bool:
        """May it see API clients, and who changed what?"""
        return self.caller.may("admin")


def room(name: str, *, scope: Scope = "read") -> flask.Blueprint:
    """A blueprint for pages that are shown to who has signed in with this scope, or with more."""
    bp = plain_room(name)
    bp.before_request(first(partial(require_operator, scope=scope)))
    bp.after_request(_renewed)
    return bp


def plain_room(name: str) -> flask.Blueprint:
    """The same for everybody."""
    bp = flask.Blueprint(f"console_{name}", __name__, url_prefix=PREFIX)
    for error in (Problem, HTTPException, psycopg.OperationalError, psycopg.DataError, Exception):
        bp.register_error_handler(error, _problem)
    bp.before_request(_keep_body)
    return bp


def _keep_body() -> None:
    """Read the form as the API reads a body: whole, 64 KiB at most, 400 when it is broken."""
    # Left to werkzeug, an upload would become a file in /tmp as large as its sender likes, who need not have signed in.
    if flask.request.method != "POST":
        return
    raw = asked().body()
    environ = flask.request.environ
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ |= {"wsgi.input": io.BytesIO(raw), "CONTENT_LENGTH": str(len(raw))}


# --- who looks --------------------------------------------------------------------------------------------


def require_operator(request: Request, of: Service, *, scope: Scope) -> None:
    """Guard of the pages: a session of this scope; for a POST its token, `operate` at least, the allowance for writes.

    Problem `unauthorized` without a session, or when its credential is no longer right; `forbidden`, `rate-limited`.
    """
    session = session_of_browser()
    caller = _caller(of, session)
    if session is None or caller is None:
        raise Problem("unauthorized", "nobody has signed in, or the session is over")
    request.caller = caller.name
    flask.g.operator = Operator(caller, session)
    is_change = request.method not in ("GET", "HEAD")
    if is_change:
        require_own_form(session.token)
    needs: Scope = "operate" if is_change and scope == "read" else scope
    if not caller.may(needs):
        raise Problem("forbidden", f"this needs the scope {needs}, and the credential has {caller.scope}")
    if is_change and (wait := of.writes.take(request.caller)):
        raise Problem("rate-limited", "too many changes with this credential", retry_after=wait)


def session_of_browser() -> Session | None:
    """The session that the browser has; None when it has none, or one that is over."""
    cookie = flask.request.cookies.get(sessions.COOKIE, "")
    return sessions.read(service().settings.api_secrets, cookie, time.time())


def _caller(of: Service, session: Session | None) -> Caller | None:
    if session is None:
        return None
    return API_SECRET if session.client_id is None else of.callers.by_id(session.client_id)


def require_own_form(token: str) -> None:
    """Problem `forbidden` unless this POST comes from a form with this token, on a page of this host."""
    headers = flask.request.headers
    site = headers.get("Sec-Fetch-Site")
    origin = headers.get("Origin")
    # By text: what is no URL at all is a page of nobody's, too.
    is_own = site == "same-origin" if site else origin is None or origin.partition("://")[2] == flask.request.host
    if not is_own or not signing.matches(flask.request.form.get("token", ""), (token,)):
        raise Problem("forbidden", "this form was not sent by a page of your session: nothing was changed")


def operator() -> Operator:
    """Who looks at the page that is being made."""
    found: Operator = flask.g.operator
    return found


def _renewed(response: flask.Response) -> flask.Response:
    """The session with the moment at which it was last used."""
    found: Operator | None = flask.g.get("operator")
    now = time.time()
    if found is not None and now - found.session.seen > sessions.RENEW_SECONDS and response.status_code < 400:
        remember(response, dataclasses.replace(found.session, seen=now))
    return response


def remember(response: Response, session: Session) -> None:
    """Have the browser keep this session."""
    keep(response, sessions.COOKIE, sessions.written(session))


def keep(response: Response, cookie: str, value: str) -> None:
    """Have the browser keep this cookie, for the console alone."""
    response.set_cookie(
        cookie,
        value,
        path=flask.request.script_root + PREFIX,
        secure=flask.request.is_secure,
        httponly=True,
        samesite="Strict",
    )


def forget(response: Response, cookie: str) -> None:
    """Have the browser drop this cookie."""
    response.delete_cookie(cookie, path=flask.request.script_root + PREFIX, httponly=True, samesite="Strict")


# --- what is shown ----------------------------------------------------------------------------------------


def page(name: str, status: int = 200, **told: object) -> flask.Response:
    """A page of this template. No other host's script runs in it, none of its own text, and no one keeps it."""
    looks: Operator | None = flask.g.get("operator")
    told |= {
        "navigation": [entry for entry in NAVIGATION if looks and looks.caller.may(entry.scope)],
        "operator": looks,
        "sentence": SENTENCES.get(flask.request.args.get("told", "")),
        "version": __version__,
        "with_cursor": with_cursor,
        "stream_url": stream_url,
        "duration": lambda seconds: "" if seconds is None else tables.duration(seconds),
        "reason": words.ended,
        "as_text": lambda raw: bytes(raw).decode(),
    }
    made = flask.Response(
        flask.render_template(f"console/{name}", **told), status, content_type="text/html; charset=utf-8"
    )
    made.headers.update(_headers(service().settings.media_urls))
    return made


def data(told: object) -> flask.Response:
    """JSON for the script of a page."""
    made = flask.Response(msgspec.json.encode(told), content_type="application/json")
    made.headers["Cache-Control"] = "no-store"
    return made


def stream_url(stream_id: UUID) -> str:
    """Where the page of a stream is."""
    return flask.url_for("console_streams.show", stream_id=stream_id)


def with_cursor(cursor: str) -> str:
    """The address of the page after this one, with the same filters."""
    # Not by url_for, which would take `_scheme` and `_external` of the query for its own.
    told = {redact(name): redact(text) for name, text in flask.request.args.items() if name != "told"}
    return f"{flask.request.script_root}{quote(flask.request.path)}?{urlencode(told | {'cursor': cursor})}"


def done(sentence: str, url: str) -> Response:
    """Lead on to this page, which says the sentence."""
    if sentence not in SENTENCES:
        raise KeyError(sentence)
    return flask.redirect(f"{url}{'&' if '?' in url else '?'}told={sentence}", 303)


def typed() -> dict[str, str]:
    """What was typed into the form that was sent, to be shown again beside what is wrong with it; without a secret."""
    return {name: redact(text) for name, text in flask.request.form.items()}


def moment_of(text: str) -> str:
    """A moment of a form as RFC 3339: what the script made of it; or, without one, what the browser sends, in UTC."""
    return f"{text}:00Z" if _LOCAL.fullmatch(text) else text


def _problem(error: Exception) -> Response:
    """A problem as a page, with the way back; who has no session is led to the sign-in."""
    reply = problems.reply(error, asked())
    if "json" in flask.request.headers.get("Accept", ""):
        return as_flask(reply)
    told = msgspec.json.decode(reply.body, type=problems.Body)
    if told.status == 401:
        if flask.request.method != "GET":
            return done("session-over", flask.url_for("console_door.sign_in"))
        back = redact(flask.request.full_path.rstrip("?"))
        return flask.redirect(flask.url_for("console_door.sign_in", next=flask.request.script_root + back), 303)
    made = page("problem.html", told.status, problem=told, slug=told.type.rpartition("/")[2])
    made.headers.extend([(name, value) for name, value in reply.headers if name in ("Retry-After", "Allow")])
    return made


@cache
def _headers(media_urls: MediaURLs) -> dict[str, str]:
    hls, webrtc = _origin(media_urls.hls), _origin(media_urls.webrtc)
    both = " ".join(sorted({*hls, *webrtc}))
    frames = both or "'none'"
    return {
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            f"connect-src 'self' {both}; media-src 'self' blob: {' '.join(hls)}; frame-src {frames}; "
            "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        ),
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _origin(url: str | None) -> tuple[str, ...]:
    """Scheme and host of where a protocol is served; empty where it is off."""
    if not url:
        return ()
    parts = urlsplit(url)
    return (f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",)

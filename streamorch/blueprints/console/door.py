"""Signing in and out, and the files that pages load: what is there for everybody."""

import logging
import time

import flask
from werkzeug.wrappers import Response

from streamorch import assets
from streamorch.blueprints import as_flask, asked, refuse_guess, service
from streamorch.blueprints.console import (
    PREFIX,
    done,
    forget,
    keep,
    page,
    plain_room,
    remember,
    require_own_form,
    session_of_browser,
    sessions,
)
from streamorch.blueprints.console.assets import own
from streamorch.contract import aside
from streamorch.keys import redact

log = logging.getLogger(__name__)

bp = plain_room("door")


@bp.get("/sign-in")
@aside
def sign_in() -> flask.Response:
    """The form that asks for a credential."""
    return _form(200, None)


@bp.post("/sign-in")
@aside
def enter() -> Response:
    """Begin a session with the API secret, or that of an API client, and lead on to the page that was asked for."""
    request, of = asked(), service()
    door = flask.request.cookies.get(sessions.DOOR)
    if not door:
        return _form(403, "Your browser keeps no cookies, or has lost the one of this page. Try again.")
    require_own_form(sessions.door_token(door))
    secret = flask.request.form.get("secret", "").strip()
    caller = of.callers.by_secret(secret)
    if caller is None:
        refuse_guess(of, "api", request.environ.get("REMOTE_ADDR", ""))
        log.info("no session", extra={"client": request.environ.get("REMOTE_ADDR"), "reason": "wrong secret"})
        return _form(401, "That secret is not right, or it was revoked or has expired.")
    request.caller = caller.name
    log.info("signed in", extra={"caller": caller.name, "client": request.environ.get("REMOTE_ADDR")})
    response = flask.redirect(_next() or flask.url_for("console_wall.index"), 303)
    by = secret if caller.client_id is None else of.settings.api_secrets[0]
    remember(response, sessions.begun(by, time.time(), client_id=caller.client_id))
    forget(response, sessions.DOOR)
    return response


@bp.post("/sign-out")
@aside
def leave() -> Response:
    """End the session of this browser."""
    session = session_of_browser()
    if session is not None:
        require_own_form(session.token)
    response = done("signed-out", flask.url_for(".sign_in"))
    forget(response, sessions.COOKIE)
    return response


@bp.get("/assets/<edition>/<name>")
@aside
def asset(edition: str, name: str) -> flask.Response:
    """A file that a page loads; in its edition it never changes."""
    return as_flask(assets.answer(own(), edition, name, {"X-Content-Type-Options": "nosniff"}))


@bp.app_template_global("console_asset")
def _address(name: str) -> str:
    return flask.url_for("console_door.asset", edition=own().edition, name=name)


def _form(status: int, wrong: str | None) -> flask.Response:
    # That of another page that is open, if there is one: its form is to work on.
    door = flask.request.cookies.get(sessions.DOOR) or sessions.door()
    response = page("sign_in.html", status, wrong=wrong, next=_next(), token=sessions.door_token(door))
    keep(response, sessions.DOOR, door)
    return response


def _next() -> str:
    """Where to go afterwards, if that is a page of the console."""
    asked_for = redact(flask.request.values.get("next", ""))
    path = flask.request.script_root + PREFIX
    is_ours = asked_for == path or asked_for.startswith((f"{path}/", f"{path}?"))
    return asked_for if is_ours and asked_for.isprintable() and "\\" not in asked_for else ""

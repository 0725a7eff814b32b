"""The edges of every request: trusted proxies, request id, cross-origin rules, body limit, one log line."""

import ipaddress
import logging
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import uuid4

import flask
from werkzeug.middleware.proxy_fix import ProxyFix

from streamorch import keys
from streamorch.blueprints import MAX_BODY_BYTES
from streamorch.problems import Problem
from streamorch.settings import IPNetwork, Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("streamorch.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_EXPOSED = "ETag, X-Request-ID, Retry-After"
_ALLOWED_HEADERS = "Authorization, Content-Type, If-None-Match, X-API-Key, X-Request-ID, X-Signature, X-Timestamp"
_PREFLIGHT_SECONDS = "600"
# Asked often, and told by lines of their own or of no interest: their access line is for debugging.
_QUIET = ("/auth", "/webhook/ready", "/webhook/not-ready", "/streams", "/livez", "/readyz", "/health")


def init_app(app: flask.Flask, settings: Settings) -> None:
    """Put the edges around every request of the application."""
    # One byte more than is allowed: a chunked body is cut there without an error, and raw_body() sees it.
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES + 1
    app.before_request(_begin)
    if settings.cors_origins:
        app.before_request(_answer_preflight)
        app.after_request(_Origins(settings.cors_origins).allow)
    app.after_request(_finish)
    if settings.trusted_proxies:
        app.wsgi_app = TrustedProxies(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]


class TrustedProxies:
    """X-Forwarded-* counts only when the peer itself is a trusted proxy; anybody could send it."""

    def __init__(self, wsgi_app: "WSGIApplication", networks: Iterable[IPNetwork]):
        self.direct = wsgi_app
        self.proxied = ProxyFix(wsgi_app, x_for=1, x_proto=1, x_host=1, x_port=0, x_prefix=1)
        self.networks = tuple(networks)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            peer = ipaddress.ip_address(environ.get("REMOTE_ADDR", ""))
        except ValueError:
            return self.direct(environ, start_response)
        trusted = any(peer in network for network in self.networks)
        return (self.proxied if trusted else self.direct)(environ, start_response)


class _Origins:
    """Which origins a browser may call from."""

    def __init__(self, origins: Iterable[str]):
        self.origins = frozenset(origins)

    def allow(self, reply: flask.Response) -> flask.Response:
        """Say that the asking origin may read this answer, if it may."""
        reply.vary.add("Origin")
        origin = flask.request.headers.get("Origin")
        if origin and (origin in self.origins or "*" in self.origins):
            reply.headers["Access-Control-Allow-Origin"] = origin
            reply.headers["Access-Control-Expose-Headers"] = _EXPOSED
        return reply


def _begin() -> None:
    flask.g.started = time.perf_counter()
    asked = flask.request.headers.get("X-Request-ID", "")
    usable = _REQUEST_ID.fullmatch(asked) and not keys.has_form(asked)
    flask.g.request_id = asked if usable else uuid4().hex


def _answer_preflight() -> flask.Response | None:
    """A browser asks before it calls, and without credentials."""
    wanted = flask.request.headers.get("Access-Control-Request-Method")
    if flask.request.method != "OPTIONS" or not wanted:
        return None
    if flask.request.url_rule is None:
        raise Problem("not-found")
    reply = flask.Response(status=204)
    reply.headers["Access-Control-Allow-Methods"] = "GET, POST, PATCH, DELETE, HEAD"
    reply.headers["Access-Control-Allow-Headers"] = _ALLOWED_HEADERS
    reply.headers["Access-Control-Max-Age"] = _PREFLIGHT_SECONDS
    return reply


def _finish(reply: flask.Response) -> flask.Response:
    reply.headers["X-Request-ID"] = flask.g.request_id
    quiet = flask.request.path in _QUIET and reply.status_code < 500
    level = logging.DEBUG if quiet else logging.INFO
    if log.isEnabledFor(level):
        log.log(
            level,
            "%s %s %d",
            flask.request.method,
            keys.redact(flask.request.path)[:512],
            reply.status_code,
            extra={
                "status": reply.status_code,
                "milliseconds": round((time.perf_counter() - flask.g.started) * 1000, 2),
                "client": flask.request.remote_addr,
                "problem": flask.g.get("problem"),
            },
        )
    return reply

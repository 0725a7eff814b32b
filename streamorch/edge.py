"""The edges of every request: trusted proxies, request id, cross-origin rules, one log line."""

import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flask
from werkzeug.middleware.proxy_fix import ProxyFix

from streamorch import keys, logs, problems
from streamorch.blueprints import REQUEST, Service
from streamorch.callers import Scope
from streamorch.exchange import Reply, Request
from streamorch.problems import Problem
from streamorch.settings import IPNetwork

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("streamorch.access")

_EXPOSED = "ETag, X-Request-ID, Retry-After"
_ALLOWED_HEADERS = "Authorization, Content-Type, If-None-Match, X-API-Key, X-Request-ID, X-Signature, X-Timestamp"
_PREFLIGHT_HEADERS = (
    ("Access-Control-Allow-Methods", "GET, POST, PATCH, DELETE, HEAD"),
    ("Access-Control-Allow-Headers", _ALLOWED_HEADERS),
    ("Access-Control-Max-Age", "600"),
)
# Asked often, and told by lines of their own or of no interest: their access line is for debugging.
_QUIET = ("/auth", "/webhook/ready", "/webhook/not-ready", "/streams", "/livez", "/readyz", "/health", "/metrics")
_QUIET_BELOW = tuple(
    f"/console/{asked}" for asked in ("live", "measures", "alive", "now/", "refusals/news", "system/state")
)


class Fast(NamedTuple):
    """Who may ask, and what is answered; both raise what Flask's views raise. `needs`: the scope of an API client."""

    guard: Callable[[Request, Service], None]
    answer: Callable[[Request, Service], Reply]
    needs: Scope = "admin"


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


class MetricsPort:
    """What comes in by METRICS_PORT is for the metrics, and nothing else is."""

    def __init__(self, wsgi_app: "WSGIApplication", of: Service, scrape: Fast, port: int):
        self.service = wsgi_app
        self.metrics = Edge(_nothing_here, of, {"GET /metrics": scrape})
        self.port = str(port)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        # gunicorn takes it from the socket. This stands outside of TrustedProxies, where a header may change it.
        of = self.metrics if environ["SERVER_PORT"] == self.port else self.service
        return of(environ, start_response)


def _nothing_here(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    request: Request = environ[REQUEST]
    return problems.reply(Problem("not-found"), request).send(start_response, ())


class Edge:
    """WSGI around Flask: what happens at the beginning and at the end of each request.

    `fast` holds what is asked most, by "METHOD /path", or "METHOD /path?" where there is a query: it is answered here,
    by the same functions as in Flask's views, without Flask's contexts, routing and objects.
    """

    def __init__(self, wsgi_app: "WSGIApplication", of: Service, fast: Mapping[str, Fast]):
        self.flask = wsgi_app
        self.of = of
        self.fast = fast
        self.metrics = of.metrics
        self.tracer = of.tracer
        self.origins = frozenset(of.settings.cors_origins)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request = Request(environ)
        environ[REQUEST] = request
        logs.REQUEST_ID.set(request.request_id)
        try:
            fast = self.fast.get(f"{request.method} {environ['PATH_INFO']}{'?' if environ.get('QUERY_STRING') else ''}")
            if fast is not None:
                if self.tracer is None:
                    reply = self._reply(fast, request)
                else:
                    with self.tracer.asked(request, environ["PATH_INFO"]):
                        reply = self._reply(fast, request)
                        self.tracer.answered(request, reply.status)
                self._end(request, environ["PATH_INFO"], reply.status)
                return reply.send(start_response, self._headers(request))

            def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
                rule = flask.request.url_rule if flask.has_request_context() else None
                if self.tracer is not None:
                    self.tracer.answered(request, int(status[:3]))
                self._end(request, rule.rule if rule else "", int(status[:3]))
                return start_response(status, headers + self._headers(request), exc_info)

            return self.flask(environ, start)
        finally:
            logs.REQUEST_ID.set(None)

    def _reply(self, fast: Fast, request: Request) -> Reply:
        request.needs = fast.needs
        try:
            fast.guard(request, self.of)
            return fast.answer(request, self.of)
        except Exception as error:  # what is unforeseen is logged and becomes a problem there
            return problems.reply(error, request)

    def _headers(self, request: Request) -> list[tuple[str, str]]:
        """What every reply carries: the request id, and whether the asking origin may read it."""
        own = [("X-Request-ID", request.request_id)]
        if self.origins and not _is_page(request.path):
            own.append(("Vary", "Origin"))
            origin = request.header("Origin")
            if origin and (origin in self.origins or "*" in self.origins):
                own += [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", _EXPOSED)]
        return own

    def _end(self, request: Request, route: str, status: int) -> None:
        """What is counted, and the log line. `route` as Flask has it, "" where there is none."""
        if self.metrics is not None:
            self.metrics.answered(request, route, status)
        # (Too many requests would be too many lines.)
        quiet = status == 429 or (status < 500 and (request.path in _QUIET or request.path.startswith(_QUIET_BELOW)))
        level = logging.DEBUG if quiet else logging.INFO
        if log.isEnabledFor(level):
            log.log(
                level,
                "%s %s %d",
                request.method,
                keys.redact(request.path)[:512],
                status,
                extra={
                    "status": status,
                    "milliseconds": round((time.perf_counter() - request.started) * 1000, 2),
                    "client": request.environ.get("REMOTE_ADDR"),
                    "problem": request.problem,
                },
            )


def _is_page(path: str) -> bool:
    """Is it of the console? Its sessions are for its own pages, whichever origins may call the API."""
    return path == "/console" or path.startswith("/console/")


def answer_preflight() -> flask.Response | None:
    """A browser asks before it calls, and without credentials: Flask's first hook, where origins are allowed."""
    wanted = flask.request.headers.get("Access-Control-Request-Method")
    if flask.request.method != "OPTIONS" or not wanted or _is_page(flask.request.path):
        return None
    if flask.request.url_rule is None:
        raise Problem("not-found")
    return flask.Response(status=204, headers=_PREFLIGHT_HEADERS)

"""The application on one screen: settings in; database, problems, edges and the rooms of the API."""

import os

import flask
import psycopg
from werkzeug.exceptions import HTTPException

from streamorch import in_force, logs, problems, tally
from streamorch.blueprints import (
    Service,
    api_clients,
    as_flask,
    asked,
    audit,
    auth,
    broadcasters,
    decisions,
    health,
    metrics,
    nodes,
    pages,
    require_api_caller,
    require_media_server,
    require_scraper,
    stream_keys,
    streams,
    webhooks,
)
from streamorch.blueprints.console import rooms
from streamorch.callers import Callers
from streamorch.decisions import Refusals
from streamorch.edge import Edge, Fast, MetricsPort, TrustedProxies, answer_preflight
from streamorch.kicks import Kicker
from streamorch.limits import Allowance
from streamorch.live import LiveList
from streamorch.look import Looks
from streamorch.mediamtx import ControlAPI
from streamorch.metrics import Metrics
from streamorch.problems import Problem
from streamorch.reconciler import Reconciler
from streamorch.repositories import Database
from streamorch.settings import Settings

_ASK = Fast(require_media_server, auth.answer)
FAST = {"POST /auth": _ASK, "POST /auth?": _ASK, "GET /streams": Fast(require_api_caller, streams.live, "read")}


def with_routes() -> flask.Flask:
    """The rooms of the API and no service behind them: enough to describe it."""
    app = flask.Flask("streamorch", static_folder=None)
    # Nothing redirects: MediaMTX would turn a redirected question into a GET without a body.
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    asked_by_callers = (broadcasters, stream_keys, streams, decisions, audit, api_clients, nodes)
    for room in (auth, webhooks, *asked_by_callers, health, metrics, pages):
        app.register_blueprint(room.bp)
    for bp in rooms.ROOMS:
        app.register_blueprint(bp)
    return app


def create_app(settings: Settings) -> flask.Flask:
    """The WSGI application, its pool opening in the background. Call it after the fork, in the process that serves."""
    logs.configure(settings.log_level)
    app = with_routes()
    tracer = None
    if settings.tracing:
        from streamorch.tracing import Tracing  # with all of OpenTelemetry

        tracer = Tracing(settings, app)
        app.extensions["streamorch.tracing"] = tracer
    database = Database(settings.database_url, min_size=settings.pool_min_size, max_size=settings.pool_max_size)
    api = ControlAPI(
        settings.mediamtx_api_url, user=settings.mediamtx_api_user, password=settings.mediamtx_api_passwords[0]
    )
    live = LiveList(database, settings.media_urls)
    counted = None
    if settings.metrics_enabled:
        counted = Metrics(tally.mine(), (rule.rule for rule in app.url_map.iter_rules()), database)
    service = Service(
        settings,
        database,
        api,
        Looks(api),
        Kicker(database, api, counted, tracer),
        live,
        Refusals(settings.database_url),
        Callers(settings.api_secrets, database),
        guesses=Allowance(settings.refusals_per_minute),
        writes=Allowance(settings.api_writes_per_minute),
        metrics=counted,
        tracer=tracer,
    )
    app.extensions["streamorch"] = service

    for error in (Problem, HTTPException, psycopg.OperationalError, psycopg.DataError):
        app.register_error_handler(error, lambda error: as_flask(problems.reply(error, asked())))
    if settings.cors_origins:
        app.before_request(answer_preflight)
    app.wsgi_app = Edge(app.wsgi_app, service, FAST)  # type: ignore[method-assign]
    if settings.trusted_proxies:
        app.wsgi_app = TrustedProxies(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]
    if counted is not None and settings.metrics_port is not None:
        scrape = Fast(require_scraper, metrics.answer)
        app.wsgi_app = MetricsPort(app.wsgi_app, service, scrape, settings.metrics_port)  # type: ignore[method-assign]
    database.open()
    return app


def application() -> flask.Flask:
    """What a worker of gunicorn serves: with a connection at hand, if the database is there, and a reconciler."""
    app = create_app(in_force.settings(os.environ))
    service: Service = app.extensions["streamorch"]
    service.database.await_connection()
    reconciler = Reconciler(service.settings, service.api, service.metrics, service.tracer)
    app.extensions["streamorch.reconciler"] = reconciler
    reconciler.start()
    return app

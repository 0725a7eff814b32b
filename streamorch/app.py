"""The application on one screen: settings in; database, problems, edges and the rooms of the API."""

import flask

from streamorch import edge, logs, problems
from streamorch.blueprints import Service, auth, broadcasters, health, nodes, stream_keys, streams, webhooks
from streamorch.kicks import Kicker
from streamorch.look import Looks
from streamorch.mediamtx import ControlAPI
from streamorch.repositories import Database
from streamorch.settings import Settings


def create_app(settings: Settings) -> flask.Flask:
    """The WSGI application, its pool opening in the background. Call it after the fork, in the process that serves."""
    logs.configure(settings.log_level)
    app = flask.Flask("streamorch", static_folder=None)
    # Nothing redirects: MediaMTX would turn a redirected question into a GET without a body.
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False

    database = Database(settings.database_url, min_size=settings.pool_min_size, max_size=settings.pool_max_size)
    api = ControlAPI(
        settings.mediamtx_api_url, user=settings.mediamtx_api_user, password=settings.mediamtx_api_passwords[0]
    )
    app.extensions["streamorch"] = Service(settings, database, api, Looks(api), Kicker(database, api))

    problems.init_app(app)
    edge.init_app(app, settings)
    for room in (auth, webhooks, broadcasters, stream_keys, streams, nodes, health):
        app.register_blueprint(room.bp)

    database.open()
    return app

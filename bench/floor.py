"""The floor: what an empty Flask view costs under the same gunicorn."""

import flask

app = flask.Flask("floor", static_folder=None)


@app.post("/auth")
@app.get("/streams")
def nothing() -> flask.Response:
    """200, empty."""
    return flask.Response(status=200)

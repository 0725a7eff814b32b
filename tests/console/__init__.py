"""The console: as a client without scripts has it, and as a browser shows it."""

import re
from typing import Any

import flask
import flask.testing
from werkzeug.test import TestResponse

from tests.conftest import API_SECRET


class Visitor:
    """A browser without scripts: it keeps cookies, and sends the forms that it was given."""

    def __init__(self, app: flask.Flask):
        self.client: flask.testing.FlaskClient = app.test_client()

    def get(self, path: str = "/console", **options: Any) -> TestResponse:
        return self.client.get(path, **options)

    def token(self, path: str = "/console") -> str:
        """The token of the forms on this page."""
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.get(path).text)
        assert found, path
        return found[1]

    def post(
        self, url: str, /, *, on: str = "/console", headers: dict[str, str] | None = None, **fields: str
    ) -> TestResponse:
        """Send the form of the page `on`; fields given override its own."""
        return self.client.post(url, data={"token": self.token(on)} | fields, headers=headers)

    def sign_in(self, secret: str = API_SECRET, **fields: str) -> TestResponse:
        return self.post("/console/sign-in", on="/console/sign-in", headers=None, secret=secret, **fields)

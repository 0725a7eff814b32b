"""Pages: the contract as a document, a page to try it, one for each problem. For everybody: they hold no secret."""

import importlib.resources
import re
from functools import cache
from typing import Any

import flask
import msgspec
from markupsafe import Markup, escape

from streamorch import assets, openapi
from streamorch.blueprints import as_flask
from streamorch.contract import JSON, Answer, Operation, aside
from streamorch.problems import TABLE, Problem

bp = flask.Blueprint("pages", __name__)

_HTML = "text/html"
_TEXT = "text/plain"
# No page loads anything from another host, none runs a script of its text, none is shown inside another.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_OURS = ("pages.css", "docs.js")
_SWAGGER_UI = ("swagger-ui.css", "swagger-ui-bundle.js")


@cache
def _assets() -> assets.Assets:
    ours, theirs = importlib.resources.files("streamorch"), importlib.resources.files("flask_swagger_ui")
    files = {name: (ours / "static" / name).read_bytes() for name in _OURS}
    files |= {name: (theirs / "dist" / name).read_bytes() for name in _SWAGGER_UI}
    return assets.of(files)


@cache
def _contract() -> bytes:
    return msgspec.json.encode(openapi.document(flask.current_app))


@bp.get("/openapi.json")
@Operation(
    "getContract",
    {
        200: Answer("OpenAPI 3.1.", dict[str, Any], headers=("ETag", "Cache-Control")),
        304: Answer("It is as `If-None-Match` has it.", headers=("ETag", "Cache-Control")),
    },
    reads=("If-None-Match",),
)
def contract() -> flask.Response:
    """This document."""
    made = flask.Response(_contract(), content_type=JSON)
    made.add_etag()
    made.headers["Cache-Control"] = "no-cache"
    made.make_conditional(flask.request)
    return made


@bp.get("/docs")
@Operation("showContract", {200: Answer("A page for browsers.", str, media=(_HTML,))})
def docs() -> flask.Response:
    """The page that shows this document, and lets one try it."""
    return _page("docs.html")


@bp.get("/docs/<edition>/<name>")
@aside
def asset(edition: str, name: str) -> flask.Response:
    """A file that a page loads; in its edition it never changes."""
    return as_flask(assets.answer(_assets(), edition, name, _HEADERS))


@bp.get("/errors")
@Operation("listProblems", {200: Answer("A page for browsers; plain text for others.", str, media=(_TEXT, _HTML))})
def problems_index() -> flask.Response:
    """Every problem."""
    if _wants_text():
        return _text("".join(f"{kind.status}  {slug:26}{kind.meaning}\n" for slug, kind in TABLE.items()))
    return _page("problems.html", table=TABLE)


@bp.get("/errors/<slug>")
@Operation(
    "showProblem",
    {200: Answer("A page for browsers; plain text for others.", str, media=(_TEXT, _HTML))},
    problems=("not-found",),
)
def problem_page(slug: str) -> flask.Response:
    """What a problem means, and what caller and operator do about it.

    The address that the `type` of a problem is.
    """
    kind = TABLE.get(slug)
    if kind is None:
        raise Problem("not-found", "no such problem")
    if _wants_text():
        return _text(
            f"{kind.title} ({kind.status}, {slug})\n\n{kind.meaning}\n\n"
            f"What the caller does: {kind.mend}\n\nWhat the operator does: {kind.operator}\n"
        )
    return _page("problem.html", slug=slug, kind=kind)


def _wants_text() -> bool:
    """Browsers ask for HTML by name; curl asks for anything."""
    return flask.request.accept_mimetypes.best_match([_TEXT, _HTML], _TEXT) == _TEXT


def _text(text: str) -> flask.Response:
    return _varying(flask.Response(text, content_type=f"{_TEXT}; charset=utf-8", headers=_HEADERS))


def _page(name: str, **told: object) -> flask.Response:
    made = flask.Response(flask.render_template(name, **told), content_type=f"{_HTML}; charset=utf-8", headers=_HEADERS)
    return _varying(made)


def _varying(made: flask.Response) -> flask.Response:
    made.headers["Cache-Control"] = "no-cache"
    made.vary.add("Accept")
    return made


@bp.app_template_global("asset")
def _address(name: str) -> str:
    return flask.url_for("pages.asset", edition=_assets().edition, name=name)


@bp.app_template_filter("marked")
def _marked(text: str) -> Markup:
    """A text of the table as HTML: what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # it is escaped

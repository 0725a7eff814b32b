"""The HTTP API as an OpenAPI 3.1 document, made of the code: routes, docstrings, declarations, Structs, problems."""

import http
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flask
import msgspec
from werkzeug.routing import Rule

from streamorch import __version__, contract, examples, problems
from streamorch.blueprints import Guard, guard_of, require_api_caller, require_media_server, require_scraper
from streamorch.contract import JSON, Answer, Operation
from streamorch.exchange import REQUEST_ID

Object = dict[str, Any]

PROBLEM = "application/problem+json"
_METHODS = ("GET", "POST", "PATCH", "DELETE")
_DESCRIPTION = """\
Decides who may publish to a MediaMTX server, knows what is live, and tells frontends.

- JSON in UTF-8. Every field is always there, null when unknown. Enumerations may grow, and members and query parameters
  may be added: ignore what you do not know; what is unknown here is ignored as well.
- Times are RFC 3339, UTC, with microseconds; any offset is taken, none is refused. Ids are UUIDs.
- HEAD works as GET. A method that a path does not have is a `method-not-allowed`, and `Allow` lists those that it has;
  a path that is none is a `not-found`.
- An empty query parameter counts as absent, and the first of several counts.
- `API_SECRET` may all. The secret of an API client is sent like it, and has a scope: `read`, `operate`, which includes
  that, or `admin`, which includes both. Each operation names the one that it needs; to a smaller one it is `forbidden`.
- `X-Request-ID` is taken from the request if it is a sane one, and told back by every answer and log line.
- Every error is a problem (RFC 9457), and its `type` the address of a page about it.
"""
_TAGS = {
    "streams": "What is live, what was, and where to watch it.",
    "stream keys": "The credentials of encoders. The value of one is in the answer that made it, and nowhere else.",
    "broadcasters": "Who may publish.",
    "decisions": "Why an encoder was refused, and when it was let in.",
    "audit": "Who changed what.",
    "api clients": "Who may call this API, beside `API_SECRET`. The secret of one is in the answer that made it.",
    "nodes": "The media servers.",
    "auth": "What MediaMTX asks before it lets anybody in.",
    "webhooks": "What MediaMTX's hook commands tell.",
    "health": "For probes.",
    "metrics": "For Prometheus.",
    "pages": "This document, and a page for each problem.",
    "HEAD": "The headers of a GET, without its body.",
}
_SIGNED: Object = {"apiKey": [], "timestamp": [], "signature": []}
_SECURITY: dict[Guard | None, list[Object]] = {
    require_media_server: [{"callbackBasic": []}, {"callbackBearer": []}, {}],
    require_scraper: [{"scraper": []}, {"bearer": []}],
    None: [{}],
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`API_SECRET`, or the secret of an API client."},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "`API_SECRET`, or the secret of an API client; with a signature any name.",
    },
    "timestamp": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Timestamp",
        "description": "Unix time of the signature, at most 300 s from the service's.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Signature",
        "description": "Hex HMAC-SHA256 with `API_SECRET` of METHOD, PATH, X-Timestamp and the body, a line feed "
        "between them; PATH is decoded and has no query. As rescuestream-api has it.",
    },
    "callbackBasic": {
        "type": "http",
        "scheme": "basic",
        "description": "One of `MEDIAMTX_CALLBACK_SECRET` as password, any user. Where none is set nothing is needed.",
    },
    "scraper": {"type": "http", "scheme": "bearer", "description": "`METRICS_SECRET`."},
    "callbackBearer": {"type": "http", "scheme": "bearer", "description": "One of `MEDIAMTX_CALLBACK_SECRET`."},
}
_HEADERS: dict[str, Object] = {
    "X-Request-ID": {
        "description": "What log lines call this request.",
        "schema": {"type": "string", "pattern": f"^({REQUEST_ID.pattern})$"},
        "example": "9f3c1b7ad08e4b6c8a55d2f04c1e7a60",
    },
    "Location": {
        "description": "Where it is.",
        "schema": {"type": "string", "format": "uri-reference"},
        "example": "/broadcasters/0197f1c2-5d1e-7c3a-9b7e-1f0a52c6d801",
    },
    "Cache-Control": {"description": "Who may keep it.", "schema": {"type": "string"}, "example": "no-store"},
    "ETag": {
        "description": "For `If-None-Match`. A live list that is filtered or stale has none, and neither has history.",
        "schema": {"type": "string", "pattern": '^(W/)?"[^"]*"$'},
        "example": '"7c1f0e52-1843-1783071666.882104-5d0c93aa"',
    },
    "Retry-After": {
        "description": "Seconds to wait.",
        "schema": {"type": "integer", "minimum": 0},
        "example": problems.RETRY_AFTER_SECONDS,
    },
    "WWW-Authenticate": {"description": "What is asked for.", "schema": {"const": "Bearer"}, "example": "Bearer"},
    "Allow": {
        "description": "The methods that this path has.",
        "schema": {"type": "string", "pattern": "^[A-Z]+(, ?[A-Z]+)*$"},
        "example": "GET, HEAD, OPTIONS",
    },
}
_PARAMETERS: dict[str, Object] = {
    "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "description": "The `ETag` of the answer that you have; lists, weak ones and `*` are taken.",
        "schema": {"type": "string"},
    }
}


def document(app: flask.Flask) -> Object:
    """The document of this application's routes. KeyError for a view that declares nothing."""
    described = [
        (rule, app.view_functions[rule.endpoint], found)
        for rule in app.url_map.iter_rules()
        if (found := contract.declared(app.view_functions[rule.endpoint])) is not None
    ]
    order = list(_TAGS)
    described.sort(key=lambda one: (order.index(_tag(one[0])), one[0].rule, _METHODS.index(_method(one[0]))))
    schemas = _Schemas([found for _, _, found in described])
    paths: Object = {}
    for rule, view, found in described:
        path = paths.setdefault(re.sub(r"<([a-z_]+)>", r"{\1}", rule.rule), _of_path(rule))
        made = _operation(rule, view, found, guard_of(app, rule.endpoint), schemas)
        path[_method(rule).lower()] = made
        if _method(rule) == "GET":
            path["head"] = _head(made)
    return {
        "openapi": "3.1.0",
        "info": {"title": "streamorch", "version": __version__, "description": _DESCRIPTION},
        "servers": [{"url": "."}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": _SCHEMES,
            "headers": {name: header | {"required": True} for name, header in _HEADERS.items()},
            "parameters": _PARAMETERS,
            "examples": {slug: {"summary": kind.title, "value": _example(slug)} for slug, kind in _table()},
            "responses": {slug: _problem((slug,), kind.status) for slug, kind in _table()},
        },
    }


def text(app: flask.Flask) -> str:
    """The document for readers and for version control: indented, the same text for the same code."""
    return f"{msgspec.json.format(msgspec.json.encode(document(app)), indent=2).decode()}\n"


class _Schemas:
    """The schemas of all bodies and queries, and where each is."""

    def __init__(self, operations: Iterable[Operation]):
        self.types = list(dict.fromkeys(kind for one in operations for kind in _types(one)))
        refs, found = msgspec.json.schema_components(self.types, ref_template="#/components/schemas/{name}")
        self._refs = dict(zip(self.types, refs, strict=True))
        self.components: Object = {}
        queries = {self._refs[one.asks]["$ref"] for one in operations if one.asks}
        for name, schema in found.items():
            if f"#/components/schemas/{name}" in queries:
                continue
            self.components[_name(name)] = _renamed(schema)
        self._queries = {
            one.asks: _renamed(found[self._refs[one.asks]["$ref"].rpartition("/")[2]]) for one in operations if one.asks
        }

    def of(self, kind: Any) -> Object:
        """The schema of a body, by reference where it has a name."""
        schema: Object = _renamed(self._refs[kind])
        return schema

    def query(self, kind: Any) -> list[Object]:
        """The parameters of a query."""
        return [_parameter(name, schema) for name, schema in self._queries[kind]["properties"].items()]


def _types(one: Operation) -> Iterator[Any]:
    yield from (kind for kind in (one.takes, one.asks) if kind is not None)
    yield from (kind for answer in one.answers.values() for kind in answer.bodies)
    yield problems.Body


def _name(name: str) -> str:
    """A generic Struct goes by its own name: `LiveStreams_ListedStream_` is LiveStreams."""
    return {"Body": "Problem"}.get(name, name.partition("_")[0])


def _renamed(schema: Any) -> Any:
    """The schema with its references, as `_name` has them."""
    if isinstance(schema, dict):
        return {
            key: f"#/components/schemas/{_name(value.rpartition('/')[2])}" if key == "$ref" else _renamed(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str))
        }
    return [_renamed(one) for one in schema] if isinstance(schema, list) else schema


def _parameter(name: str, schema: Object) -> Object:
    """A parameter of a query. One that may be absent is null in its Struct, and nobody can send a null."""
    if "anyOf" in schema:
        (schema,) = (one for one in schema["anyOf"] if one != {"type": "null"})
    described = {"description": schema["description"]} if "description" in schema else {}
    bare = {key: value for key, value in schema.items() if key != "description" and (key, value) != ("default", None)}
    return {"name": name, "in": "query", **described, "required": False, "allowEmptyValue": True, "schema": bare}


def _method(rule: Rule) -> str:
    return next(method for method in _METHODS if method in (rule.methods or ()))


def _tag(rule: Rule) -> str:
    endpoint: str = rule.endpoint
    return endpoint.partition(".")[0].replace("_", " ")


def _of_path(rule: Rule) -> Object:
    """The parameters of a path: ids, or the slug of a problem."""
    named = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "enum": list(problems.TABLE)}
            if name == "slug"
            else {"type": "string", "format": "uuid"},
            "example": examples.IDS[name],
        }
        for name in sorted(rule.arguments)
    ]
    return {"parameters": named} if named else {}


def _operation(
    rule: Rule, view: Callable[..., Any], found: Operation, guard: Guard | None, schemas: _Schemas
) -> Object:
    summary, _, more = (inspect.getdoc(view) or "").partition("\n")
    made: Object = {"operationId": found.id, "tags": [_tag(rule)], "summary": summary.rstrip(".")}
    said = more.split()
    if guard is require_api_caller:
        said.append(f"Scope: `{found.needs(_method(rule))}`.")
    if said:
        made["description"] = " ".join(said)
    parameters = schemas.query(found.asks) if found.asks else []
    parameters += [{"$ref": f"#/components/parameters/{name}"} for name in found.reads]
    if parameters:
        made["parameters"] = parameters
    if found.takes:
        content = {"schema": schemas.of(found.takes), "example": examples.OF[found.takes.__name__]}
        made["requestBody"] = {"required": True, "content": {JSON: content}}
    answers = {status: _answer(answer, schemas) for status, answer in found.answers.items()}
    for status, slugs in _problems(rule, found, guard).items():
        alone = len(slugs) == 1 and problems.TABLE[slugs[0]].status == status
        answers[status] = {"$ref": f"#/components/responses/{slugs[0]}"} if alone else _problem(slugs, status)
    made["responses"] = {str(status): answers[status] for status in sorted(answers)}
    made["security"] = _security(rule, found, guard)
    return made


def _security(rule: Rule, found: Operation, guard: Guard | None) -> list[Object]:
    """The credentials of an operation; where an API client may call, with the scope that it needs as a role."""
    if guard is not require_api_caller:
        return _SECURITY[guard]
    scope = found.needs(_method(rule))
    return [{"bearer": [scope]}, {"apiKey": [scope]}, _SIGNED]


def _problems(rule: Rule, found: Operation, guard: Guard | None) -> dict[int, tuple[str, ...]]:
    """The problems of an operation by status, those that follow from the way it is asked among them."""
    slugs = set(found.problems) | {"internal-error"}
    if guard is not None:
        slugs.add("unauthorized")
    if guard in (require_api_caller, require_media_server):
        slugs.add("database-unavailable")  # out of which they are answered
    if found.takes:
        slugs |= {"invalid-request", "too-large"}
    if found.takes and guard is require_api_caller:
        slugs.add("unsupported-media-type")
    if guard is require_api_caller:
        slugs.add("forbidden")
    if guard in (require_api_caller, require_scraper):
        slugs.add("rate-limited")
    if any(name.endswith("_id") for name in rule.arguments) or (found.asks and guard is require_api_caller):
        slugs.add("invalid-request")
    by_status: dict[int, tuple[str, ...]] = {}
    for slug, kind in _table():
        if slug in slugs:
            status = found.statuses.get(slug, kind.status)
            by_status[status] = (*by_status.get(status, ()), slug)
    return by_status


def _answer(answer: Answer, schemas: _Schemas) -> Object:
    made: Object = {"description": answer.says, "headers": _headers(answer.headers)}
    if answer.bodies:
        any_of = [schemas.of(kind) for kind in answer.bodies]
        content = {"schema": any_of[0] if len(any_of) == 1 else {"anyOf": any_of}} | _shown(answer.bodies)
        made["content"] = dict.fromkeys(answer.media, content)
    if answer.links:
        # The same operation may follow twice, from other places of the answer.
        made["links"] = {link.to: _link(link) for link in answer.links}
    return made


def _shown(bodies: tuple[Any, ...]) -> Object:
    """The example of a body, or those of bodies; {} of what is no Struct (a page, this document)."""
    names = [kind.__name__ for kind in bodies if kind.__name__ in examples.OF]
    if len(names) == 1:
        return {"example": examples.OF[names[0]]}
    return {"examples": {name: {"value": examples.OF[name]} for name in names}} if names else {}


def _link(link: contract.Link) -> Object:
    made: Object = {"operationId": link.to}
    if link.parameters:
        made["parameters"] = dict(link.parameters)
    if link.body is not None:
        made["requestBody"] = dict(link.body)
    return made


def _headers(names: Iterable[str]) -> Object:
    made: Object = {}
    for name in (*names, "X-Request-ID"):
        bare = name.removesuffix("?")
        made[bare] = _HEADERS[bare] if name != bare else {"$ref": f"#/components/headers/{name}"}
    return made


def _problem(slugs: tuple[str, ...], status: int) -> Object:
    """The answer that one of these problems is."""
    types = [f"/errors/{slug}" for slug in slugs]
    told = [name for name, _ in problems.headers(status) if name != "Content-Type"]
    if "method-not-allowed" in slugs:
        told.append("Allow")
    return {
        "description": " ".join(problems.TABLE[slug].meaning for slug in slugs)
        if len(slugs) == 1
        else http.HTTPStatus(status).phrase + ": " + ", ".join(slugs) + ".",
        "headers": _headers(told),
        "content": {
            PROBLEM: {
                "schema": {
                    "allOf": [
                        {"$ref": "#/components/schemas/Problem"},
                        {
                            "properties": {"type": {"enum": types}, "status": {"const": status}},
                            # A 400 says of each field what is wrong, and no other status does.
                            **({"required": ["errors"]} if status == 400 else {"not": {"required": ["errors"]}}),
                        },
                    ]
                },
                "examples": {slug: _reference(slug, status) for slug in slugs},
            }
        },
    }


def _reference(slug: str, status: int) -> Object:
    if problems.TABLE[slug].status == status:
        return {"$ref": f"#/components/examples/{slug}"}
    return {"summary": problems.TABLE[slug].title, "value": _example(slug, status)}


def _example(slug: str, status: int | None = None) -> Object:
    kind = problems.TABLE[slug]
    errors: Any = msgspec.UNSET
    if kind.status == 400:
        errors = [problems.FieldError("limit", "must be a whole number from 1 to 1000")]
    return msgspec.to_builtins(  # type: ignore[no-any-return]
        problems.Body(f"/errors/{slug}", kind.title, status or kind.status, kind.meaning, "/streams", errors)
    )


def _table() -> Iterable[tuple[str, problems.Kind]]:
    return problems.TABLE.items()


def _head(got: Mapping[str, Any]) -> Object:
    """HEAD as this GET: the same, and no body."""
    responses = {
        status: {"description": http.HTTPStatus(int(status)).phrase, "headers": _headers(())}
        for status in got["responses"]
    }
    kept = {name: value for name, value in got.items() if name in ("summary", "parameters", "security")}
    return {"operationId": f"{got['operationId']}Head", "tags": ["HEAD"], **kept, "responses": responses}

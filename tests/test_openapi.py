"""The contract as a document: valid, complete, made of the code, and what the service really does."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from openapi_spec_validator import validate

from streamorch import contract, openapi
from streamorch.__main__ import main
from streamorch.app import with_routes
from streamorch.blueprints import guard_of
from streamorch.problems import TABLE
from tests.blueprints import problem
from tests.conftest import API_SECRET, Api, MediaServer

ROOT = Path(__file__).resolve().parent.parent
BLUEPRINTS = ROOT / "streamorch" / "blueprints"
DOCUMENT: dict[str, Any] = json.loads(openapi.text(with_routes()))
AN_ID = "00000000-0000-4000-8000-000000000000"
OPERATIONS = {
    found["operationId"]: (method.upper(), path, found)
    for path, of_path in DOCUMENT["paths"].items()
    for method, found in of_path.items()
    if method != "parameters"
}
WITH_BODIES = {name: found for name, found in OPERATIONS.items() if found[0] != "HEAD"}


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    while "$ref" in node:
        found: Any = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        node = found
    return node


def validator(schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    """A validator of a schema of the document, its formats included."""
    whole = {"components": DOCUMENT["components"], "$ref": "#/wanted", "wanted": schema}
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    assert {"date-time", "uuid"} <= checker.checkers.keys()
    return jsonschema.Draft202012Validator(whole, format_checker=checker)


def answer_of(name: str, status: int) -> dict[str, Any]:
    return resolved(OPERATIONS[name][2]["responses"][str(status)])


def schema_of(name: str, status: int, media: str = contract.JSON) -> dict[str, Any]:
    schema: dict[str, Any] = answer_of(name, status)["content"][media]["schema"]
    return schema


def slugs_of(name: str) -> set[str]:
    """The problems that an operation tells of."""
    return {
        slug
        for answer in map(resolved, OPERATIONS[name][2]["responses"].values())
        for slug in answer.get("content", {}).get(openapi.PROBLEM, {}).get("examples", {})
    }


# --- the document ---


def test_it_is_openapi():
    validate(DOCUMENT)
    assert DOCUMENT["openapi"] == "3.1.0"


def test_the_committed_one_is_what_the_code_says():
    written = (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")
    assert written == openapi.text(with_routes()), "make openapi writes it anew"


def test_the_command_prints_it():
    assert json.loads(CliRunner().invoke(main, ["openapi"]).stdout) == DOCUMENT


def test_every_route_is_in_it_and_no_other():
    app = with_routes()
    rules = [rule for rule in app.url_map.iter_rules() if contract.declared(app.view_functions[rule.endpoint])]
    assert {(method, path) for method, path, _ in OPERATIONS.values()} == {
        (method, re.sub("<(.+?)>", r"{\1}", rule.rule))
        for rule in rules
        for method in (rule.methods or set()) - {"OPTIONS"}
    }
    assert len(OPERATIONS) == sum(len(of_path) - ("parameters" in of_path) for of_path in DOCUMENT["paths"].values())


def test_a_route_that_declares_nothing_is_refused():
    app = with_routes()
    app.add_url_rule("/new", view_func=lambda: "", endpoint="health.new", methods=["GET"])
    with pytest.raises(KeyError):
        openapi.document(app)


def examples(node: Any) -> Any:
    """Every media type of the document, with its examples."""
    if isinstance(node, dict):
        if "schema" in node and ("example" in node or "examples" in node):
            yield (
                node["schema"],
                [node["example"]]
                if "example" in node
                else [resolved(one)["value"] for one in node["examples"].values()],
            )
        for value in node.values():
            yield from examples(value)


def test_every_example_is_what_its_schema_says():
    found = list(examples(DOCUMENT))
    assert len(found) > 50
    for schema, values in found:
        assert values
        for value in values:
            validator(schema).validate(value)


@pytest.mark.parametrize("name", WITH_BODIES)
def test_every_body_has_an_example(name):
    operation = OPERATIONS[name][2]
    bodies = [operation.get("requestBody", {}), *map(resolved, operation["responses"].values())]
    contents = [
        content
        for body in bodies
        for media, content in body.get("content", {}).items()
        if media.endswith("json") and content["schema"] != {"type": "object"}
    ]
    assert [content for content in contents if not ("example" in content or content.get("examples"))] == []


def test_a_link_leads_to_an_operation_that_takes_what_it_brings():
    followed = set()
    for name, (_, _, operation) in OPERATIONS.items():
        for answer in map(resolved, operation["responses"].values()):
            for link in answer.get("links", {}).values():
                _, path, target = OPERATIONS[link["operationId"]]
                known = {
                    resolved(one)["name"]
                    for one in [*DOCUMENT["paths"][path].get("parameters", []), *target.get("parameters", [])]
                }
                assert link.get("parameters", {}).keys() <= known
                if "requestBody" in link:
                    body = resolved(target["requestBody"]["content"][contract.JSON]["schema"])
                    assert link["requestBody"].keys() <= body["properties"].keys()
                followed.add((name, link["operationId"]))
    assert len(followed) > 20


def evaluated(expression: str, answer: Any, asked: Any) -> Any:
    """What a runtime expression stands for in this exchange; what is none stands for itself."""
    source, _, pointer = expression.partition("#/")
    if not source.startswith("$"):
        return expression
    found = {"$response.body": answer, "$request.body": asked}[source]
    for part in pointer.split("/"):
        found = found[int(part) if isinstance(found, list) else part]
    return found


def follow(api: Api, name: str, parameters: dict[str, Any], brought: dict[str, Any]) -> set[tuple[str, str]]:
    """Ask an operation with its example and what a link brought, then follow its own; returns the links that led on."""
    method, path, operation = OPERATIONS[name]
    query = {key: value for key, value in parameters.items() if f"{{{key}}}" not in path}
    body = None
    if (content := operation.get("requestBody")) is not None:
        body = content["content"][contract.JSON]["example"] | brought
    answer = api(method, path.format(**parameters), query_string=query, json=body)
    assert answer.status_code < 300, (name, answer.text)
    followed = set()
    links = resolved(operation["responses"][str(answer.status_code)]).get("links", {}).values()
    # What ends something comes last: the others need it.
    for link in sorted(
        links, key=lambda link: (OPERATIONS[link["operationId"]][0] == "DELETE", "Not" in link["operationId"])
    ):
        try:
            values, brings = (
                {key: evaluated(text, answer.json, body) for key, text in link.get(place, {}).items()}
                for place in ("parameters", "requestBody")
            )
        except IndexError:
            continue  # nothing is listed
        if None not in values.values():  # there is a next page
            followed |= {(name, link["operationId"])} | follow(api, link["operationId"], values, brings)
    return followed


def test_every_link_leads_on(api, make_broadcaster):
    make_broadcaster()
    followed = follow(api, "createBroadcaster", {}, {})
    make_broadcaster()
    followed |= follow(api, "listBroadcasters", {"limit": 1}, {})
    for name in ("createApiClient", "listApiClients"):
        followed |= follow(api, name, {}, {})
    assert followed == {
        (name, link["operationId"])
        for name, (_, _, operation) in OPERATIONS.items()
        for answer in map(resolved, operation["responses"].values())
        for link in answer.get("links", {}).values()
    }


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_told_in_words(name):
    _, _, operation = OPERATIONS[name]
    assert re.fullmatch(r"[a-z]+([A-Z][a-z]+)*(HEAD)?", name.replace("Head", "HEAD"))
    assert operation["summary"]
    assert "`" not in operation["summary"]
    assert operation["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    assert all(resolved(answer)["description"] for answer in operation["responses"].values())


# --- problems ---


def functions(file: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


SHARED = functions(BLUEPRINTS / "__init__.py")


def reached(module: str, name: str) -> list[ast.AST]:
    """The statements of a view and of all functions of its room that it may come to."""
    own = functions(BLUEPRINTS / f"{module}.py")
    wanted, seen = [name], set()
    found: list[ast.AST] = []
    while wanted:
        function = own.get(one := wanted.pop()) or SHARED.get(one)
        if function is None or one in seen:
            continue
        seen.add(one)
        nodes = [node for statement in function.body for node in ast.walk(statement)]
        found += nodes
        own_names = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
        wanted += [node.id for node in nodes if isinstance(node, ast.Name) and node.id not in own_names]
    return found


def raised(module: str, name: str) -> set[str]:
    """The problems that the code of a view names, and those of what it does."""
    nodes = reached(module, name)
    slugs = {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in TABLE
    }
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    catches = any(isinstance(node, ast.ExceptHandler) for node in nodes if "OperationalError" in ast.dump(node))
    if attributes & {"database", "live"} and not catches:
        slugs.add("database-unavailable")
    called = {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    if "body" in called:
        slugs.add("too-large")
    return slugs


def refusals_of_a_claim() -> set[str]:
    text = (ROOT / "sql" / "0002_functions.sql").read_text(encoding="utf-8")
    check = text[text.index("FUNCTION claim_check_v1") : text.index("FUNCTION check_key_v1")]
    return set(re.findall(r"(?:THEN|outcome :=) '([a-z-]+)'", check)) & TABLE.keys()


@pytest.mark.parametrize("name", WITH_BODIES)
def test_an_operation_has_the_problems_that_its_code_can_raise(name):
    app = with_routes()
    (endpoint,) = (
        rule.endpoint
        for rule in app.url_map.iter_rules()
        if (found := contract.declared(app.view_functions[rule.endpoint])) and found.id == name
    )
    module, view = endpoint.split(".")
    expected = raised(module, view) | {"internal-error"}
    if (guard := guard_of(app, endpoint)) is not None:
        # A guard reads the body of a signed request, too; one that is no part of the operation is not told of.
        expected |= raised(module, guard.__name__) - {"too-large"}
    if endpoint == "auth.ask":
        assert len(refusals_of_a_claim()) > 8
        expected |= refusals_of_a_claim()
    assert slugs_of(name) == expected


def test_in_use_is_401_where_the_media_server_asks():
    for name, status in (("askMay", "401"), ("changeStreamKey", "409")):
        content = resolved(OPERATIONS[name][2]["responses"][status])["content"][openapi.PROBLEM]
        for slug in ("stream-key-in-use", "path-in-use"):
            assert resolved(content["examples"][slug])["value"]["status"] == int(status)


@pytest.mark.parametrize("name", OPERATIONS)
def test_without_a_database_every_operation_answers_as_it_tells(name, app, api):
    app.extensions["streamorch"].database.close()
    method, path, operation = OPERATIONS[name]
    url = re.sub(r"{\w+_id}", AN_ID, path).format(slug="conflict")
    body = operation.get("requestBody", {}).get("content", {}).get(contract.JSON, {}).get("example")
    answer = api(method, url, **({} if body is None else {"json": body}))
    assert (answer.status_code == 503) == ("503" in operation["responses"])
    told = resolved(operation["responses"][str(answer.status_code)])
    if method == "HEAD":
        assert answer.data == b""
        return
    assert answer.mimetype in told["content"]
    if answer.mimetype.endswith("json"):
        validator(told["content"][answer.mimetype]["schema"]).validate(answer.json)
    for header in told["headers"]:
        assert header in answer.headers or not resolved(told["headers"][header]).get("required")


def test_another_method_is_refused_as_the_document_says(client):
    told = DOCUMENT["components"]["responses"]["method-not-allowed"]
    answer = client.put("/livez")
    validator(told["content"][openapi.PROBLEM]["schema"]).validate(json.loads(answer.data))
    assert re.fullmatch(told["headers"]["Allow"].get("pattern", ".+"), answer.headers["Allow"])


# --- what is served is what the schemas say: what PostgreSQL encodes goes past the Structs ---


def conforms(answer: Any, name: str) -> Any:
    """The body of a 2xx answer, which has each member that the document knows, and no other."""
    told = answer_of(name, answer.status_code)
    assert answer.mimetype in told["content"], answer.text
    schema = told["content"][answer.mimetype]["schema"]
    validator(schema).validate(answer.json)
    return answer.json


def members(schema_name: str) -> set[str]:
    return set(DOCUMENT["components"]["schemas"][schema_name]["properties"])


@pytest.mark.usefixtures("lane")
def test_streams_are_what_the_document_says(api: Api, media_server: MediaServer, make_key):
    key = make_key(label="Cam 7", metadata='{"a": [1, null]}')
    media_server.go_live(key)
    (live,) = conforms(api.get("/streams"), "listStreams")["streams"]
    (filtered,) = conforms(api.get("/streams?path=live/cam7"), "listStreams")["streams"]
    assert live.keys() == filtered.keys() == members("ListedStream")
    alone = conforms(api.get(f"/streams/{live['id']}"), "getStream")
    assert alone.keys() == members("LoneStream")
    changed = conforms(api.patch(f"/streams/{live['id']}", json={"recording_ref": "x"}), "changeStream")
    assert changed == alone | {"recording_ref": "x"}
    assert api.delete(f"/streams/{live['id']}").status_code == 204
    page = conforms(api.get("/streams?status=all&limit=1"), "listStreams")
    assert page.keys() == members("StreamPage")
    (ended,) = page["streams"]
    assert ended.keys() == members("ListedStream")
    assert (ended["status"], ended["end_reason"]) == ("ended", "stopped")


def test_keys_and_broadcasters_are_what_the_document_says(api: Api):
    broadcaster = conforms(api.post("/broadcasters", json={"display_name": "Boat 3"}), "createBroadcaster")
    assert broadcaster.keys() == members("Broadcaster")
    assert conforms(api.get("/broadcasters"), "listBroadcasters")["broadcasters"] == [broadcaster]
    minted = conforms(
        api.post("/stream-keys", json={"broadcaster_id": broadcaster["id"], "expires_at": "2030-01-01T00:00:00+02:00"}),
        "createStreamKey",
    )
    assert minted.keys() == members("MintedStreamKey")
    assert minted["publish"].keys() == members("Publish")
    (key,) = conforms(api.get("/stream-keys"), "listStreamKeys")["stream_keys"]
    assert key.keys() == members("StreamKey")
    assert key == conforms(api.get(f"/stream-keys/{key['id']}"), "getStreamKey")


def test_api_clients_are_what_the_document_says(api: Api):
    made = conforms(api.post("/api-clients", json={"name": "Watch page", "scope": "read"}), "createApiClient")
    assert made.keys() == members("MadeAPIClient")
    (listed,) = conforms(api.get("/api-clients"), "listApiClients")["api_clients"]
    assert listed.keys() == members("APIClient")
    assert listed == conforms(api.get(f"/api-clients/{made['id']}"), "getApiClient")
    conforms(api.patch(f"/api-clients/{made['id']}", json={"scope": "admin"}), "changeApiClient")


def test_nodes_are_what_the_document_says(api: Api, conn):
    conn.execute(
        """
        INSERT INTO nodes (node, unclaimed) VALUES ('default', '[{"path": "live/a", "source_type": "rtmpConn",
            "source_id": "7", "since": "2026-07-03T09:41:06.882104Z", "is_newcomer": true}]')
        """
    )
    (node,) = conforms(api.get("/nodes"), "listNodes")["nodes"]
    assert node.keys() == members("MediaServer")
    assert node["unclaimed"][0].keys() == members("Unclaimed")


def test_probes_are_what_the_document_says(client):
    for path, name in (("/livez", "isAlive"), ("/health", "isHealthy"), ("/readyz", "isReady")):
        conforms(client.get(path), name)


# --- the pages ---


def test_the_document_is_served_to_everybody_and_kept(client):
    answer = client.get("/openapi.json")
    assert (answer.status_code, answer.mimetype, answer.json) == (200, contract.JSON, DOCUMENT)
    again = client.get("/openapi.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", answer.headers["ETag"])
    assert client.get("/openapi.json", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_page_loads_what_this_service_serves_and_nothing_else(client):
    page = client.get("/docs")
    assert (page.status_code, page.mimetype) == (200, "text/html")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len([path for path in loaded if path.startswith("/docs/")]) == 4
    for path in loaded:
        if path == "data:,":
            continue
        answer = client.get(path)
        assert answer.status_code == 200
        if path.startswith("/docs/"):
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert answer.mimetype == ("text/css" if path.endswith(".css") else "text/javascript")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "http" not in policy
    assert "<script>" not in page.text


def test_a_file_has_one_address(client):
    path = re.findall(r'src="([^"]+)"', client.get("/docs").text)[0]
    digest = path.split("/")[2]
    problem(client.get(path.replace(digest, "0" * 16)), "not-found", 404)
    problem(client.get(f"/docs/{digest}/index.html"), "not-found", 404)


def test_behind_a_prefix_the_page_finds_its_files(make_app):
    client = make_app(TRUSTED_PROXIES="127.0.0.1").test_client()
    page = client.get("/docs", headers={"X-Forwarded-Prefix": "/live"})
    paths = re.findall(r'(?:src|href|data-contract)="(/[^"]+)"', page.text)
    assert paths
    assert all(path.startswith("/live/") for path in paths)


@pytest.mark.parametrize("slug", TABLE)
def test_a_problem_has_a_page_for_browsers_and_text_for_others(slug, client):
    kind = TABLE[slug]
    text = client.get(f"/errors/{slug}", headers={"Accept": "*/*"})
    assert (text.status_code, text.mimetype) == (200, "text/plain")
    for told in (kind.title, str(kind.status), slug, kind.meaning, kind.mend, kind.operator):
        assert told in text.text
    page = client.get(f"/errors/{slug}", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert (page.status_code, page.mimetype, page.headers["Vary"]) == (200, "text/html", "Accept")
    bare = re.sub(r"</?code>", "", page.text)
    for told in (kind.title, kind.meaning, kind.mend, kind.operator):
        assert told.replace("`", "").replace("'", "&#39;") in bare


def test_the_index_has_every_problem(client):
    text = client.get("/errors").text
    page = client.get("/errors", headers={"Accept": "text/html"}).text
    for slug, kind in TABLE.items():
        assert re.search(rf"^{kind.status}  {slug} ", text, re.MULTILINE)
        assert f'href="/errors/{slug}"' in page


@pytest.mark.parametrize("slug", TABLE)
def test_what_an_operator_is_told_to_look_at_is_there(slug):
    told = TABLE[slug].operator
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "streamorch").rglob("*.py"))
    for setting in re.findall(r"`([A-Z]+_[A-Z_]+)`", told):
        assert f'("{setting}"' in code
    for line in re.findall(r"`([a-z]+( [a-z]+)+)`", told):
        assert f'"{line[0]}"' in code or line[0] == "streamorch mediamtx-config"
    known = {(method, path) for method, path, _ in OPERATIONS.values()}
    for method, path in re.findall(r"(GET|POST|PATCH|DELETE) (/[a-z{}_/-]+)", told):
        assert (method, path) in known


def test_a_secret_is_in_no_page(make_app):
    client = make_app(MEDIAMTX_CALLBACK_SECRET="callback-secret-7").test_client()
    for path in ("/openapi.json", "/docs", "/errors"):
        text = client.get(path).text
        assert API_SECRET not in text
        assert "callback-secret-7" not in text

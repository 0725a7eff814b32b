"""The page about the system: what is well and what is not, the doctor, the settings, and who changed what."""

import html
import re
import time
import uuid

import psycopg
import pytest
import requests
from playwright.sync_api import Page, expect

from streamorch import __version__, doctor, keys
from streamorch.blueprints.console import system
from streamorch.doctor.facts import Finding
from streamorch.mediamtx import ControlAPI
from streamorch.reconciler import Reconciler
from streamorch.repositories import audit, connect
from streamorch.settings import Settings
from tests.conftest import API_SECRET, MediaServer
from tests.console import Visitor
from tests.console.test_keys import NOBODY, XSS, found, reader, text

__all__ = ["reader"]

WHERE = "/console/system"
JSON = {"Accept": "application/json"}
SECRETS = {
    "API_SECRET": f"{API_SECRET},older-api-secret",
    "MEDIAMTX_CALLBACK_SECRET": "hush-callback,hush-older-callback",
    "HISTORY_DAYS": "90",
    "METRICS_SECRET": "hush-metrics",
    "READ_POLICY": "secret",
    "READ_SECRET": "hush-read",
    "MEDIAMTX_API_PASSWORD": "hush-control",
    "MEDIAMTX_RTSP_URL": "rtsp://somebody:hush-url@media.example:8554",
}
OFF = {f"MEDIAMTX_{name}_URL": "off" for name in ("HLS", "WEBRTC", "RTMP", "RTSP", "SRT")}


@pytest.fixture
def helper(api, app) -> Visitor:
    """Somebody with the scope operate."""
    visitor = Visitor(app)
    assert visitor.sign_in(api.post("/api-clients", json={"name": "Desk", "scope": "operate"}).json["secret"])
    return visitor


@pytest.fixture
def tick(make_settings, database_url, fake):
    """One look of a reconciler at the media server."""

    def one() -> None:
        settings = make_settings(MEDIAMTX_API_URL=fake.url)
        api = ControlAPI(fake.url, user=settings.mediamtx_api_user, password=settings.mediamtx_api_passwords[0])
        with connect(database_url) as conn:
            Reconciler(settings, api).tick(conn, force=True)

    return one


@pytest.mark.own_database
def test_what_is_well_and_what_was_never_heard_of(operator):
    shown = text(operator.get(WHERE))
    assert "Service answers" in shown
    assert f"streamorch {__version__}" in shown
    assert "Database answers" in shown
    assert re.search(r"Round trip \d+\.\d\d ms PostgreSQL \d+", shown)
    assert "Schema that of this release" in shown
    assert re.search(r"Pool of this worker \d of \d open, \d free, 0 waiting", shown)
    assert "Media server never heard of" in shown
    assert "Reconciler nobody leads" in shown
    assert "Lead nobody had it yet" in shown


def test_what_the_reconciler_found(operator, tick, fake):
    fake.publish("live/stray", live=True)
    tick()
    shown = text(operator.get(WHERE))
    assert "Media server answers" in shown
    assert f"MediaMTX {fake.version}" in shown
    assert "Reconciler at work" in shown
    assert re.search(r"Lead number \d+", shown)
    assert "Last look never" not in shown


def test_who_publishes_without_a_claim_is_named_as_text(operator, tick, fake, conn):
    tick()
    conn.execute(
        "UPDATE nodes SET unclaimed = jsonb_build_array(jsonb_build_object('path', %s::text, 'source_type', %s::text,"
        " 'source_id', %s::text, 'since', '2026-01-31T12:00:00.000000Z')), version = %s",
        [XSS, XSS, XSS, XSS[:32]],
    )
    shown = operator.get(WHERE).text
    assert "1 live without a claim" in shown
    assert shown.count("&lt;img src=x") == 4
    assert "<img src=x" not in shown


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("refused", "Media server not there"),
        ("silent", "Media server silent"),
        ("unauthorized", "Media server does not let us in"),
    ],
)
def test_each_state_of_the_media_server_is_told(state, told, operator, tick, conn):
    tick()
    conn.execute("UPDATE nodes SET api_state = %s", [state])
    assert told in text(operator.get(WHERE))


def test_without_a_database_the_page_says_so(make_app):
    visitor = Visitor(make_app(DATABASE_URL="postgresql://127.0.0.1:9/nowhere?connect_timeout=1"))
    visitor.sign_in()
    shown = visitor.get(WHERE)
    assert shown.status_code == 200
    assert "Database does not answer" in text(shown)
    assert "They are in the database, which cannot be asked now." in shown.text
    assert "REFUSALS_PER_MINUTE" in shown.text
    state = visitor.get(f"{WHERE}/state", headers=JSON)
    assert "does not answer" in state.get_json()["html"]


@pytest.mark.own_database
@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("DELETE FROM streamorch_migrations WHERE name LIKE '0007%'", "Not applied: 0007_audit"),
        ("UPDATE streamorch_migrations SET checksum = 'x' WHERE name LIKE '0007%'", "Schema of another release"),
        ("ALTER DATABASE {} SET default_transaction_read_only = on", "Database read only"),
    ],
)
def test_what_is_wrong_with_the_database_is_told(statement, told, make_app, database_url, conn):
    with psycopg.connect(database_url, autocommit=True) as admin:
        name = psycopg.sql.Identifier(admin.info.dbname)
        admin.execute(psycopg.sql.SQL(statement).format(name))
    visitor = Visitor(make_app())
    visitor.sign_in()
    shown = visitor.get(WHERE)
    assert shown.status_code == 200
    assert told in text(shown)


def test_settings_are_shown_and_no_secret(make_app):
    visitor = Visitor(make_app(**SECRETS))
    visitor.sign_in()
    answer = visitor.get(WHERE)
    shown = text(answer)
    assert "API_SECRET 2 are set" in shown
    assert "MEDIAMTX_CALLBACK_SECRET 2 are set" in shown
    assert "METRICS_SECRET set" in shown
    assert "HISTORY_DAYS 90" in shown
    assert "READ_SECRET set" in shown
    assert "RTSP rtsp://media.example:8554" in shown
    for secret in (API_SECRET, "older-api-secret", "hush", "somebody"):
        assert secret not in answer.text


def test_what_an_operator_should_know_is_said(operator):
    shown = text(operator.get(WHERE))
    assert "MEDIAMTX_CALLBACK_SECRET not set" in shown
    assert "MEDIAMTX_CALLBACK_SECRET is not set: whoever reaches this port may play the media server." in shown


# --- the doctor -----------------------------------------------------------------------------------------------


FINDINGS = [
    Finding("settings", "ok", "they can be read"),
    Finding("auth-exclude", "wrong", f"anybody may publish {XSS}", "in mediamtx.yml:\n  authHTTPExclude: []"),
    Finding(
        "url-rtsp",
        "wrong",
        "it is shown, and MediaMTX has it off",
        "in mediamtx.yml:\n  pathDefaults:\n    rtsp: yes\nor in the environment: MEDIAMTX_RTSP_URL=off",
    ),
    Finding("heard", "warning", "nothing was heard", "run: streamorch mediamtx-config > mediamtx.yml"),
    Finding("hooks", "skipped", "it does not answer"),
    Finding("control-api", "unknown", "it is odd", "look at the log of MediaMTX"),
]


@pytest.fixture
def findings(monkeypatch):
    asked = []

    def examine(settings: Settings) -> list[Finding]:
        asked.append(settings)
        return list(FINDINGS)

    monkeypatch.setattr(doctor, "examine_running", examine)
    return asked


def test_the_doctor_tells_what_is_wrong_and_what_mends_it(operator, findings):
    shown = operator.get(f"{WHERE}/doctor")
    assert "2 things are wrong." in text(shown)
    assert "<img src=x" not in shown.text
    told = {
        html.unescape(place): html.unescape(lines)
        for place, lines in re.findall(r'<span class="label">(.*?)</span><pre[^>]*>(.*?)</pre>', shown.text, re.DOTALL)
    }
    assert told == {
        "In mediamtx.yml": "pathDefaults:\n  rtsp: yes",
        "In the environment": "MEDIAMTX_RTSP_URL=off",
        "Run": "streamorch mediamtx-config > mediamtx.yml",
    }
    assert ">authHTTPExclude: []</pre>" in shown.text
    assert "<p>look at the log of MediaMTX</p>" in shown.text
    states = re.findall(r'<h3><span class="chip \w+">(\w+)<', shown.text)
    assert states == ["wrong", "wrong", "unknown", "warning", "skipped", "fine"]
    assert "1 fine" in shown.text
    script = operator.get(f"{WHERE}/doctor", headers=JSON).json["html"]
    assert "2 things are wrong." in script
    assert "<html" not in script


def test_the_doctor_looks_with_the_settings_of_the_service(make_app, fake):
    app = make_app(MEDIAMTX_API_URL=fake.url, API_PORT="9", CALLBACK_URL="http://127.0.0.1:9", **OFF)
    visitor = Visitor(app)
    visitor.sign_in()
    before = time.monotonic()
    shown = text(visitor.get(f"{WHERE}/doctor"))
    assert time.monotonic() - before < 15
    assert re.search(r"wrong service ", shown)  # nobody listens on that port
    assert re.search(r"fine database-schema ", shown)
    assert re.search(r"fine control-api ", shown)
    assert API_SECRET not in shown


def test_only_one_doctor_is_at_work(operator, findings):
    with system._AT_WORK:
        busy = operator.get(f"{WHERE}/doctor", headers=JSON)
    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "10")
    assert not findings
    assert operator.get(f"{WHERE}/doctor", headers=JSON).status_code == 200


def test_a_doctor_that_fails_is_free_for_the_next(operator, monkeypatch):
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "examine_running", broken)
    assert operator.get(f"{WHERE}/doctor").status_code == 500
    monkeypatch.setattr(doctor, "examine_running", lambda _: FINDINGS[:1])
    assert "Nothing is wrong." in operator.get(f"{WHERE}/doctor").text


def test_a_service_with_one_thread_does_not_ask_itself(make_app, findings):
    visitor = Visitor(make_app(API_THREADS="1", WEB_CONCURRENCY="1"))
    visitor.sign_in()
    assert "data-doctor" not in visitor.get(WHERE).text
    assert visitor.get(f"{WHERE}/doctor").status_code == 409
    assert not findings


# --- who may see what -----------------------------------------------------------------------------------------


@pytest.fixture
def unread(monkeypatch):
    """An audit trail that nobody may read."""

    def read(*_: object, **__: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(audit, "page", read)


@pytest.mark.usefixtures("unread")
def test_whoever_may_only_look_has_no_doctor_and_no_audit_trail(reader, findings):
    shown = reader.get(WHERE)
    assert shown.status_code == 200
    assert "data-doctor" not in shown.text
    assert "Changes" not in text(shown)
    assert "API_SECRET" in shown.text
    refused = reader.get(f"{WHERE}/doctor")
    assert refused.status_code == 403
    assert not findings
    assert "Changes" not in text(reader.get(f"{WHERE}?kind=api_client"))


@pytest.mark.usefixtures("unread")
def test_whoever_may_operate_has_the_doctor_and_no_audit_trail(helper, findings):
    shown = helper.get(WHERE)
    assert "data-doctor" in shown.text
    assert "Changes" not in text(shown)
    assert helper.get(f"{WHERE}/doctor").status_code == 200


# --- changes --------------------------------------------------------------------------------------------------


def test_before_anything_was_changed_the_page_says_what_will_be_there(operator):
    assert "Nothing was changed yet" in operator.get(WHERE).text


def test_changes_tell_who_what_before_and_after(operator, api):
    owner = api.post("/broadcasters", json={"display_name": "Team 7", "metadata": {"boat": 3}}).json["id"]
    api.patch(f"/broadcasters/{owner}", json={"display_name": "Team 8"})
    key = api.post("/stream-keys", json={"broadcaster_id": owner, "label": "Helmet"}).json
    api.patch(f"/stream-keys/{key['id']}", json={"expires_at": "2031-01-31T12:00:00Z"})
    client = api.post("/api-clients", json={"name": "Wall", "scope": "read"}).json
    answer = operator.get(WHERE)
    shown = text(answer)
    assert "API_SECRET from 127.0.0.1 update broadcaster" in shown
    assert "<del>Team 7</del> → <ins>Team 8</ins>" in answer.text
    assert "disabled" not in shown  # which nobody said of it
    assert '<ins>{"boat":3}</ins>' in html.unescape(answer.text)
    assert f'href="/console/broadcasters/{owner}"' in answer.text
    assert f'href="/console/keys/{key["id"]}"' in answer.text
    assert "create api client" in shown
    for secret in (key["key_value"], client["secret"], API_SECRET):
        assert secret not in answer.text
    one = operator.get(f"{WHERE}?subject_id={key['id']}").text
    assert (one.count('data-label="Who"'), "Helmet" in one, "Team 8" in one) == (2, True, False)
    assert '<del>nothing</del> → <ins><time datetime="2031-01-31T12:00:00' in one
    kind = operator.get(f"{WHERE}?kind=broadcaster").text
    assert kind.count('data-label="Who"') == 2
    assert "No change is like that" in operator.get(f"{WHERE}?who=nobody").text
    assert operator.get(f"{WHERE}?kind=odd").status_code == 400
    assert operator.get(f"{WHERE}?subject_id=odd").status_code == 400
    assert operator.get(f"{WHERE}?subject_id={NOBODY}").status_code == 200


def test_a_stopped_stream_leads_to_its_page(operator, api, client, make_key):
    MediaServer(client).go_live(make_key())
    (stream,) = api.get("/streams").json["streams"]
    api.delete(f"/streams/{stream['id']}")
    assert f'href="/console/streams/{stream["id"]}"' in operator.get(f"{WHERE}?kind=stream").text


def test_older_changes_are_on_the_next_page(operator, api, monkeypatch):
    monkeypatch.setattr(system, "_CHANGES", 2)
    for number in range(3):
        api.post("/broadcasters", json={"display_name": f"Team {number}"})
    first = operator.get(f"{WHERE}?kind=broadcaster")
    older = html.unescape(found(r'rel="next" href="([^"]+)#changes"', first.text))
    assert [re.findall(r"Team \d", page.text) for page in (first, operator.get(older))] == [
        ["Team 2", "Team 1"],
        ["Team 0"],
    ]


def test_texts_are_texts_and_a_key_among_them_is_blotted_out(operator, api, conn):
    key = keys.mint()
    metadata = {XSS: [XSS, {"a": None}], "key": key}
    owner = api.post("/broadcasters", json={"display_name": XSS, "metadata": metadata}).json["id"]
    api.post("/api-clients", json={"name": XSS, "scope": "read"})
    api.patch(f"/broadcasters/{owner}", json={"display_name": f"{XSS} {key}"})
    assert "<img src=x" not in operator.get(WHERE, query_string={"who": XSS}).text
    # The triggers blot keys out; a row that came another way may have one.
    conn.execute(
        "UPDATE audit SET before = jsonb_build_object('display_name', %s::text) WHERE action = 'update'",
        [f"{XSS} {key}"],
    )
    shown = operator.get(WHERE, query_string={"who": ""}).text
    assert shown.count("&lt;img src=x") >= 6
    assert "<img src=x" not in shown
    assert "<script>" not in shown
    assert key not in shown
    assert shown.count("[redacted]") >= 2


def test_what_the_page_draws_again_is_what_it_has(operator, tick):
    tick()
    part = operator.get(f"{WHERE}/state", headers=JSON).json["html"]
    headings = r'<h2 id="([^"]+)'
    assert re.findall(headings, part) == ["service-title", "database-title", "node-1", "reconciler-1"]
    assert set(re.findall(headings, part)) < set(re.findall(headings, operator.get(WHERE).text))


@pytest.mark.browser
@pytest.mark.slow
class TestInABrowser:
    def test_the_doctor_is_asked_by_keyboard_and_a_line_copied(self, open_page, accessible):
        page: Page = open_page("/console/system", permissions=["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Have the doctor look").focus()
        page.keyboard.press("Enter")
        said = page.locator("[data-doctor-said]")
        expect(said).to_contain_text("wrong.", timeout=20_000)
        expect(page.get_by_role("button", name="Have the doctor look")).to_be_focused()
        accessible(page)
        finding = page.locator("[data-findings] li").filter(has=page.get_by_role("button", name="Copy")).first
        finding.get_by_role("button").first.click()
        expect(page.locator("#said")).to_contain_text("copied")
        lines = finding.locator("pre").first.evaluate("place => place.textContent")
        assert page.evaluate("navigator.clipboard.readText()") == lines
        assert API_SECRET not in page.content()

    def test_the_state_follows(self, open_page, running, media_server):
        page: Page = open_page("/console/system")
        expect(page.get_by_role("heading", name="Reconciler at work")).to_be_visible()
        expect(page.get_by_role("heading", name="Media server answers")).to_be_visible()
        media_server.refuse()
        try:
            expect(page.get_by_role("heading", name="Media server not there")).to_be_visible(timeout=20_000)
        finally:
            media_server.heal()
        expect(page.get_by_role("heading", name="Media server answers")).to_be_visible(timeout=20_000)

    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize(
        ("room", "seconds"), [("history", 1), ("refusals", 3), ("clients", 1), ("clients/new", 1), ("system", 6)]
    )
    def test_nothing_jumps(self, room, seconds, width, open_page):
        """As long as it takes a page to ask again. (A figure that becomes longer may take another line on a phone.)"""
        page: Page = open_page(f"/console/{room}", viewport={"width": width, "height": 800})
        shifts = page.evaluate(
            """seconds => new Promise(done => {
                const found = [];
                new PerformanceObserver(list => found.push(...list.getEntries().map(shift => shift.value)))
                    .observe({type: "layout-shift", buffered: true});
                setTimeout(() => done(found), seconds * 1000);
            })""",
            seconds,
        )
        assert sum(shifts) < 0.05  # of 0.1, up to which browsers' makers call it good

    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_everybody_can_use_it(self, width, scheme, open_page, accessible, running):
        requests.post(
            f"{running.url}/broadcasters",
            headers={"Authorization": f"Bearer {API_SECRET}"},
            json={"display_name": f"Team {uuid.uuid4()}", "metadata": {"a": "x" * 300}},
            timeout=10,
        ).raise_for_status()
        page: Page = open_page("/console/system", viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.get_by_text("Those that matter").click()
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width

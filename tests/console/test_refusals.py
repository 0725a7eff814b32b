"""Who was refused and why: the sentence for the phone, the filters, and the list that goes on by itself."""

import html
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from streamorch import keys, problems
from streamorch.blueprints.console import refusals, refused
from streamorch.repositories import decisions
from streamorch.repositories.decisions import Refusal
from tests.conftest import API_SECRET
from tests.console import Visitor
from tests.console.test_keys import NOBODY, XSS, encoder, found, reader, text
from tests.running import ROOT
from tests.test_decisions import REASONS, eventually

__all__ = ["encoder", "reader"]

WHERE = "/console/refusals"
TEMPLATES = ROOT / "streamorch" / "templates" / "console"
AGO = datetime(2026, 1, 31, 12, tzinfo=UTC)
JSON = {"Accept": "application/json"}
SENTENCES = {
    "invalid-stream-key": r"There is no such key\.",
    "stream-key-revoked": r"The key was revoked at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \.",
    "stream-key-expired": r"The key expired at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \.",
    "stream-key-disabled": r"The key was disabled\.",
    "broadcaster-disabled": r"The broadcaster of the key was disabled\.",
    "stream-stopped": r"An operator stopped its stream\. The key is on hold until \d{4}-.+? UTC \.",
    "path-not-allowed": r"The key is bound to the path live/other\.",
    "path-in-use": r"The path belongs to another key, or a stream of another key was live on it\.",
    "stream-key-in-use": r"Another stream of the same key was live, or about to be\.",
    "unauthorized": r"It sent no stream key\.",
}


# Each thing to do: what was decided, and how the key is now; without columns there was no key.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "invalid-stream-key": ("invalid-stream-key", {}, None),
    "stream-key-revoked": ("stream-key-revoked", {}, {"revoked_at": AGO}),
    "value-replaced": ("stream-key-revoked", {}, {}),
    "stream-key-expired": ("stream-key-expired", {}, {"expires_at": AGO}),
    "stream-key-disabled": ("stream-key-disabled", {}, {"disabled_at": AGO}),
    "broadcaster-disabled": ("broadcaster-disabled", {}, {}),
    "stream-stopped": ("stream-stopped", {}, {"hold_until": datetime(2100, 1, 1, tzinfo=UTC)}),
    "stream-key-in-use": ("stream-key-in-use", {}, {}),
    "path-in-use": ("path-in-use", {}, {}),
    "path-not-allowed": ("path-not-allowed", {}, {"path": "live/other"}),
    "path-of-nobody": ("path-not-allowed", {}, None),
    "unauthorized": ("unauthorized", {}, None),
    "watching": ("unauthorized", {"action": "read"}, None),
    "no-encoder": ("unauthorized", {"action": "metrics"}, None),
    "rate-limited": ("rate-limited", {}, None),
    "database-unavailable": ("database-unavailable", {}, None),
    "over": ("stream-key-disabled", {}, {}),
}


def said(case: str) -> tuple[str, str]:
    """What caller and operator are told, the places by their names."""
    told = refused.TO_DO[case]
    places = {
        "keys": "keys",
        "new_key": "new key",
        "key": "the page of the key",
        "broadcaster": "the page of the broadcaster",
        "rival": "the stream in the way",
        "path": "what is live on the path",
        "address": "the refusals of this address",
        "system": "System",
    }
    slug = case if case in problems.TABLE else CASES[case][0]
    caller = told.caller or problems.TABLE[slug].mend
    return caller.replace("`", ""), told.operator.format(**places).replace("`", "")


def to_do(answer) -> tuple[str, str]:
    """What stands under the first row."""
    caller, operator = re.findall(r"<p><b>The (?:caller|operator):</b> (.*?)</p>", answer.text)[:2]
    return tuple(html.unescape(re.sub("<[^>]+>", "", told)) for told in (caller, operator))  # type: ignore[return-value]


def ids(answer) -> list[str]:
    """The rows, from above."""
    return re.findall(r'<tr data-id="([^"]+)"', answer.text)


@pytest.fixture
def note(conn):
    """Writes down a refusal, some seconds old."""
    numbers = iter(range(1000))

    def one(outcome="invalid-stream-key", **told) -> None:
        members: dict[str, Any] = {"age": 100.0 - next(numbers), "action": "publish"} | told
        decisions.note(conn, [Refusal(outcome, **members)])

    return one


def test_before_anybody_was_refused_the_page_says_what_will_be_there(operator):
    assert "Nobody was refused" in operator.get(WHERE).text


def test_a_value_that_was_replaced_is_told_from_a_key_that_was_revoked(operator, encoder, api, make_key):
    key = make_key()
    assert api.post(f"/stream-keys/{key.id}/rotate", json={"overlap_seconds": 0}).status_code == 201
    assert encoder.ask(key).status_code == 401
    eventually(lambda: api.get("/decisions?outcome=refused").json["decisions"])
    shown = text(operator.get(WHERE))
    assert re.search(r"The encoder has a value of the key that was replaced at \d{4}-\d\d-\d\d \d\d:", shown), shown


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_is_a_sentence_with_what_to_do(reason, operator, encoder, api, make_key, make_broadcaster):
    key = REASONS[reason](make_key=make_key, make_broadcaster=make_broadcaster, media_server=encoder)
    assert encoder.ask(key, ip="198.51.100.7", userAgent="OBS/31").status_code == 401
    eventually(lambda: api.get("/decisions?outcome=refused").json["decisions"])
    answer = operator.get(WHERE)
    shown = text(answer)
    assert re.search(SENTENCES[reason], shown), shown
    assert "198.51.100.7" in shown
    assert "OBS/31" in shown
    assert to_do(answer) == said(reason)
    if hasattr(key, "id"):
        assert f'href="/console/keys/{key.id}"' in answer.text
        assert f'href="/console/broadcasters/{key.broadcaster_id}"' in answer.text
    if reason in ("path-in-use", "stream-key-in-use"):
        (rival,) = api.get("/streams?status=all").json["streams"]
        assert f'href="/console/streams/{rival["id"]}">The stream in the way: <code>live/cam7</code>' in answer.text
    assert getattr(key, "value", API_SECRET) not in answer.text


def test_every_problem_that_may_be_noted_has_a_sentence_of_its_own():
    assert set(REASONS) <= set(refused.REASONS) <= set(problems.TABLE)


def test_every_reason_has_what_to_do_and_nothing_is_left_over():
    assert set(refused.REASONS) <= set(CASES) == set(refused.TO_DO)


@pytest.mark.parametrize("case", CASES)
def test_what_to_do_is_said_in_the_words_of_the_console_and_leads_there(case, operator, note, make_key, encoder, conn):
    outcome, members, columns = CASES[case]
    encoder.go_live(make_key(), "live/seven")
    (rival,) = conn.execute("SELECT id FROM streams").fetchone()
    key = None if columns is None else make_key(**columns)
    known = {"stream_key_id": key.id} if key else {}
    note(outcome, path="live/seven", remote_address="192.0.2.7", rival_id=rival, **known, **members)
    answer = operator.get(WHERE)
    assert to_do(answer) == said(case)
    told = found(r"<details>(.+?)</details>", answer.text)
    assert not re.search(r"\b(GET|POST|PATCH|DELETE) |\blog line|hook|LEASE|Retry-After|\{", told)
    links = dict(re.findall(r'<a href="([^"]+)">(.+?)</a>', told))
    assert bool(links) == (case != "over")
    for link in links:
        assert operator.get(html.unescape(link)).status_code == 200, link
    if key:
        assert links.get(f"/console/keys/{key.id}", "the page of the key") == "the page of the key"
        assert ("{key}" in refused.TO_DO[case].operator) == (f"/console/keys/{key.id}" in links)
    if case == "broadcaster-disabled" and key:
        assert f"/console/broadcasters/{key.broadcaster_id}" in links
    if case == "stream-key-revoked" and key:
        assert f"/console/keys/new?broadcaster_id={key.broadcaster_id}" in links


@pytest.mark.parametrize("case", CASES)
def test_what_a_text_calls_a_button_is_on_a_page(case):
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted(TEMPLATES.glob("*.html")))
    for name in re.findall('"([^"]+)"', refused.TO_DO[case].operator):
        assert re.search(rf'["> ]{re.escape(name)}[<" ]', pages), name


def test_what_to_do_leads_nowhere_that_is_not_known(operator, note):
    note("stream-key-in-use", stream_key_id=uuid.UUID(NOBODY), rival_id=uuid.UUID(NOBODY))
    assert to_do(operator.get(WHERE)) == said("stream-key-revoked")
    note("stream-key-in-use", rival_id=uuid.UUID(NOBODY))
    note("path-in-use")
    note("broadcaster-disabled")
    for told in re.findall(r"<details>(.+?)</details>", operator.get(WHERE).text):
        assert not re.search(r'"/console/(keys|streams|broadcasters)/(?!new)|path=', told)


def test_who_was_let_in_and_what_nobody_knows_has_nothing_to_do(operator, note, encoder, make_key, conn):
    encoder.ask(make_key())
    conn.execute("UPDATE stream_keys SET revoked_at = clock_timestamp()")
    for outcome in ("refused", "from-a-later-release", "internal-error"):
        note(outcome)
    shown = operator.get(f"{WHERE}?outcome=all")
    assert len(ids(shown)) == 4
    assert "What to do" not in shown.text


@pytest.mark.parametrize(
    ("outcome", "columns", "case"),
    [
        ("stream-key-disabled", {"revoked_at": AGO}, "stream-key-revoked"),
        ("stream-key-in-use", {"revoked_at": AGO}, "stream-key-revoked"),
        ("stream-key-expired", {}, "over"),
        ("stream-stopped", {"hold_until": AGO}, "over"),
        ("path-not-allowed", {}, "over"),
        ("path-not-allowed", {"path": "live/cam7"}, "over"),
    ],
)
def test_what_to_do_goes_by_what_the_key_is_now(outcome, columns, case, operator, note, make_key):
    note(outcome, stream_key_id=make_key(**columns).id, path="live/cam7")
    assert to_do(operator.get(WHERE)) == said(case)


@pytest.mark.parametrize(
    ("outcome", "columns", "told"),
    [
        ("stream-key-expired", {"expires_at": None}, "The key had expired; it does not expire any more."),
        (
            "stream-key-expired",
            {"expires_at": AGO + timedelta(days=9999)},
            "The key had expired; it was extended until",
        ),
        ("stream-key-disabled", {}, "The key was disabled; it is enabled now."),
        ("stream-key-disabled", {"disabled_at": AGO}, "The key was disabled."),
        ("stream-stopped", {}, "An operator stopped its stream, and the key was on hold; that is over."),
        ("path-not-allowed", {}, "Nobody may publish to this path, or not with this key."),
        ("refused", {}, "Refusals from very many addresses"),
        ("rate-limited", {}, "It went on and on with keys that do not exist"),
        ("database-unavailable", {}, "The database did not answer"),
        ("internal-error", {}, problems.TABLE["internal-error"].meaning),
        ("from-a-later-release", {}, "from-a-later-release"),
    ],
)
def test_the_sentence_knows_what_has_changed_since(outcome, columns, told, operator, note, make_key):
    note(outcome, stream_key_id=make_key(**columns).id, path="live/cam7")
    assert told in text(operator.get(WHERE))


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("publish", "It sent no stream key."),
        ("read", "It wanted to watch, and READ_POLICY does not let it."),
        ("api", "It wanted what only we may, with a credential that is not right (api)."),
    ],
)
def test_who_was_refused_need_not_have_been_a_publisher(action, told, operator, note):
    note("unauthorized", action=action)
    assert told in text(operator.get(WHERE))


def test_a_key_that_is_gone_has_no_link(operator, note):
    note("stream-key-revoked", stream_key_id=uuid.UUID(NOBODY), hint="abcd", rival_id=uuid.UUID(NOBODY), left_out=7)
    shown = operator.get(WHERE)
    assert "The key was revoked. And 7 more like it." in text(shown)
    assert "…abcd" in shown.text
    assert "/console/keys/0000" not in shown.text


def test_a_key_whose_broadcaster_was_deleted_has_no_link(operator, encoder, api, note, make_key):
    key = make_key()
    api.delete(f"/broadcasters/{key.broadcaster_id}")
    note("stream-key-revoked", stream_key_id=key.id, hint="abcd")
    shown = operator.get(WHERE)
    assert "…abcd" in shown.text
    for gone in (f"/console/keys/{key.id}", f"/console/broadcasters/{key.broadcaster_id}"):
        assert gone not in shown.text


def test_each_filter_finds_its_own(operator, encoder, note, make_key):
    key = make_key(label="Helmet")
    encoder.ask(key, "live/in")
    note("invalid-stream-key", path="live/a", remote_address="192.0.2.1")
    note("stream-key-disabled", path="live/b", remote_address="192.0.2.2", stream_key_id=key.id)
    note("unauthorized", path="live/b", remote_address="2001:db8::1")
    for filters, outcomes in (
        ({}, ["unauthorized", "stream-key-disabled", "invalid-stream-key"]),
        ({"outcome": "", "path": ""}, ["unauthorized", "stream-key-disabled", "invalid-stream-key"]),
        ({"outcome": "claimed"}, ["claimed"]),
        ({"outcome": "all"}, ["claimed", "unauthorized", "stream-key-disabled", "invalid-stream-key"]),
        ({"outcome": "unauthorized"}, ["unauthorized"]),
        ({"path": " live/b "}, ["unauthorized", "stream-key-disabled"]),
        ({"address": "2001:db8::1"}, ["unauthorized"]),
        ({"stream_key_id": key.id}, ["stream-key-disabled"]),
        ({"stream_key_id": key.id, "outcome": "all"}, ["claimed", "stream-key-disabled"]),
        ({"path": "live/c"}, []),
    ):
        sentences = {
            "claimed": "It was let in",
            "unauthorized": "It sent no",
            "stream-key-disabled": "The key was disabled",
            "invalid-stream-key": "There is no such key",
        }
        shown = operator.get(WHERE, query_string=filters)
        found_ = re.findall("|".join(sentences.values()), text(shown))
        assert found_ == [sentences[outcome] for outcome in outcomes], filters
        assert ("Nothing like that was decided" in shown.text) == (filters != {} and any(filters.values()))
        assert ("data-rows hidden" in shown.text) == (not outcomes)
        news = html.unescape(found(r'data-news="([^"]+)"', shown.text))
        assert ids(shown) == re.findall(r'data-id="([^"]+)"', operator.get(news, headers=JSON).json["rows"])
    assert operator.get(f"{WHERE}?outcome=odd").status_code == 400
    assert operator.get(f"{WHERE}?stream_key_id=odd").status_code == 400


def test_who_was_let_in_leads_to_its_stream(operator, encoder, api, make_key):
    encoder.ask(make_key())
    (stream,) = api.get("/streams?status=pending").json["streams"]
    assert f'href="/console/streams/{stream["id"]}">Its stream' in operator.get(f"{WHERE}?outcome=all").text


def test_pages_go_on_and_only_the_first_follows(operator, note, monkeypatch):
    monkeypatch.setattr(refusals, "_PAGE", 2)
    for number in range(3):
        note(path=f"live/{number}")
    first = operator.get(WHERE)
    older = operator.get(html.unescape(found(r'rel="next" href="([^"]+)"', first.text)))
    assert (len(ids(first)), len(ids(older))) == (2, 1)
    assert not set(ids(first)) & set(ids(older))
    assert "data-news=" in first.text
    assert "data-news=" not in older.text


def test_news_are_told_once(operator, note):
    note()
    news = operator.get(f"{WHERE}/news", headers=JSON)
    assert len(re.findall("data-id", news.json["rows"])) == 1
    known = JSON | {"If-None-Match": news.headers["ETag"]}
    same = operator.get(f"{WHERE}/news", headers=known)
    assert (same.status_code, same.data) == (304, b"")
    note()
    assert len(re.findall("data-id", operator.get(f"{WHERE}/news", headers=known).json["rows"])) == 2


def test_news_want_a_session_and_tell_an_outage(make_app):
    visitor = Visitor(make_app(DATABASE_URL="postgresql://127.0.0.1:9/nowhere?connect_timeout=1"))
    assert visitor.get(f"{WHERE}/news", headers=JSON).status_code == 401
    visitor.sign_in()
    away = visitor.get(f"{WHERE}/news", headers=JSON)
    assert (away.status_code, away.content_type) == (503, "application/problem+json")
    assert visitor.get(WHERE).status_code == 503


def test_whoever_may_only_look_sees_it_all(reader, note):
    note()
    assert len(ids(reader.get(WHERE))) == 1


def test_texts_are_texts(operator, note, make_key, make_broadcaster, encoder, conn):
    key = make_key(label=XSS, broadcaster_id=make_broadcaster(display_name=XSS), path=None)
    encoder.ask(key)
    conn.execute("UPDATE streams SET path = %s", [XSS])
    (rival,) = conn.execute("SELECT id FROM streams").fetchone()
    for outcome in ("path-not-allowed", "stream-key-in-use", XSS):
        told = {"path": XSS, "user_agent": XSS, "remote_address": XSS, "protocol": XSS, "action": XSS, "hint": "<b>x"}
        note(outcome, stream_key_id=key.id, rival_id=rival, **told)
    note("unauthorized", hint="<b>x", action=XSS)
    conn.execute("UPDATE stream_keys SET path = %s", [f"other {XSS}"])
    for shown in (
        operator.get(WHERE, query_string={"path": "", "address": ""}).text,
        operator.get(WHERE, query_string={"path": XSS, "address": XSS}).text,
        operator.get(f"{WHERE}/news", headers=JSON).json["rows"],
    ):
        assert "&lt;img src=x" in shown
        assert "<img src=x" not in shown
        assert "<script>" not in shown
        assert "<b>x" not in shown


def test_no_secret_is_on_the_page(operator, encoder, api, make_key):
    key = make_key(disabled_at=AGO)
    unknown = keys.mint()
    encoder.ask(key, userAgent=f"OBS {key.value}")
    encoder.ask(unknown, f"live/{unknown}")
    eventually(lambda: len(api.get("/decisions?outcome=refused").json["decisions"]) == 2)
    shown = operator.get(WHERE).text
    for secret in (key.value, unknown, API_SECRET):
        assert secret not in shown


@pytest.mark.browser
@pytest.mark.slow
class TestInABrowser:
    @pytest.fixture
    def refuse(self, running, media_server):
        """Somebody is refused on this path; some have been before, so that no test begins with an empty page."""
        media_server.callback_url = running.url

        def one(path: str | None = None) -> str:
            path = path or f"live/{uuid.uuid4().hex}"
            publisher = media_server.publish(path, live=False)
            assert media_server.ask(publisher, keys.mint()) == 401
            media_server.leave(publisher)
            return path

        return one

    def test_a_refusal_appears_by_itself_with_its_reason(self, open_page, refuse):
        path = f"live/{uuid.uuid4().hex}"
        page: Page = open_page(f"/console/refusals?path={path}")
        expect(page.get_by_text("Nothing like that was decided")).to_be_visible()
        refuse(path)
        row = page.locator("tr.fresh")
        expect(row).to_contain_text("There is no such key.")
        expect(page.get_by_text("Nothing like that was decided")).to_be_hidden()
        expect(page.locator("[data-news-said]")).to_have_text("A new one.")
        expect(row.locator("time")).to_have_attribute("data-local", "")
        row.get_by_text("What to do").focus()
        page.keyboard.press("Enter")
        expect(row).to_contain_text("Ask the operator for a key.")
        refuse(path)
        expect(page.locator("tbody tr")).to_have_count(2)
        # What somebody reads stays as it is, below.
        expect(page.locator("tbody tr").last).to_contain_text("Ask the operator for a key.")
        expect(page.locator("tbody tr").last.locator("details")).to_have_attribute("open", "")

    def test_it_pauses_when_it_is_told_to(self, open_page, refuse):
        path = refuse()
        page: Page = open_page(f"/console/refusals?path={path}")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_role("button", name="Pause").press("Enter")
        expect(page.locator("[data-news-said]")).to_have_text("Paused.")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        refuse(path)
        with page.expect_request("**/console/alive", timeout=15_000):
            pass  # so long that news would have been asked for twice
        assert not [url for url in asked if "/refusals/news" in url]
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("tbody tr")).to_have_count(2)

    def test_it_asks_for_nothing_while_nobody_looks(self, open_page, refuse):
        path = refuse()
        page: Page = open_page(f"/console/refusals?path={path}")
        expect(page.locator("tbody tr")).to_have_count(1)
        hide = "Object.defineProperty(document, 'hidden', {{configurable: true, get: () => {}}})"
        page.evaluate(hide.format("true"))
        page.wait_for_timeout(2500)  # what had begun
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        refuse(path)
        page.wait_for_timeout(6000)
        assert asked == []
        page.evaluate(hide.format("false"))
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.locator("tbody tr")).to_have_count(2)

    def test_an_outage_is_told_and_over_again(self, open_page, refuse):
        path = refuse()
        page: Page = open_page(f"/console/refusals?path={path}")
        news = re.compile("/refusals/news")
        page.route(news, lambda route: route.fulfill(status=503, body="{}"))
        expect(page.locator("[data-news-said]")).to_have_text("New ones cannot be asked for just now.")
        refuse(path)
        page.unroute(news)
        expect(page.locator("tbody tr")).to_have_count(2)
        page.complaints.clear()  # type: ignore[attr-defined]  # of each 503

    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_everybody_can_use_it(self, width, scheme, open_page, accessible, refuse):
        path = refuse()
        page: Page = open_page("/console/refusals", viewport={"width": width, "height": 800}, color_scheme=scheme)
        expect(page.get_by_text(path)).to_be_visible()
        page.get_by_text("What to do").first.click()
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto("/console/refusals?path=nothing")
        accessible(page)

"""API clients, as whoever has the scope admin handles them; nobody else sees the page."""

import html
import re
import time
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, expect

from streamorch import callers, keys
from streamorch.blueprints.console import clients
from tests.blueprints import PAST
from tests.conftest import API_SECRET, Api
from tests.console import Visitor
from tests.console.test_keys import NOBODY, XSS, found, reader, text
from tests.console.test_system import helper

__all__ = ["helper", "reader"]

WHERE = "/console/clients"
NEW = f"{WHERE}/new"
SECRET = r'<code id="secret"[^>]*>(sc_\w{43})<'


def new_client(operator: Visitor, **fields: str) -> Any:
    given = {"name": "Watch page", "scope": "read"} | fields
    given.setdefault("id", found(r'name="id" value="(.+?)"', operator.get(NEW).text))
    return operator.post(NEW, on=NEW, headers=None, **given)


def wrong(answer: Any) -> dict[str, str]:
    """The sentences beside the fields of the form."""
    sentences = re.findall(r'role="alert" id="wrong-(\w+)">([^<]+)<', answer.text)
    return {field: html.unescape(sentence) for field, sentence in sentences}


def test_before_there_is_one_the_page_says_what_it_is_for_and_how_it_calls(operator):
    shown = operator.get(WHERE)
    assert "No API client yet" in shown.text
    assert "curl -sS 'http://localhost/streams' -H 'Authorization: Bearer SECRET'" in text(shown)
    assert f'href="{NEW}"' in shown.text


def test_a_client_is_made_and_its_secret_shown_this_once(operator, api, client):
    made = new_client(operator, name=" Watch page ", scope="operate", expires_at="2031-05-06T07:08")
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    secret = found(SECRET, made.text)
    assert f"curl -sS 'http://localhost/streams' -H 'Authorization: Bearer {secret}'" in text(made)
    (one,) = api.get("/api-clients").json["api_clients"]
    assert (one["name"], one["scope"], one["hint"]) == ("Watch page", "operate", secret[-4:])
    assert one["expires_at"] == "2031-05-06T07:08:00.000000Z"
    assert client.get("/streams", headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    (change,) = api.get("/audit?kind=api_client").json["changes"]
    assert (change["who"], change["action"]) == ("API_SECRET", "create")
    for path in (WHERE, NEW, "/console/system"):
        assert secret not in operator.get(path).text


def test_the_secret_signs_in_to_the_console(app, operator):
    visitor = Visitor(app)
    assert visitor.sign_in(found(SECRET, new_client(operator).text)).status_code == 303
    assert "client:Watch page" in visitor.get().text


def test_the_list_tells_of_each_what_is_known(operator, make_client):
    make_client("admin", name="Used", last_used_at=PAST)
    make_client("operate", name="Gone", revoked_at=PAST)
    make_client("read", name="Over", expires_at=PAST)
    shown = text(operator.get(WHERE))
    moment = PAST.strftime("%Y-%m-%d %H:%M:%S UTC")
    for told in (
        rf"Used admin …\w{{4}} active [\d-]+ [\d:]+ UTC {moment}",
        rf"Gone operate …\w{{4}} revoked {moment} [\d-]+ [\d:]+ UTC never",
        rf"Over read …\w{{4}} expired {moment} [\d-]+ [\d:]+ UTC never",
    ):
        assert re.search(told, shown), shown


def test_each_scope_is_told_in_a_sentence(operator):
    assert clients.SCOPES.keys() == set(callers.SCOPES)
    shown = text(operator.get(NEW))
    for scope, allows in clients.SCOPES.items():
        assert f"{scope} {allows}" in shown


def test_a_page_that_is_loaded_again_makes_nothing_twice(operator, api):
    one = "11111111-1111-4111-8111-111111111111"
    assert new_client(operator, id=one).status_code == 201
    again = new_client(operator, id=one)
    assert again.status_code == 409
    assert wrong(again) == {"form": clients._TWICE}
    assert "sc_" not in again.text
    assert api.get("/api-clients").json["count"] == 1


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"name": " "}, {"name"}),
        ({"name": "x" * 256}, {"name"}),
        ({"name": "a\0"}, {"name"}),
        ({"name": keys.mint_client_secret()}, {"name"}),
        ({"name": f"of {keys.mint()}"}, {"name"}),
        ({"scope": ""}, {"scope"}),
        ({"scope": "root", "name": ""}, {"scope", "name"}),
        ({"expires_at": "soon"}, {"expires_at"}),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_beside_its_field_and_nothing_is_lost(given, fields, operator, api):
    whole = {"name": "Stage", "scope": "operate", "expires_at": "2031-05-06T07:08"} | given
    refused = new_client(operator, **whole)
    assert refused.status_code == 400
    assert wrong(refused) == {field: clients._WRONG[field] for field in fields}
    for field in fields:
        assert f'aria-describedby="wrong-{field}"' in refused.text
    assert not re.search("s[ck]_[A-Za-z0-9]{9}", refused.text)
    if fields != {"name"}:
        assert ('value="Stage"' in refused.text) == (whole["name"] == "Stage")
    assert ('value="operate" required checked' in refused.text) == (whole["scope"] == "operate")
    assert api.get("/api-clients").json["count"] == 0


def test_a_name_that_is_taken_is_told_beside_it(operator, make_client):
    one = make_client(name="Stage")
    refused = new_client(operator, name="Stage", scope="admin")
    assert refused.status_code == 409
    assert wrong(refused) == {"name": clients._TAKEN}
    operator.post(f"{WHERE}/{one.id}/revoke", on=WHERE)
    assert new_client(operator, name="Stage").status_code == 201


def test_an_id_that_is_none_is_a_page(operator):
    assert new_client(operator, id="x").status_code == 400


def test_a_client_is_revoked_and_soon_out(app, operator, api, client, make_client, monkeypatch):
    one = make_client("operate", name="Stage")
    visitor = Visitor(app)
    visitor.sign_in(one.secret)
    assert "Within two seconds its secret" in text(operator.get(WHERE))
    revoked = operator.post(f"{WHERE}/{one.id}/revoke", on=WHERE)
    assert revoked.location == f"{WHERE}?told=client-revoked"
    shown = text(operator.get(revoked.location))
    assert "within two seconds its secret lets nobody in" in shown
    assert re.search(r"Stage operate …\w{4} revoked \d", shown)
    assert f"{WHERE}/{one.id}/revoke" not in operator.get(WHERE).text
    monkeypatch.setattr("streamorch.callers.FRESH_SECONDS", 0)
    assert client.get("/streams", headers=one.headers).status_code == 401
    assert visitor.get().status_code == 303
    assert operator.post(f"{WHERE}/{one.id}/revoke", on=WHERE).status_code == 303
    (entry,) = api.get(f"/audit?subject_id={one.id}&action=revoke").json["changes"]
    assert entry["who"] == "API_SECRET"


def test_whoever_revokes_its_own_is_told_before(app, make_client, monkeypatch):
    monkeypatch.setattr("streamorch.callers.FRESH_SECONDS", 0)
    mine, other = make_client("admin", name="Mine"), make_client("admin", name="Other")
    visitor = Visitor(app)
    visitor.sign_in(mine.secret)
    shown = visitor.get(WHERE).text
    warned = re.findall(
        r'<dialog id="revoke-([0-9a-f-]+)"(?:(?!</dialog>).)*?you have signed in with', shown, re.DOTALL
    )
    assert warned == [str(mine.id)]
    assert visitor.post(f"{WHERE}/{other.id}/revoke", on=WHERE).status_code == 303
    assert visitor.post(f"{WHERE}/{mine.id}/revoke", on=WHERE).status_code == 303
    assert visitor.get(WHERE).location.startswith("/console/sign-in")


@pytest.mark.parametrize("scope", ["read", "operate"])
def test_whoever_may_less_sees_no_entry_no_page_and_changes_nothing(scope, app, api, make_client):
    one = make_client(scope)
    visitor = Visitor(app)
    visitor.sign_in(one.secret)
    assert WHERE not in visitor.get().text
    for refused in (
        *(visitor.get(path) for path in (WHERE, NEW)),
        *(visitor.post(path, name="x", scope="admin") for path in (NEW, f"{WHERE}/{one.id}/revoke")),
    ):
        assert refused.status_code == 403
        assert f"This needs the scope admin, and the credential has {scope}." in refused.text
        assert one.name not in refused.text.replace(f"client:{one.name}", "")
    (left,) = api.get("/api-clients").json["api_clients"]
    assert left["status"] == "active"


def test_an_admin_that_loses_the_scope_loses_the_page(app, client, make_client, monkeypatch):
    monkeypatch.setattr("streamorch.callers.FRESH_SECONDS", 0)
    one = make_client("admin")
    visitor = Visitor(app)
    visitor.sign_in(one.secret)
    assert f'href="{WHERE}"' in visitor.get().text
    token = visitor.token(NEW)
    assert Api(client, one.headers).patch(f"/api-clients/{one.id}", json={"scope": "operate"}).status_code == 200
    kept = visitor.client.post(NEW, data={"token": token, "name": "x", "scope": "admin"})
    assert kept.status_code == 403
    assert visitor.get(WHERE).status_code == 403


def test_texts_are_texts(operator, make_client):
    made = new_client(operator, name=XSS)
    refused = new_client(operator, name=XSS)
    assert (made.status_code, refused.status_code) == (201, 409)
    for shown in (made.text, refused.text, operator.get(WHERE).text):
        assert "<img src=x" not in shown
        assert "<script>" not in shown
        assert "&lt;img src=x" in shown


def test_the_list_is_filtered_and_goes_on(operator, make_client, monkeypatch):
    monkeypatch.setattr(clients, "_PAGE", 2)
    for number in range(3):
        make_client(name=f"one {number}")
        time.sleep(0.001)
    make_client(name="gone", revoked_at=PAST)
    first = operator.get(f"{WHERE}?status=active")
    assert re.findall(r"one \d(?=</th>)", first.text) == ["one 2", "one 1"]
    assert "gone" not in first.text
    older = html.unescape(found(r'rel="next" href="([^"]+)"', first.text))
    assert re.findall(r"one \d(?=</th>)", operator.get(older).text) == ["one 0"]
    assert "No API client is like that" in operator.get(f"{WHERE}?status=expired").text
    assert operator.get(f"{WHERE}?status=odd").status_code == 400


def test_what_is_not_there_is_told(operator):
    assert operator.post(f"{WHERE}/{NOBODY}/revoke").status_code == 404
    assert operator.post(f"{WHERE}/x/revoke").status_code == 400


def test_a_database_that_is_away_is_told(make_app):
    visitor = Visitor(make_app(DATABASE_URL="postgresql://127.0.0.1:9/nowhere?connect_timeout=1"))
    visitor.sign_in()
    away = visitor.get(WHERE)
    assert (away.status_code, away.content_type) == (503, "text/html; charset=utf-8")


@pytest.mark.browser
@pytest.mark.slow
class TestInABrowser:
    def test_one_is_made_by_keyboard_shown_once_and_revoked_after_a_question(self, open_page, accessible):
        page: Page = open_page(None, permissions=["clipboard-read", "clipboard-write"])
        page.goto(NEW)
        accessible(page)
        page.get_by_label("Name").fill("Stage left")
        page.keyboard.press("Tab")
        expect(page.get_by_role("radio", name="read")).to_be_focused()
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("radio", name="operate")).to_be_checked()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("The new API client")
        accessible(page)
        secret = page.locator("#secret").inner_text()
        assert keys.is_client_secret(secret)
        for button, copied in (("Copy Secret", secret), ("Copy Command", page.locator("#curl").inner_text())):
            page.get_by_role("button", name=button).click()
            expect(page.get_by_role("status")).to_contain_text("copied")
            assert page.evaluate("navigator.clipboard.readText()") == copied
        stored = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, history.state])"
        assert secret not in page.url + page.evaluate(stored)
        page.reload()
        expect(page.get_by_role("alert").filter(has_text="sent twice")).to_be_visible()
        assert secret not in page.content()
        page.complaints.clear()  # type: ignore[attr-defined]  # of the 409
        page.go_back()
        assert secret not in page.content()

        page.goto(WHERE)
        row = page.get_by_role("row", name="Stage left")
        row.get_by_role("button", name="Revoke").focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="Revoke Stage left?")
        expect(dialog).to_contain_text("Within two seconds its secret")
        accessible(page)
        page.keyboard.press("Enter")  # the button with the focus keeps it
        expect(dialog).to_be_hidden()
        row.get_by_role("button", name="Revoke").click()
        dialog.get_by_role("button", name="Revoke it").click()
        expect(page.get_by_role("status")).to_contain_text("The API client is revoked")
        expect(row.get_by_text("revoked", exact=True)).to_be_visible()
        assert secret not in page.content()

    def test_a_wrong_field_is_told_to_who_cannot_see_it(self, open_page, accessible):
        page: Page = open_page(NEW)
        page.get_by_label("Name").fill(f"of {keys.mint()}")
        page.keyboard.press("Enter")
        expect(page.get_by_label("Name")).to_have_accessible_description(clients._WRONG["name"])
        expect(page.get_by_role("alert").filter(has_text="A name has")).to_be_visible()
        accessible(page)
        page.complaints.clear()  # type: ignore[attr-defined]  # of the 400

    def test_the_keys_g_and_c_lead_there(self, open_page):
        page: Page = open_page("/console/keys")
        page.keyboard.press("g")
        page.keyboard.press("c")
        page.wait_for_url(f"**{WHERE}")
        expect(page.get_by_role("link", name="API clients")).to_have_attribute("aria-current", "page")

    @pytest.mark.parametrize("path", [WHERE, NEW, f"{WHERE}?status=expired"])
    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_everybody_can_use_it(self, path, width, scheme, open_page, accessible, running):
        requests.post(
            f"{running.url}/api-clients",
            headers={"Authorization": f"Bearer {API_SECRET}"},
            json={"name": "A very long name of somebody " * 8, "scope": "read"},
            timeout=10,
        )
        page: Page = open_page(path, viewport={"width": width, "height": 800}, color_scheme=scheme)
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert API_SECRET not in page.content()

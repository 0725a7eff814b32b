"""Keys and broadcasters, as an operator handles them."""

import html
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import API_SECRET, MediaServer
from tests.console import Visitor

XSS = "<img src=x onerror=alert(1)>\"'<script>"
NOBODY = "00000000-0000-4000-8000-000000000000"


def text(answer) -> str:
    """What is written on a page."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def found(pattern: str, where: str) -> str:
    match = re.search(pattern, where)
    assert match, pattern
    return match[1]


@pytest.fixture
def reader(api, app) -> Visitor:
    """Somebody who may only look."""
    secret = api.post("/api-clients", json={"name": "Wall", "scope": "read"}).json["secret"]
    visitor = Visitor(app)
    assert visitor.sign_in(secret).status_code == 303
    return visitor


@pytest.fixture
def encoder(client) -> MediaServer:
    """What a media server asks and tells for an encoder."""
    return MediaServer(client)


def new_key(operator: Visitor, **fields: str) -> Any:
    page = operator.get("/console/keys/new").text
    ids = {name: found(rf'name="{name}" value="(.+?)"', page) for name in ("id", "owner_id")}
    return operator.post("/console/keys/new", on="/console/keys/new", headers=None, **ids | fields)


def test_the_first_key_comes_with_its_broadcaster(operator, api):
    assert "Make the first key" in operator.get("/console/keys").text
    made = new_key(operator, new_broadcaster="Team 7", label="Drone", path="live/drone")
    assert made.status_code == 201
    value = found(r'<code id="value"[^>]*>(sk_\w+)<', made.text)
    assert re.search(r'<code id="obs-server"[^>]*>rtmp://localhost:1935/live<', made.text)
    assert f">drone?pass={value}<" in made.text
    assert f"rtmp://localhost:1935/live/drone?pass={value}&#39;" in made.text
    assert made.text.count("data:image/svg+xml") == 3
    (owner,) = api.get("/broadcasters").json["broadcasters"]
    (key,) = api.get("/stream-keys").json["stream_keys"]
    assert owner["display_name"] == "Team 7"
    assert (key["broadcaster_id"], key["label"], key["path"]) == (owner["id"], "Drone", "live/drone")
    for path in ("/console/keys", f"/console/keys/{key['id']}", f"/console/broadcasters/{owner['id']}"):
        assert value not in operator.get(path).text
    for page, query in (("keys", f"stream_key_id={key['id']}"), ("broadcasters", f"broadcaster_id={owner['id']}")):
        of_it = operator.get(f"/console/{page}/{query.partition('=')[2]}").text
        assert f'href="/console/history?{query}"' in of_it


def test_the_value_lets_an_encoder_in(operator, encoder):
    made = new_key(operator, new_broadcaster="Team 7")
    value = found(r'<code id="value"[^>]*>(sk_\w+)<', made.text)
    assert encoder.ask(value).status_code == 200


@pytest.mark.parametrize("url", ["http://localhost:8889", "http://media.example.org:8889"])
def test_addresses_of_this_machine_alone_are_told_as_such(url, make_app):
    visitor = Visitor(make_app(MEDIAMTX_PUBLIC_URL=url))
    visitor.sign_in()
    made = new_key(visitor, new_broadcaster="Team 7")
    assert ("they work on this machine alone" in text(made)) == ("localhost" in url)


def test_a_page_that_is_loaded_again_makes_nothing_twice(operator, api):
    fields = {"id": "11111111-1111-4111-8111-111111111111", "owner_id": "22222222-2222-4222-8222-222222222222"}
    assert new_key(operator, new_broadcaster="Team 7", **fields).status_code == 201
    again = new_key(operator, new_broadcaster="Team 7", **fields)
    assert again.status_code == 409
    assert "was sent twice" in again.text
    assert "sk_" not in again.text
    assert (api.get("/broadcasters").json["count"], api.get("/stream-keys").json["count"]) == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"path": "no spaces"}, "path a path is made of"),
        ({"new_broadcaster": ""}, "broadcaster id is missing"),
        ({"new_broadcaster": "x" * 300}, "display name"),
        ({"new_broadcaster": "", "broadcaster_id": NOBODY}, "broadcaster id is no broadcaster"),
        ({"label": "x" * 300}, "label"),
        ({"expires_at": "soon"}, "expires at"),
        ({"takeover": "perhaps"}, "takeover"),
    ],
)
def test_what_is_wrong_with_a_form_is_told_and_nothing_is_lost(wrong, told, operator, api):
    given = {"new_broadcaster": "Team 7", "label": "Drone 3", "path": "live/drone"} | wrong
    refused = new_key(operator, **given)
    assert refused.status_code == 400
    assert told in text(refused)
    for name in ("label", "path"):
        assert f'value="{given[name]}"' in refused.text
    assert api.get("/stream-keys").json["count"] == 0
    assert api.get("/broadcasters").json["count"] == 0


def test_a_path_on_which_another_is_live_is_told(operator, encoder, make_key):
    encoder.go_live(make_key(), "live/cam7")
    refused = new_key(operator, new_broadcaster="Team 7", path="live/cam7")
    assert refused.status_code == 409
    assert "a stream of another key is live on this path" in text(refused)


def test_a_key_is_changed(operator, api, make_key):
    key = make_key(label="old", path="live/old")
    where = f"/console/keys/{key.id}"
    changed = operator.post(where, on=where, label="new", path="", takeover="always", expires_at="2031-05-06T07:08")
    assert changed.location == f"{where}?told=key-changed"
    shown = api.get(f"/stream-keys/{key.id}").json
    assert (shown["label"], shown["path"], shown["takeover"]) == ("new", None, "always")
    assert shown["expires_at"] == "2031-05-06T07:08:00.000000Z"
    refused = operator.post(where, on=where, label="newer", path="/", takeover="always", expires_at="")
    assert refused.status_code == 400
    assert 'value="newer"' in refused.text
    assert api.get(f"/stream-keys/{key.id}").json["label"] == "new"


def test_the_confirmation_tells_what_is_cut_off_and_revoking_does_it(operator, api, encoder, make_key):
    key = make_key(path="live/cam7")
    encoder.go_live(key)
    where = f"/console/keys/{key.id}"
    assert "It cuts off what is live now: live/cam7 , live since" in text(operator.get(where))
    revoked = operator.post(f"{where}/revoke", on=where)
    assert revoked.location == f"{where}?told=key-revoked"
    assert api.get("/streams").json["count"] == 0
    (ended,) = api.get("/streams?status=ended").json["streams"]
    assert ended["end_reason"] == "revoked"
    shown = text(operator.get(revoked.location))
    assert "The key is revoked, and what was live with it has ended." in shown
    assert "Its stream key was revoked." in shown
    assert f"{where}/revoke" not in operator.get(where).text
    assert encoder.ask(key).status_code == 401


def test_a_key_is_disabled_enabled_and_its_hold_lifted(operator, api, encoder, make_key):
    key = make_key()
    where = f"/console/keys/{key.id}"
    assert operator.post(f"{where}/disable", on=where).location == f"{where}?told=key-disable"
    assert encoder.ask(key).status_code == 401
    assert operator.post(f"{where}/enable", on=where).status_code == 303
    stream = encoder.ask(key)
    assert stream.status_code == 200
    (live,) = api.get("/streams?status=pending").json["streams"]
    api.delete(f"/streams/{live['id']}")
    assert encoder.ask(key).status_code == 401
    assert f"{where}/lift" in operator.get(where).text
    assert operator.post(f"{where}/lift", on=where).status_code == 303
    assert encoder.ask(key).status_code == 200


def test_a_key_gets_a_new_value_and_the_one_before_works_on(operator, api, encoder, make_key):
    key = make_key()
    where = f"/console/keys/{key.id}"
    made = operator.post(f"{where}/rotate", on=where, overlap_seconds="3600")
    assert made.status_code == 201
    value = found(r'<code id="value"[^>]*>(sk_\w+)<', made.text)
    assert value != key.value
    assert key.value not in made.text
    shown = operator.get(where)
    assert f"…{key.value[-4:]} works until" in text(shown)
    assert value not in shown.text
    for each in (key.value, value):
        assert encoder.ask(each, id=None).status_code == 200
    assert operator.post(f"{where}/end-overlap", on=where).location == f"{where}?told=key-overlap-over"
    assert [encoder.ask(each, id=None).status_code for each in (key.value, value)] == [401, 200]
    assert operator.post(f"{where}/rotate", on=where, overlap_seconds="soon").status_code == 400
    api.delete(f"/stream-keys/{key.id}")
    assert operator.post(f"{where}/rotate", on="/console/keys", overlap_seconds="0").status_code == 409


def test_who_did_it_stands_in_the_audit_trail(operator, api, make_key):
    key = make_key()
    where = f"/console/keys/{key.id}"
    operator.post(f"{where}/revoke", on=where)
    (entry,) = [one for one in api.get(f"/audit?subject_id={key.id}").json["changes"] if one["action"] == "revoke"]
    assert entry["who"] == "API_SECRET"


def test_a_broadcaster_is_made_renamed_disabled_and_deleted(operator, api, encoder, make_key):
    made = operator.post("/console/broadcasters", on="/console/broadcasters", display_name=" Team 7 ")
    where = made.location.partition("?")[0]
    owner = where.rpartition("/")[2]
    assert api.get(f"/broadcasters/{owner}").json["display_name"] == "Team 7"
    assert "It has no key yet, and cannot publish." in operator.get(where).text
    assert operator.post(where, on=where, display_name="").status_code == 400
    assert operator.post(where, on=where, display_name="Team 8").status_code == 303
    key = make_key(broadcaster_id=owner)
    encoder.go_live(key)
    assert "It cuts off what is live now: live/cam7" in text(operator.get(where))
    assert operator.post(f"{where}/disable", on=where).location == f"{where}?told=broadcaster-disable"
    assert api.get("/streams").json["count"] == 0
    assert encoder.ask(key).status_code == 401
    assert "Its stream key or its broadcaster was disabled." in text(operator.get(where))
    assert operator.post(f"{where}/enable", on=where).status_code == 303
    assert encoder.ask(key).status_code == 200
    assert "1 active key is revoked for good" in text(operator.get(where))
    assert operator.post(f"{where}/delete", on=where).location == "/console/broadcasters?told=broadcaster-deleted"
    assert operator.get(where).status_code == 404
    assert api.get("/broadcasters").json["count"] == 0


def test_a_broadcaster_that_was_deleted_says_so_and_leads_to_its_history(operator, reader, api, encoder, make_key):
    key = make_key(label=XSS)
    where = f"/console/broadcasters/{key.broadcaster_id}"
    encoder.go_live(key)
    api.patch(f"/broadcasters/{key.broadcaster_id}", json={"display_name": XSS})
    assert api.delete(f"/broadcasters/{key.broadcaster_id}").status_code == 204
    for visitor in (operator, reader):
        gone = visitor.get(where)
        assert gone.status_code == 404
        assert re.search(r"This broadcaster was deleted at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \.", text(gone))
        assert "&lt;img src=x" in gone.text
        assert "<img src=x" not in gone.text
        history = visitor.get(html.unescape(found(r'href="(/console/history\?[^"]+)"', gone.text)))
        assert "live/cam7" in history.text
    assert "deleted" not in operator.get(f"/console/broadcasters/{NOBODY}").text


def test_who_may_only_look_sees_no_form_and_changes_nothing(reader, api, make_key):
    key = make_key()
    pages = (
        "/console/keys",
        f"/console/keys/{key.id}",
        "/console/broadcasters",
        f"/console/broadcasters/{key.broadcaster_id}",
    )
    for path in (*pages, "/console/keys/new"):
        shown = reader.get(path)
        assert shown.status_code == 200
        assert set(re.findall(r'<form method="post" action="([^"]+)"', shown.text)) == {"/console/sign-out"}
    for path in (
        "/console/keys/new",
        f"/console/keys/{key.id}",
        f"/console/keys/{key.id}/revoke",
        f"/console/keys/{key.id}/disable",
        f"/console/keys/{key.id}/rotate",
        "/console/broadcasters",
        f"/console/broadcasters/{key.broadcaster_id}/delete",
    ):
        refused = reader.post(path, on="/console/keys")
        assert refused.status_code == 403
        assert "needs the scope operate" in refused.text
    assert api.get(f"/stream-keys/{key.id}").json["status"] == "active"


def test_texts_are_texts(operator, make_key, make_broadcaster):
    owner = make_broadcaster(display_name=XSS)
    key = make_key(broadcaster_id=owner, label=XSS)
    for path in (
        "/console/keys",
        f"/console/keys/{key.id}",
        "/console/keys/new",
        "/console/broadcasters",
        f"/console/broadcasters/{owner}",
    ):
        shown = operator.get(path).text
        assert "<img src=x" not in shown
        assert "<script>" not in shown
        assert "&lt;img src=x" in shown


def test_lists_are_filtered_and_go_on(operator, make_key, make_broadcaster):
    owner = make_broadcaster(display_name="Many")
    for number in range(101):
        make_key(broadcaster_id=owner, label=f"key-{number:03}")
    make_key(label="other")
    first = operator.get(f"/console/keys?broadcaster_id={owner}")
    assert len(set(re.findall(r"key-\d\d\d", first.text))) == 100
    assert "other" not in first.text
    older = html.unescape(found(r'rel="next" href="([^"]+)"', first.text))
    assert len(set(re.findall(r"key-\d\d\d", operator.get(older).text))) == 1
    assert "No key is like that" in operator.get("/console/keys?status=revoked").text
    assert operator.get("/console/keys?status=odd").status_code == 400


@pytest.mark.parametrize("what", ["keys", "broadcasters"])
def test_what_is_not_there_is_told(what, operator):
    assert operator.get(f"/console/{what}/{NOBODY}").status_code == 404
    assert operator.get(f"/console/{what}/x").status_code == 400
    assert operator.post(f"/console/{what}/{NOBODY}/disable").status_code == 404


@pytest.mark.browser
@pytest.mark.slow
class TestInABrowser:
    def test_a_key_is_made_by_keyboard_and_its_fields_copied(self, open_page, accessible):
        page: Page = open_page(None, permissions=["clipboard-read", "clipboard-write"])
        page.goto("/console/keys/new")
        accessible(page)
        page.get_by_label("Broadcaster").last.fill("Team 7")
        page.get_by_label("Label").fill("Helmet")
        page.get_by_label("Expires").fill("2031-07-01T12:00")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("The new key")
        accessible(page)
        for button, field in (("Copy Server", "obs-server"), ("Copy Stream key", "obs-key")):
            page.get_by_role("button", name=button).click()
            expect(page.get_by_role("status")).to_contain_text("copied")
            assert page.evaluate("navigator.clipboard.readText()") == page.locator(f"#{field}").inner_text()
        page.get_by_role("link", name="To the key").click()
        # Made at 12:00 in Zurich.
        expect(page.locator("time[datetime='2031-07-01T10:00:00.000000Z']")).to_have_attribute(
            "title", "2031-07-01 10:00:00 UTC"
        )
        expect(page.get_by_label("Expires")).to_have_value("2031-07-01T12:00")

    def test_a_key_is_revoked_after_a_question(self, open_page, accessible, running):
        page: Page = open_page("/console/keys/new")
        page.get_by_label("Broadcaster").last.fill("Team 8")
        page.get_by_label("Path").fill("live/eight")
        page.get_by_role("button", name="Make the key").click()
        page.get_by_role("link", name="To the key").click()
        page.get_by_role("button", name="New value").click()
        accessible(page)
        page.get_by_role("button", name="Keep as it is").click()
        page.get_by_role("button", name="New value").click()
        page.get_by_label("The value of now works on for").select_option("an hour")
        page.get_by_role("button", name="Make the new value").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("The new value")
        page.get_by_role("link", name="To the key").click()
        expect(page.get_by_text("works until")).to_be_visible()
        page.get_by_role("button", name="Revoke").click()
        dialog = page.get_by_role("dialog", name="Revoke this key for good?")
        expect(dialog).to_contain_text("Nothing of it is live now.")
        accessible(page)
        page.keyboard.press("Enter")  # the button with the focus keeps it
        expect(dialog).to_be_hidden()
        page.get_by_role("button", name="Revoke").click()
        dialog.get_by_role("button", name="Revoke it").click()
        expect(page.get_by_role("status")).to_contain_text("The key is revoked")

    @pytest.mark.parametrize("path", ["/console/keys", "/console/broadcasters", "/console/keys/new"])
    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_everybody_can_use_the_lists(self, path, width, scheme, open_page, accessible):
        page: Page = open_page(path, viewport={"width": width, "height": 800}, color_scheme=scheme)
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert API_SECRET not in page.content()

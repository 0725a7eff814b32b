"""What was live: the list with its filters, and the file that a spreadsheet opens."""

import csv
import html
import io
import re
import time
import uuid
from functools import partial
from urllib.parse import urlencode

import pytest
import requests
from playwright.sync_api import Page, expect

from streamorch.blueprints.console import history
from streamorch.repositories import broadcasters, decisions, streams
from streamorch.repositories.decisions import Refusal
from tests.conftest import API_SECRET
from tests.console import Visitor
from tests.console.test_keys import NOBODY, XSS, encoder, found, reader, text

__all__ = ["encoder", "reader"]

OURS = {"display_name": "Team 7"}


def paths(answer) -> list[str]:
    """The paths of the rows, from above."""
    return re.findall(r'data-label="Path"><a href="[^"]+"><code>([^<]+)<', answer.text)


def table(answer) -> list[dict[str, str]]:
    """The file as a spreadsheet reads it."""
    assert answer.content_type == "text/csv; charset=utf-8"
    return list(csv.DictReader(io.StringIO(answer.get_data().decode("utf-8-sig"), newline="")))


@pytest.fixture
def show(encoder, make_key):
    """A stream that was live on this path, and ended."""

    def one(path="live/cam7", **columns):
        key = make_key(**columns)
        encoder.not_ready(encoder.go_live(key, path), path)
        return key

    return one


def test_before_anything_ended_the_page_says_what_will_be_there(operator):
    assert "No stream has ended yet" in operator.get("/console/history").text


def test_a_row_tells_who_how_long_and_why_and_leads_on(operator, api, show, make_broadcaster):
    owner = make_broadcaster(**OURS)
    key = show(broadcaster_id=owner, label="Helmet")
    (stream,) = api.get("/streams?status=ended").json["streams"]
    shown = operator.get("/console/history")
    assert paths(shown) == ["live/cam7"]
    for where in (f"streams/{stream['id']}", f"broadcasters/{owner}", f"keys/{key.id}"):
        assert f'href="/console/{where}"' in shown.text
    assert re.search(r"live/cam7 Team 7 Helmet rtmp .+ UTC .+ UTC 0:0\d Its encoder disconnected\.", text(shown))
    assert f'datetime="{stream["started_at"]}"' in shown.text
    assert f'datetime="{stream["ended_at"]}"' in shown.text


def test_a_broadcaster_that_was_deleted_is_named_and_leads_nowhere(operator, api, show, make_broadcaster, monkeypatch):
    gone, here = make_broadcaster(display_name="Team gone"), make_broadcaster(**OURS)
    keys_of = {
        owner: [show(f"live/{n}", broadcaster_id=owner, label=f"of {n}") for n in "ab"] for owner in (gone, here)
    }
    assert api.delete(f"/broadcasters/{gone}").status_code == 204
    asked: list[object] = []
    monkeypatch.setattr(broadcasters, "deleted", partial(counted, asked, broadcasters.deleted))
    answer = operator.get("/console/history")
    assert len(asked) == 1  # for all rows together
    assert len(paths(answer)) == 4
    assert text(answer).count("Team gone deleted of ") == 2
    assert text(answer).count("Team 7 of ") == 2
    pages = {"gone": (gone, *(key.id for key in keys_of[gone])), "here": (here, *(key.id for key in keys_of[here]))}
    links = re.findall(r'href="/console/(?:broadcasters|keys)/([^"]+)"', answer.text)
    assert set(links) == {str(one) for one in pages["here"]}
    for link in re.findall(r'href="(/console/(?:broadcasters|keys|streams)/[^"]+)"', answer.text):
        assert operator.get(link).status_code == 200, link


def counted(asked, question, *args):
    asked.append(args)
    return question(*args)


@pytest.mark.parametrize("page", ["history", "keys"])
def test_a_broadcaster_that_is_not_among_the_newest_is_still_the_chosen_one(
    page, operator, api, show, make_broadcaster, monkeypatch
):
    gone, old, _ = (make_broadcaster(display_name=f"Team {name}") for name in ("gone", "old", "new"))
    show("live/gone", broadcaster_id=gone)
    api.delete(f"/broadcasters/{gone}")
    monkeypatch.setattr("streamorch.blueprints.console.lists.CHOICES", 1)
    for owner, name in ((gone, "Team gone (deleted)"), (old, "Team old")):
        shown = operator.get(f"/console/{page}?broadcaster_id={owner}")
        assert f'<option value="{owner}" selected>{name}</option>' in shown.text
        assert paths(shown) == (["live/gone"] if owner == gone and page == "history" else [])
    assert operator.get(f"/console/{page}?broadcaster_id={NOBODY}").status_code == 200


def test_each_filter_finds_its_own(operator, api, show, encoder, make_key, make_broadcaster):
    owner = make_broadcaster(**OURS)
    theirs = show("live/one", broadcaster_id=owner)
    stopped = make_key()
    encoder.go_live(stopped, "live/two")
    (live,) = api.get("/streams").json["streams"]
    api.delete(f"/streams/{live['id']}")
    encoder.go_live(make_key(), "live/three")
    encoder.ask(make_key(), "live/four")
    first, second = (api.get(f"/streams?status=all&path=live/{name}").json["streams"][0] for name in ("one", "two"))
    for filters, expected in (
        ({}, ["live/two", "live/one"]),
        ({"status": "ended", "path": ""}, ["live/two", "live/one"]),
        ({"broadcaster_id": owner}, ["live/one"]),
        ({"stream_key_id": theirs.id}, ["live/one"]),
        ({"path": "live/two"}, ["live/two"]),
        ({"path": "live"}, []),
        ({"end_reason": "stopped"}, ["live/two"]),
        ({"end_reason": "never_started"}, []),
        ({"status": "active"}, ["live/three"]),
        ({"status": "pending"}, ["live/four"]),
        ({"status": "all"}, ["live/four", "live/three", "live/two", "live/one"]),
        ({"since": second["claimed_at"]}, ["live/two"]),
        ({"until": second["claimed_at"]}, ["live/one"]),
        ({"since": first["claimed_at"], "until": second["claimed_at"], "broadcaster_id": owner}, ["live/one"]),
        ({"since": "2031-05-06T07:08"}, []),
        ({"until": "2031-05-06T07:08", "path": "live/one"}, ["live/one"]),
    ):
        shown = operator.get("/console/history", query_string=filters)
        assert shown.status_code == 200
        assert paths(shown) == expected, filters
        assert [row["path"] for row in table(operator.get("/console/history.csv", query_string=filters))] == expected
        if not expected:
            assert "No stream is like that" in shown.text


def test_a_moment_without_a_script_is_utc_and_stays_in_its_field(operator):
    shown = operator.get("/console/history?since=2026-05-06T07:08").text
    assert 'name="since" data-moment="2026-05-06T07:08:00+00:00" value="2026-05-06T07:08"' in shown
    assert "Let in from <span data-zone>(UTC)</span>" in shown


@pytest.mark.parametrize(
    "query", ["since=soon", "until=2026-13-01T00:00", "broadcaster_id=x", "status=odd", "end_reason=odd"]
)
@pytest.mark.parametrize("page", ["history", "history.csv"])
def test_a_filter_that_is_none_is_a_problem(page, query, operator):
    refused = operator.get(f"/console/{page}?{query}")
    assert refused.status_code == 400
    assert f"<code>{query.partition('=')[0]}</code>" in refused.text


@pytest.mark.parametrize("page", ["history", "refusals", "clients", "system"])
def test_what_is_no_filter_leads_nowhere_else(page, operator, api, show, encoder, conn, monkeypatch):
    for room, size in (("history", "_PAGE"), ("refusals", "_PAGE"), ("clients", "_PAGE"), ("system", "_CHANGES")):
        monkeypatch.setattr(f"streamorch.blueprints.console.{room}.{size}", 1)
    for number in range(2):
        show()
        decisions.note(conn, [Refusal("invalid-stream-key")])
        api.post("/api-clients", json={"name": f"Wall {number}", "scope": "read"})
        api.post("/broadcasters", json={"display_name": "Team 7"})
    odd = {"_scheme": "javascript", "_external": "1", "_anchor": "x", "_method": "POST", "endpoint": "x", "values": "x"}
    shown = operator.get(f"/console/{page}", query_string=odd | {"told": "signed-out"})
    assert shown.status_code == 200
    older = html.unescape(found(r'rel="next" href="([^"]+)"', shown.text))
    assert older.startswith(f"/console/{page}?")
    assert "told" not in older
    assert operator.get(older).status_code == 200
    assert "javascript:" not in shown.text
    for address in re.findall(r'(?:data-news|href)="(/console/(?:history.csv|refusals/news)[^"]*)"', shown.text):
        assert "?" not in address


def test_a_cursor_is_of_its_filters(operator, show, monkeypatch):
    monkeypatch.setattr(history, "_PAGE", 1)
    show()
    show()
    older = html.unescape(found(r'rel="next" href="([^"]+)"', operator.get("/console/history").text))
    assert operator.get(older).status_code == 200
    assert operator.get(f"{older}&status=all").status_code == 400


def test_pages_go_on_with_their_filters(operator, show, monkeypatch):
    monkeypatch.setattr(history, "_PAGE", 2)
    for number in range(5):
        show(f"live/{number}")
    show("live/other", label="other")
    seen, query = [], "/console/history?since=2020-01-01T00:00&told=nothing"
    for _ in range(3):
        shown = operator.get(query)
        seen += paths(shown)
        more = re.search(r'rel="next" href="([^"]+)"', shown.text)
        query = html.unescape(more[1]) if more else ""
    assert seen == ["live/other", *(f"live/{number}" for number in (4, 3, 2, 1, 0))]
    assert not query


def test_the_file_has_everything_whatever_the_page_shows(operator, show, monkeypatch):
    monkeypatch.setattr(history, "_PAGE", 2)
    monkeypatch.setattr(history, "_BATCH", 2)
    for number in range(4):
        show(f"live/{number}")
    first = operator.get("/console/history")
    link = html.unescape(found(r'href="([^"]+)" download', first.text))
    older = operator.get(html.unescape(found(r'rel="next" href="([^"]+)"', first.text)))
    assert html.unescape(found(r'href="([^"]+)" download', older.text)) == link == "/console/history.csv"
    rows = table(operator.get(link))
    assert [row["path"] for row in rows] == ["live/3", "live/2", "live/1", "live/0"]


def test_the_file_is_as_the_api_has_it(operator, api, show, make_broadcaster):
    owner = make_broadcaster(display_name='Boat "3", Zürich')
    key = show(broadcaster_id=owner, label="Line\nbreak")
    (stream,) = api.get("/streams?status=ended").json["streams"]
    answer = operator.get("/console/history.csv")
    (row,) = table(answer)
    assert list(row) == list(history.COLUMNS)
    assert row == {
        "stream_id": stream["id"],
        "path": "live/cam7",
        "broadcaster": 'Boat "3", Zürich',
        "broadcaster_id": str(owner),
        "key_label": "Line\nbreak",
        "stream_key_id": str(key.id),
        "protocol": "rtmp",
        "node": "default",
        "status": "ended",
        "claimed_at": stream["claimed_at"],
        "started_at": stream["started_at"],
        "ended_at": stream["ended_at"],
        "duration_seconds": str(stream["duration_seconds"]),
        "end_reason": "disconnected",
        "remote_address": "192.0.2.7",
        "recording_ref": "",
    }
    assert re.fullmatch(
        r'attachment; filename="streams-\d{4}-\d\d-\d\dT\d{6}Z\.csv"', answer.headers["Content-Disposition"]
    )
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "evil", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1", '=HYPERLINK("http://x")']
)
def test_no_spreadsheet_runs_what_somebody_wrote(evil, operator, show, make_broadcaster):
    show(broadcaster_id=make_broadcaster(display_name=evil), label=evil)
    (row,) = table(operator.get("/console/history.csv"))
    assert row["broadcaster"] == row["key_label"] == f"'{evil}"
    assert history.cell("a=1") == "a=1"


@pytest.mark.parametrize("between", [";", "\t", "\n", "\r\n"])
@pytest.mark.parametrize("formula", ["=1+1;", " =1+1", "-1", "\uff1d1"])
def test_a_formula_behind_what_may_part_cells_is_text_too(between, formula):
    assert history.cell(f"Team 7{between}{formula}") == f"Team 7{between}'{formula}"
    assert history.cell(f"=7{between}{formula}") == f"'=7{between}'{formula}"
    assert history.cell(f"Team{between}7, -A=B") == f"Team{between}7, -A=B"


def test_no_secret_is_in_the_file(operator, show, make_key, make_broadcaster):
    lost = make_key()
    key = show(broadcaster_id=make_broadcaster(display_name=f"Team {lost.value}"), label=lost.value)
    written = operator.get("/console/history.csv").text
    assert written.count("[redacted]") == 2
    for secret in (lost.value, key.value, API_SECRET):
        assert secret not in written


def test_a_secret_in_the_query_is_in_no_address_of_the_page(operator, show, make_key, monkeypatch):
    monkeypatch.setattr(history, "_PAGE", 1)
    secret = make_key().value
    for path in ("live/a", "live/b"):
        show(path)
    for query in (f"key={secret}", f"{secret}=1", f"path={secret}"):
        shown = operator.get(f"/console/history?{query}").text
        assert ('rel="next"' in shown) == (not query.startswith("path"))
        assert secret not in shown
    assert secret not in operator.get(f"/console/refusals?address={secret}").text


def test_the_file_ends_somewhere_and_says_so(operator, api, show, monkeypatch):
    monkeypatch.setattr(history, "_BATCH", 2)
    monkeypatch.setattr(history, "MOST", 4)
    for number in range(4):
        show(f"live/{number}")
    assert len(table(operator.get("/console/history.csv"))) == 4
    show("live/4")
    rows = table(operator.get("/console/history.csv"))
    assert [row["path"] for row in rows[:4]] == ["live/4", "live/3", "live/2", "live/1"]
    assert rows[4]["stream_id"] == f"only the newest 4: for the rest, ask for what is before {rows[3]['claimed_at']}"
    assert len(rows) == 5
    assert "the newest 4 at most" in text(operator.get("/console/history"))


def test_the_file_is_made_as_it_is_read(operator, show, monkeypatch):
    monkeypatch.setattr(history, "_BATCH", 1)
    for number in range(4):
        show(f"live/{number}")
    asked = []
    page = streams.page

    def noted(*args, **kwargs):
        asked.append(kwargs)
        return page(*args, **kwargs)

    monkeypatch.setattr(streams, "page", noted)
    answer = operator.get("/console/history.csv", buffered=False)
    parts = answer.iter_encoded()
    next(parts)
    assert len(asked) == 1
    next(parts)
    next(parts)
    assert len(asked) == 2
    assert {one["limit"] for one in asked} == {1}
    other = operator.get("/console/history.csv")
    assert other.status_code == 429
    assert "Another export is being made" in text(other)
    answer.close()
    assert operator.get("/console/history.csv").status_code == 200


def test_an_export_that_fails_is_in_nobodys_way(operator, show, monkeypatch):
    show("live/1")
    with monkeypatch.context() as patch:
        patch.setattr(history, "_batch", lambda *_: 1 / 0)
        assert operator.get("/console/history.csv").status_code == 500
    assert operator.get("/console/history.csv").status_code == 200


def test_a_database_that_is_away_is_a_page_and_no_file(make_app):
    visitor = Visitor(make_app(DATABASE_URL="postgresql://127.0.0.1:9/nowhere?connect_timeout=1"))
    visitor.sign_in()
    for path in ("/console/history", "/console/history.csv"):
        away = visitor.get(path)
        assert (away.status_code, away.content_type) == (503, "text/html; charset=utf-8")


def test_whoever_may_only_look_sees_it_all(reader, show):
    show()
    assert paths(reader.get("/console/history")) == ["live/cam7"]
    assert len(table(reader.get("/console/history.csv"))) == 1


def test_texts_are_texts(operator, show, make_broadcaster, conn):
    show(broadcaster_id=make_broadcaster(display_name=XSS), label=XSS)
    conn.execute("UPDATE streams SET path = %s, protocol = %s", [XSS, XSS])
    shown = operator.get("/console/history", query_string={"path": XSS}).text
    assert shown.count("&lt;img src=x onerror") >= 6
    assert "<img src=x" not in shown
    assert "<script>" not in shown


def test_a_key_of_whom_there_are_too_many_is_still_the_chosen_one(operator, make_key, monkeypatch):
    monkeypatch.setattr("streamorch.blueprints.console.lists.CHOICES", 1)
    oldest = make_key(label="oldest")
    time.sleep(0.001)
    make_key(label="newest")
    shown = operator.get(f"/console/history?stream_key_id={oldest.id}").text
    assert f'<option value="{oldest.id}" selected>Team 7 · oldest' in shown
    assert operator.get(f"/console/history?stream_key_id={NOBODY}").status_code == 200


def test_how_long_it_stays_is_said(make_app, show):
    show()
    visitor = Visitor(make_app(HISTORY_DAYS="90"))
    visitor.sign_in()
    assert "What ended is kept for 90 days." in text(visitor.get("/console/history"))


@pytest.mark.browser
@pytest.mark.slow
class TestInABrowser:
    @pytest.fixture
    def ended(self, running, media_server):
        """Streams that have ended, of the running service."""
        ask = partial(requests.request, headers={"Authorization": f"Bearer {API_SECRET}"}, timeout=10)
        owner = ask("POST", f"{running.url}/broadcasters", json={"display_name": f"Team {uuid.uuid4()}"}).json()
        key = ask("POST", f"{running.url}/stream-keys", json={"broadcaster_id": owner["id"], "label": "Helmet"}).json()
        media_server.callback_url = running.url
        publisher = media_server.publish(f"live/{uuid.uuid4().hex}", live=False)
        assert media_server.ask(publisher, key["key_value"]) == 200
        media_server.go_live(publisher)
        assert media_server.hook_ready(publisher) == 204
        ask("DELETE", f"{running.url}/stream-keys/{key['id']}")
        return publisher.path

    def test_moments_are_in_the_zone_of_the_browser(self, open_page, ended):
        page: Page = open_page("/console/history")
        expect(page.get_by_label("Let in from")).to_have_accessible_name("Let in from (Europe/Zurich)")
        page.get_by_label("Let in from").fill("2026-07-01T12:00")
        page.get_by_label("Path").fill(ended)
        page.keyboard.press("Enter")
        page.wait_for_url("**since=*")
        assert urlencode({"since": "2026-07-01T10:00:00.000Z"}) in page.url
        expect(page.get_by_label("Let in from")).to_have_value("2026-07-01T12:00")
        expect(page.get_by_role("row").filter(has_text=ended)).to_contain_text("Its stream key was revoked.")

    def test_the_file_is_downloaded(self, open_page, ended):
        page: Page = open_page("/console/history")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download as CSV").click()
        assert download.value.suggested_filename.endswith("Z.csv")
        assert ended in download.value.path().read_text(encoding="utf-8-sig")

    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_everybody_can_use_it(self, width, scheme, open_page, accessible, ended):
        page: Page = open_page("/console/history", viewport={"width": width, "height": 800}, color_scheme=scheme)
        expect(page.get_by_text(ended)).to_be_visible()
        accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto("/console/history?path=nothing")
        accessible(page)
        page.keyboard.press("/")
        expect(page.get_by_label("Path")).to_be_focused()

"""Signing in and out, sessions, forms, and problems as pages; no browser is needed for that."""

import io
import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from streamorch.blueprints.console import sessions
from tests.conftest import API_SECRET
from tests.console import Visitor


def cookie(visitor: Visitor):
    return visitor.client.get_cookie(sessions.COOKIE, path="/console")


def session(visitor: Visitor) -> sessions.Session:
    """What its cookie says."""
    found = sessions.read((API_SECRET,), cookie(visitor).value, time.time())
    assert found
    return found


def test_who_has_not_signed_in_is_led_to_the_form_and_back(visitor):
    led = visitor.get("/console?sort=path")
    assert led.status_code == 303
    assert parse_qs(urlsplit(led.location).query) == {"next": ["/console?sort=path"]}
    form = visitor.get(led.location)
    assert 'name="next" value="/console?sort=path"' in form.text
    entered = visitor.sign_in(next="/console?sort=path")
    assert (entered.status_code, entered.location) == (303, "/console?sort=path")
    assert visitor.get().status_code == 200


@pytest.mark.parametrize(
    "elsewhere",
    [
        "https://example.org/",
        "//example.org/console",
        "/console\\@example.org",
        "/consoles",
        "/streams",
        "",
        "/console\n/",
    ],
)
def test_nobody_is_led_elsewhere(elsewhere, visitor):
    assert visitor.sign_in(next=elsewhere).location == "/console"


def test_every_page_wants_a_session(app, client):
    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint.startswith("console_")]
    assert len(rules) > 5
    for rule in rules:
        path = re.sub("<.+?>", "00000000-0000-4000-8000-000000000000", rule.rule)
        for method in (rule.methods or set()) - {"OPTIONS"}:
            if rule.endpoint.startswith("console_door."):
                continue
            led = client.open(path, method=method)
            assert led.status_code == 303, rule
            assert led.location.startswith("/console/sign-in?"), rule


def changing(app):
    """The address of each form that changes something, with a UUID and a word where it takes one."""
    for rule in app.url_map.iter_rules():
        room = rule.endpoint.partition(".")[0]
        if room.startswith("console_") and room != "console_door" and "POST" in (rule.methods or set()):
            path = re.sub(r"<any\((\w+).*?>", r"\1", rule.rule)
            yield re.sub("<.+?>", "00000000-0000-4000-8000-000000000000", path)


def test_no_form_does_anything_without_the_token_of_its_session(app, operator):
    stranger = Visitor(app)
    stranger.sign_in()
    paths = list(changing(app))
    assert len(paths) > 12
    for path in paths:
        for fields in ({}, {"token": "0" * 64}, {"token": stranger.token()}):
            refused = operator.client.post(path, data=fields)
            assert refused.status_code == 403, path
            assert "not sent by a page of your session" in refused.text


@pytest.mark.parametrize("scope", ["read", "operate"])
def test_no_form_does_anything_for_whose_scope_is_too_small(scope, app, make_client):
    visitor = Visitor(app)
    visitor.sign_in(make_client(scope).secret)
    token = visitor.token()
    for path in changing(app):
        status = visitor.client.post(path, data={"token": token}).status_code
        assert (status == 403) == (scope == "read" or path.startswith("/console/clients")), path


def test_a_wrong_secret_is_told_and_not_shown(visitor):
    refused = visitor.sign_in("hunter2-wrong")
    assert refused.status_code == 401
    assert "That secret is not right" in refused.text
    assert "hunter2-wrong" not in refused.text
    assert visitor.get().status_code == 303


def test_the_cookie_is_for_this_browser_and_the_console_alone(visitor):
    set_cookie = visitor.sign_in().headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/console"} < set(set_cookie.split("; "))
    assert "Secure" not in set_cookie
    assert API_SECRET not in set_cookie
    secure = visitor.client.get("/console/sign-in", base_url="https://localhost").headers["Set-Cookie"]
    assert "Secure" in secure.split("; ")


def test_a_session_is_a_new_one_after_signing_in(visitor):
    visitor.sign_in()
    before = session(visitor)
    visitor.sign_in()
    after = session(visitor)
    assert after.nonce != before.nonce
    assert after.token != before.token


def test_the_page_for_signing_in_touches_no_open_session(app, operator):
    before = cookie(operator).value
    # A link on another site leads there: a cookie with SameSite=Strict is not sent, but one may be set.
    for client in (operator.client, app.test_client(use_cookies=False)):
        kept = client.get("/console/sign-in?next=/console/keys").headers.getlist("Set-Cookie")
        assert [one.partition("=")[0] for one in kept] == [sessions.DOOR]
    assert cookie(operator).value == before
    assert operator.get().status_code == 200


def test_who_has_not_signed_in_gets_nothing_that_is_made_of_the_api_secret(visitor, make_app):
    token = visitor.token("/console/sign-in")
    value = visitor.client.get_cookie(sessions.DOOR, path="/console").value
    # A service with another secret takes both: they tell nothing of the secret.
    other = Visitor(make_app(API_SECRET="another-secret"))
    other.client.set_cookie(sessions.DOOR, value, path="/console")
    entered = other.client.post("/console/sign-in", data={"token": token, "secret": "another-secret"})
    assert entered.status_code == 303


def test_two_pages_for_signing_in_work_both(visitor):
    first, second = visitor.token("/console/sign-in"), visitor.token("/console/sign-in")
    for token in (first, second):
        refused = visitor.client.post("/console/sign-in", data={"token": token, "secret": "wrong"})
        assert refused.status_code == 401


def test_a_cookie_that_was_changed_is_none(operator):
    value = cookie(operator).value
    operator.client.set_cookie(sessions.COOKIE, ("A" if value[0] != "A" else "B") + value[1:], path="/console")
    assert operator.get().status_code == 303


@pytest.mark.parametrize(
    "told",
    [
        [],
        None,
        {"nonce": "a"},
        ["a", 1, 1],
        ["a", 1, 1, None, "more"],
        ["a", "1", 1, None],
        ["a", 1, 1, "no-uuid"],
        ["a", 1, 1, 5],
    ],
)
def test_a_cookie_of_another_release_is_none(told, visitor):
    value = sessions._serializer(sessions._key(API_SECRET)).dumps(told)
    visitor.client.set_cookie(sessions.COOKIE, value, path="/console")
    assert visitor.get().status_code == 303
    assert visitor.sign_in().status_code == 303


def test_a_page_of_the_door_lets_nobody_in(visitor):
    visitor.get("/console/sign-in")
    assert visitor.client.get_cookie(sessions.DOOR, path="/console")
    assert cookie(visitor) is None
    assert visitor.get().status_code == 303


@pytest.mark.parametrize(
    ("begun", "seen", "is_over"),
    [
        (sessions.WHOLE_SECONDS + 1, 0, True),
        (sessions.IDLE_SECONDS + 1, sessions.IDLE_SECONDS + 1, True),
        (sessions.WHOLE_SECONDS - 60, 60, False),
    ],
)
def test_a_session_ends_by_age_and_by_idleness(begun, seen, is_over, visitor):
    now = time.time()
    old = sessions.begun(API_SECRET, now - begun)
    value = sessions.written(sessions.Session(old.nonce, now - begun, now - seen, None, old.key))
    visitor.client.set_cookie(sessions.COOKIE, value, path="/console")
    assert (visitor.get().status_code == 303) == is_over


def test_a_session_that_is_used_goes_on(visitor):
    now = time.time()
    old = sessions.begun(API_SECRET, now - 1800)
    visitor.client.set_cookie(sessions.COOKIE, sessions.written(old), path="/console")
    visitor.get()
    renewed = session(visitor)
    assert renewed.seen >= int(now)
    assert renewed.begun == int(now - 1800)


def test_a_session_ends_with_the_secret_that_began_it(make_app):
    both = Visitor(make_app(API_SECRET="new-secret, old-secret"))
    both.sign_in("old-secret")
    value = cookie(both).value
    for secrets, status in (("old-secret", 200), ("newer-secret,old-secret", 200), ("new-secret", 303)):
        other = Visitor(make_app(API_SECRET=secrets))
        other.client.set_cookie(sessions.COOKIE, value, path="/console")
        assert other.get().status_code == status


def test_an_api_client_signs_in_and_is_out_when_it_is_revoked(api, visitor, monkeypatch):
    monkeypatch.setattr("streamorch.callers.FRESH_SECONDS", 0)
    made = api.post("/api-clients", json={"name": "Control room", "scope": "read"}).json
    assert visitor.sign_in(made["secret"]).status_code == 303
    shown = visitor.get().text
    assert "client:Control room" in shown
    assert "read only" in shown
    assert made["secret"] not in shown
    assert api.delete(f"/api-clients/{made['id']}").status_code == 204
    assert visitor.get().status_code == 303
    assert visitor.sign_in(made["secret"]).status_code == 401


def test_signing_out_takes_the_forms_token(operator):
    assert operator.client.post("/console/sign-out").status_code == 403
    assert operator.get().status_code == 200
    left = operator.post("/console/sign-out")
    assert (left.status_code, left.location) == (303, "/console/sign-in?told=signed-out")
    assert "You are signed out." in operator.get(left.location).text
    assert operator.get().status_code == 303


def test_a_form_of_somebody_else_does_nothing(app, operator):
    stranger = Visitor(app)
    stranger.sign_in()
    for fields in ({"token": ""}, {"token": stranger.token()}):
        refused = operator.client.post("/console/sign-out", data=fields)
        assert refused.status_code == 403
        assert "nothing was changed" in refused.text
    assert operator.get().status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost"}, 303),
        ({"Origin": "https://localhost"}, 303),  # TLS ends at a proxy
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://proxied.example"}, 303),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_form_on_another_site_does_nothing(headers, status, operator):
    assert operator.post("/console/sign-out", headers=headers).status_code == status


def test_signing_in_takes_the_forms_token(visitor):
    assert visitor.client.post("/console/sign-in", data={"secret": API_SECRET}).status_code == 403
    visitor.get("/console/sign-in")
    assert visitor.client.post("/console/sign-in", data={"secret": API_SECRET, "token": "0" * 64}).status_code == 403
    assert visitor.get().status_code == 303


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_form_is_no_larger_than_a_body_of_the_api(content_type, visitor):
    upload = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + b"a" * 70_000 + b"\r\n--x--\r\n"
    refused = visitor.client.post("/console/sign-in", data=upload, content_type=content_type)
    assert refused.status_code == 413
    assert refused.content_type == "text/html; charset=utf-8"
    assert visitor.sign_in(other="a" * 60_000).status_code == 303


class BrokenStream(io.RawIOBase):
    """What a server has for a body whose chunks are none."""

    def read(self, _: int = -1) -> bytes:
        raise OSError("no chunk")

    def readinto(self, _: object) -> int:
        raise OSError("no chunk")


def test_a_form_in_broken_chunks_is_malformed(visitor):
    environ = {"wsgi.input": BrokenStream(), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    broken = visitor.client.post(
        "/console/sign-in", content_type="application/x-www-form-urlencoded", environ_overrides=environ
    )
    assert broken.status_code == 400


def test_whoever_guesses_on_and_on_has_to_wait(make_app):
    visitor = Visitor(make_app(REFUSALS_PER_MINUTE="5"))
    told = [visitor.sign_in(f"wrong-{number}") for number in range(8)]
    assert [answer.status_code for answer in told][:5] == [401] * 5
    assert told[-1].status_code == 429
    assert int(told[-1].headers["Retry-After"]) > 0
    assert "Too many wrong credentials" in told[-1].text
    assert visitor.sign_in().status_code == 303


def test_pages_run_no_foreign_script_and_are_kept_by_nobody(operator):
    headers = operator.get().headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["style-src"]) == ("'none'", "'self'", "'self'")
    assert (policy["frame-ancestors"], policy["base-uri"], policy["form-action"]) == ("'none'", "'none'", "'self'")
    assert policy["connect-src"].split() == ["'self'", "http://localhost:8888", "http://localhost:8889"]
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]* src=)|<style|\son[a-z]+=|\sstyle=", operator.get().text)


def test_media_elsewhere_is_let_into_the_policy_and_nothing_of_its_path(make_app):
    visitor = Visitor(make_app(MEDIAMTX_HLS_URL="https://media.example/hls", MEDIAMTX_WEBRTC_URL="off"))
    policy = visitor.get("/console/sign-in").headers["Content-Security-Policy"]
    assert "connect-src 'self' https://media.example;" in policy
    assert "frame-src https://media.example;" in policy


def test_files_have_an_address_for_ever_and_no_other(visitor):
    page = visitor.get("/console/sign-in").text
    addresses = re.findall(r'(?:src|href)="(/console/assets/[^"]+)"', page)
    assert len({address.rpartition("/")[2] for address in addresses}) == 4
    for address in addresses:
        file = visitor.get(address)
        assert file.status_code == 200
        assert "immutable" in file.headers["Cache-Control"]
    _, _, _, edition, name = addresses[0].split("/")
    assert visitor.get(f"/console/assets/{'0' * len(edition)}/{name}").status_code == 404
    assert visitor.get(f"/console/assets/{edition}/nothing.js").status_code == 404


def test_an_address_that_is_none_is_a_page(operator):
    missing = operator.get("/console/nowhere")
    assert missing.status_code == 404
    assert missing.content_type == "text/html; charset=utf-8"
    assert "There is no such page." in missing.text


def test_what_scripts_ask_for_has_its_problems_as_json(visitor):
    refused = visitor.get("/console/alive", headers={"Accept": "application/json"})
    assert (refused.status_code, refused.content_type) == (401, "application/problem+json")
    visitor.sign_in()
    assert visitor.get("/console/alive", headers={"Accept": "application/json"}).json == {}


def test_without_a_database_signing_in_works_and_pages_say_so(make_app):
    visitor = Visitor(make_app(DATABASE_URL="postgresql://127.0.0.1:9/nowhere?connect_timeout=1"))
    assert visitor.sign_in().status_code == 303
    away = visitor.get("/console/alive")
    assert away.status_code == 503
    assert away.headers["Retry-After"] == "1"
    assert "Encoders that are live stay live" in away.text


def test_what_is_unforeseen_is_a_page_too(app, operator, monkeypatch):
    def broken(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(app.view_functions, "console_wall.alive", broken)
    failed = operator.get("/console/alive")
    assert failed.status_code == 500
    assert "Traceback" not in failed.text

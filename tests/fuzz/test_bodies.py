"""Bodies: of POST /auth and the hooks as MediaMTX sends them, and of the REST part, each with something wrong."""

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import API_SECRET
from tests.fuzz import PART, budget, hooks, nearly, questions

CALLBACK = {"Authorization": "Basic " + "bWVkaWFtdHg6Y2FsbGJhY2s="}  # mediamtx:callback
BEARER = {"Authorization": f"Bearer {API_SECRET}"}
ODD_TYPES = st.sampled_from(["application/json", "application/x-www-form-urlencoded", "", "text/\xff", "a/b+json"])


def assert_nothing_of_the_key_is_kept(subject) -> None:
    """`subject` looks at the answer and at the log."""
    assert PART not in subject.everything()


@budget(400)
@given(nearly(questions()), ODD_TYPES)
def test_questions(subject, body, content_type):
    subject.ask("POST", "/auth", statuses={200, 400, 401}, data=body, headers=CALLBACK | {"Content-Type": content_type})
    assert_nothing_of_the_key_is_kept(subject)


@budget(300)
@given(nearly(hooks()), st.sampled_from(["ready", "not-ready"]), ODD_TYPES)
def test_hooks(subject, body, hook, content_type):
    headers = CALLBACK | {"Content-Type": content_type}
    subject.ask("POST", f"/webhook/{hook}", statuses={204, 400, 404}, data=body, headers=headers)
    assert_nothing_of_the_key_is_kept(subject)


METADATA = {"team": 7, "tags": ["a", {"b": None}], "more": {"deep": [1.5, True]}}
NEW_BROADCASTER = {"display_name": "Team 7", "id": None, "metadata": METADATA, "disabled": False}
NEW_KEY = {
    "broadcaster_id": "BROADCASTER",
    "label": "camera",
    "path": "live/bound",
    "takeover": "stalled",
    "expires_at": "2036-01-31T12:00:00+01:00",
    "disabled": False,
    "metadata": METADATA,
}
REST = {
    ("POST", "broadcasters", ""): NEW_BROADCASTER,
    ("PATCH", "broadcasters", "id"): {"display_name": "x", "metadata": METADATA},
    ("POST", "stream-keys", ""): NEW_KEY,
    ("PATCH", "stream-keys", "id"): {name: NEW_KEY[name] for name in ("label", "takeover", "metadata")}
    | {"hold_until": "2026-01-31T12:00:00.5Z", "expires_at": None},
    ("PATCH", "streams", "id"): {"metadata": METADATA, "recording_ref": "s3://a/b.mp4"},
}


@budget(500)
@given(st.data())
def test_rest(subject, data):
    (method, room, by_id), body = data.draw(st.sampled_from(list(REST.items())))
    path = f"/{room}/{subject.ids[room]}" if by_id else f"/{room}"
    body = json.loads(json.dumps(body).replace("BROADCASTER", subject.ids["broadcasters"]))
    if "id" in body:
        body["id"] = str(data.draw(st.uuids()))
    raw = data.draw(nearly([body]))
    before = subject.everything()
    answer = subject.ask(
        method,
        path,
        statuses={200, 201, 400, 409},
        data=raw,
        headers=BEARER | {"Content-Type": "application/json"},
    )
    if answer.status_code >= 400:
        assert subject.everything() == before
        return
    shown = answer.json
    again = subject.client.get(answer.headers.get("Location", path), headers=BEARER).json
    assert again == {name: value for name, value in shown.items() if name not in ("key_value", "publish")}
    sent = json.loads(raw)
    for name in ("metadata", "display_name", "label", "recording_ref", "takeover"):
        if name in sent and name in shown and sent[name] is not None:
            assert shown[name] == sent[name]

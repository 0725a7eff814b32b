"""`streamorch broadcasters`."""

import uuid

import pytest

from tests.blueprints import only


def test_one_is_made_and_its_id_alone_is_printed(shell, api, conn):
    made = shell.text("broadcasters", "create", "Boot 3 日本")
    assert made == f"{uuid.UUID(made.strip())}\n"
    assert api.get(f"/broadcasters/{made.strip()}").json["display_name"] == "Boot 3 日本"


def test_the_objects_are_those_of_the_api(shell, api, make_broadcaster):
    for number in range(3):
        make_broadcaster(display_name=f"Team {number}")
    listed = api.get("/broadcasters").json
    assert shell.json("broadcasters") == {"broadcasters": listed["broadcasters"], "count": 3}
    first = listed["broadcasters"][0]
    assert shell.json("broadcasters", "show", first["id"]) == first
    made = shell.json("broadcasters", "create", "Team 9")
    assert made == api.get(f"/broadcasters/{made['id']}").json


def test_all_of_them_are_listed_newest_first_past_one_page(shell, conn):
    conn.execute(
        "INSERT INTO broadcasters (id, display_name) SELECT gen_random_uuid(), 'T' || n FROM generate_series(1, 1001) n"
    )
    lines = shell.text("broadcasters").splitlines()
    assert lines[0].split() == ["ID", "NAME", "STATE", "CREATED"]
    assert len({line[:36] for line in lines[1:]}) == 1001


def test_one_is_shown_by_its_id_alone(shell, make_broadcaster):
    made = make_broadcaster(display_name="Boat\x1b[2J 3")
    for text in (shell.text("broadcasters", made), shell.text("broadcasters", "show", made)):
        assert f"id        {made}\n" in text
        assert "name      Boat\ufffd[2J 3\n" in text  # nothing that a terminal obeys


def test_to_disable_ends_the_streams_and_to_enable_lets_in_again(shell, media_server, make_key, conn):
    key = make_key()
    media_server.go_live(key)
    assert shell.text("broadcasters", "disable", key.broadcaster_id) == "disabled; its streams have ended\n"
    assert only(conn, "SELECT end_reason FROM streams") == {"end_reason": "disabled"}
    assert media_server.ask(key).status_code == 401
    assert "disabled" in shell.text("broadcasters", "list")
    shell.text("broadcasters", "enable", key.broadcaster_id)
    assert media_server.ask(key).status_code == 200


def test_to_delete_asks_first_and_then_revokes_the_keys(shell, api, make_key):
    key = make_key()
    refused = shell.run("broadcasters", "delete", key.broadcaster_id)
    assert refused.exit_code == 1
    assert api.get(f"/broadcasters/{key.broadcaster_id}").status_code == 200
    assert shell.text("broadcasters", "delete", "--yes", key.broadcaster_id) == "deleted; its keys are revoked\n"
    assert api.get(f"/broadcasters/{key.broadcaster_id}").status_code == 404
    assert shell.text("broadcasters", "delete", "--yes", key.broadcaster_id) == "it was deleted before\n"


@pytest.mark.parametrize("verb", [["show"], ["disable"], ["enable"], ["delete", "--yes"]])
def test_an_unknown_one_is_one_line(shell, verb):
    assert shell.failure("broadcasters", *verb, uuid.uuid4()) == (
        "streamorch: no such broadcaster; list them with: streamorch broadcasters"
    )


@pytest.mark.parametrize("name", ["", "x" * 256, "\udcff"])
def test_a_name_that_cannot_be_kept_is_a_usage_error(shell, name, conn):
    assert "DISPLAY_NAME" in shell.failure("broadcasters", "create", name, code=2)
    assert only(conn, "SELECT count(*) FROM broadcasters") == {"count": 0}

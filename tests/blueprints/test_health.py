"""Health: what probes ask, and the page of each problem."""

import pytest

from streamorch import __version__
from streamorch.problems import TABLE
from tests.blueprints import problem


@pytest.fixture
def close_database(app):
    return app.extensions["streamorch"].database.close


def test_livez_is_of_the_process_alone(client, close_database):
    close_database()
    answer = client.get("/livez")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_health_is_of_the_database(client, close_database):
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json == {"status": "ok", "database": "ok", "version": __version__}
    close_database()
    answer = client.get("/health")
    assert (answer.status_code, answer.content_type) == (503, "application/json")
    assert answer.json == {"status": "degraded", "database": "unreachable", "version": __version__}
    assert answer.headers["Retry-After"]


@pytest.mark.own_database
def test_readyz_is_of_pool_and_schema(client, close_database, conn):
    answer = client.get("/readyz")
    assert answer.status_code == 200
    state = {"database": "ok", "schema": "current", "media_server": "never", "version": __version__}
    assert answer.json == {"status": "ok"} | state
    conn.execute("INSERT INTO streamorch_migrations (name, checksum) VALUES ('9999_of_a_later_release', '')")
    assert client.get("/readyz").status_code == 200  # a schema that is newer has all of this one
    conn.execute("DELETE FROM streamorch_migrations WHERE name LIKE '0002%'")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["schema"], answer.json["status"]) == (503, "old", "degraded")
    conn.execute("DROP TABLE streamorch_migrations")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["schema"]) == (503, "old")
    close_database()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["database"]) == (503, "unreachable")
    assert answer.headers["Retry-After"]


def test_probes_answer_head(client):
    for path in ("/livez", "/health", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.data) == (200, b"")


class TestFromMemory:
    """What is answered without the database: there is none."""

    @pytest.fixture
    def database_url(self):
        return "postgresql:///none?host=/nowhere"

    @pytest.mark.parametrize("slug", TABLE)
    def test_each_problem_has_a_page(self, slug, client):
        answer = client.get(f"/errors/{slug}")
        assert answer.status_code == 200
        for text in (TABLE[slug].title, str(TABLE[slug].status), TABLE[slug].meaning, TABLE[slug].mend):
            assert text in answer.text

    def test_an_unknown_problem_has_none(self, client):
        problem(client.get("/errors/unheard-of"), "not-found", 404)

    def test_a_database_that_was_never_there_is_told(self, client):
        assert client.get("/health").status_code == 503
        assert client.get("/readyz").json["schema"] is None
        assert client.get("/livez").status_code == 200
